"""A web server as a source: requests, one session, every wait bounded.

This file knows HTTP. It does not know what the bytes mean. The server is trusted with nothing: lengths, ranges,
redirects and encodings are checked, and a server that trickles its head or its body is given up.

    source = HttpSource("https://models.example.org/plant/", min_rate=500, window=60)

A range request carries If-Range where the caller knows this server's validator (a changed file then restarts by
itself); a 200 in answer to a range means the server starts again from 0, which `Body.offset` tells. (RFC 9110,
sections 13.1.5, 14.) Each connection's limits are `wire.py`'s matter.
"""

import contextlib
import email.utils
import http.client
import os
import re
import ssl
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from modelagent.errors import SourceError, UsageError
from modelagent.sources import CHUNK, Body, BusyError, address_parts, bounded, captive, endless, not_found
from modelagent.sources.wire import BoundedAdapter

MAX_REDIRECTS: Final = 5
_DRAIN: Final = 16 * 1024  # bytes of an error page read so that the connection can be kept
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_STRONG: Final = re.compile(r'"[\x21\x23-\x7e]{1,200}"')
_MISSING: Final = {HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.GONE}
_BUSY: Final = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
_PAGES: Final = ("text/html", "application/xhtml")
_MOST_RETRY_AFTER: Final = 86400.0  # seconds; a server that asks for more is asked again tomorrow all the same


class RateFloor:
    """Gives up a transfer that brings fewer than `rate` bytes a second over a whole window of waiting.

    Only time spent waiting for the server counts: what the receiver itself takes (a rate cap, a slow disk) is not
    the server's fault.

    Args:
        rate: bytes a second; 0 switches the check off.
        window: seconds.
    """

    def __init__(self, rate: float, window: float) -> None:
        self._rate = rate
        self._window = window
        self._waited = 0.0
        self._bytes = 0

    def passed(self, count: int, waited: float) -> bool:
        """Whether the transfer may go on after `count` more bytes that took `waited` seconds."""
        self._bytes += count
        self._waited += waited
        if self._waited < self._window:
            return True
        enough = self._bytes >= self._rate * self._waited
        self._waited = 0.0
        self._bytes = 0
        return enough


class HttpSource:
    """Files below one address.

    Args:
        url: http or https, with or without the trailing slash.
        connect_timeout: seconds to connect, and for the TLS handshake.
        read_timeout: seconds without a single byte, and for the whole head of an answer.
        min_rate: bytes a second over `window` below which a transfer is given up.
        window: seconds.
        ca: PEM file of the accepted authorities; None takes the system's.
        client: (certificate, key) PEM files for mutual TLS.
        proxy: `http://host:port`; empty takes the environment's.
        receive_buffer: bytes the kernel may hold unread; 0 leaves it alone. A small one keeps a rate cap honest.
        clock: monotonic seconds.

    Raises:
        UsageError: `bad-url`.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout: float = 10.0,
        read_timeout: float = 30.0,
        min_rate: float = 500.0,
        window: float = 60.0,
        ca: Path | None = None,
        client: tuple[Path, Path] | None = None,
        proxy: str = "",
        receive_buffer: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        try:
            parts = urlsplit(url)
            known = parts.scheme in {"http", "https"} and bool(parts.hostname)
        except ValueError:  # half an IPv6 address
            known = False
        if not known:
            raise UsageError(
                f"repository url {url!r}: allowed is http://host/path/ or https://host/path/", code="bad-url"
            )
        self._url = url if url.endswith("/") else f"{url}/"
        self._timeouts = (connect_timeout, read_timeout)
        self._floor = (min_rate, window)
        self._clock = clock
        self.server_time: float | None = None  # Unix seconds by the last answer's Date: a hint for people, no more
        self._session = requests.Session()
        self._session.mount("http://", BoundedAdapter(receive_buffer))
        self._session.mount("https://", BoundedAdapter(receive_buffer))
        # Nothing that is not needed: on a metered link the head is most of what a check costs.
        self._session.headers.clear()
        self._session.headers.update({"Accept-Encoding": "identity", "User-Agent": "modelagent"})
        # The environment is read once and here: requests would do it for every request, would let REQUESTS_CA_BUNDLE
        # win over our own setting, and would look for passwords in ~/.netrc.
        self._session.trust_env = False
        self._session.verify = _system_authorities() if ca is None else str(ca)
        if client is not None:
            self._session.cert = (str(client[0]), str(client[1]))
        if proxy:
            self._session.proxies = {"http": proxy, "https": proxy}
        else:
            self._session.proxies = requests.utils.get_environ_proxies(url, no_proxy=None)

    @property
    def name(self) -> str:
        """The address, without a password that it may carry."""
        parts = urlsplit(self._url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

    @property
    def remote(self) -> bool:
        """Always."""
        return True

    def close(self) -> None:
        """Close kept connections."""
        self._session.close()

    def fetch(self, name: str, *, limit: int, offset: int = 0, validator: str = "") -> Body:
        """Request a file; see `Source.fetch`."""
        address_parts(name)
        headers = {}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if _STRONG.fullmatch(validator):
                headers["If-Range"] = validator
        response = self._get(name, headers)
        try:
            start, total = self._check(response, name, offset)
            if total is not None and total > limit:
                raise endless(self.name, name, limit)
        except BaseException:
            self._dismiss(response)
            raise
        tag = response.headers.get("ETag", "")
        chunks = bounded(self._chunks(response, name), source=self.name, name=name, room=limit - start, limit=limit)
        return Body(
            chunks,
            offset=start,
            total=total,
            validator=tag if _STRONG.fullmatch(tag) else "",
            close=response.close,
        )

    def _get(self, name: str, headers: dict[str, str]) -> requests.Response:
        # Joined by hand: a role named `a:b` must not be taken for a scheme.
        url = self._url + name
        for _ in range(MAX_REDIRECTS + 1):
            response = self._ask(url, name, headers)
            self.server_time = _http_date(response.headers.get("Date", ""))
            if not response.is_redirect:
                return response
            self._dismiss(response)
            target = urljoin(url, response.headers["Location"])
            old, new = urlsplit(url).scheme, urlsplit(target).scheme
            if new not in {"http", "https"} or (old == "https" and new != "https"):
                raise self._fault(name, "redirect", f"redirected from {old} to {new or 'nowhere'}, never followed")
            url = target
        raise self._fault(name, "redirect", f"redirected more than {MAX_REDIRECTS} times; check the server")

    def _ask(self, url: str, name: str, headers: dict[str, str]) -> requests.Response:
        """One request; asked once more when a kept connection turns out to be closed by the server."""
        for last in (False, True):
            try:
                return self._session.get(
                    url,
                    headers=headers,
                    timeout=self._timeouts,
                    stream=True,
                    allow_redirects=False,
                )
            except requests.exceptions.ConnectTimeout as error:
                raise self._fault(name, "timeout", f"not connected within {self._timeouts[0]:g} s") from error
            except requests.exceptions.Timeout as error:
                raise self._fault(name, "timeout", f"no whole answer within {self._timeouts[1]:g} s") from error
            except requests.exceptions.SSLError as error:
                what = f"{error}; check the certificate, `ca` and this device's clock"
                raise self._fault(name, "tls", what) from error
            except requests.exceptions.ProxyError as error:
                raise self._fault(name, "proxy", f"{error}; check `proxy`") from error
            except requests.exceptions.InvalidURL as error:
                raise self._fault(name, "redirect", f"no address: {error}; check url and server") from error
            except (requests.exceptions.RequestException, OSError, http.client.HTTPException) as error:
                closed = bool(error.args) and isinstance(error.args[0], urllib3.exceptions.ProtocolError)
                if last or not closed:
                    raise self._fault(name, "unreachable", f"{error}; check network and url") from error
            except ValueError as error:  # requests looks at where a redirect leads, also when it must not go there
                raise self._fault(name, "redirect", f"redirected to no address ({error}); check the server") from error
        raise AssertionError("the second round returns or raises")

    def _check(self, response: requests.Response, name: str, offset: int) -> tuple[int, int | None]:
        """Where the body begins and how long the whole is; raises on anything but a usable answer."""
        status = response.status_code
        if status in _MISSING:
            raise not_found(self.name, name)
        if status == HTTPStatus.NETWORK_AUTHENTICATION_REQUIRED:
            raise captive(self.name, name)
        if status in _BUSY or status >= 500:
            raise BusyError(
                f"{self.name}: {name}: the server answered {status}; it is tried again later",
                code="server-error",
                retry_after=_retry_after(response),
            )
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise self._fault(name, "wrong-range", f"the server has no byte {offset}")
        if status not in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
            raise self._fault(name, "refused", f"the server answered {status}; check url and rights")
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding.lower() != "identity":
            raise self._fault(
                name, "content-encoding", f"found {encoding!r} though none was asked for; switch it off there"
            )
        if response.headers.get("Content-Type", "").lower().startswith(_PAGES):
            raise captive(self.name, name)
        length = _whole_number(response.headers.get("Content-Length"))
        if status == HTTPStatus.OK:
            return 0, length
        span = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if span is None or not offset or int(span[1]) != offset:
            found = response.headers.get("Content-Range", "no range")
            raise self._fault(name, "wrong-range", f"asked from byte {offset} on, found {found[:80]!r}")
        total = None if span[3] == "*" else int(span[3])
        if (total is not None and int(span[2]) != total - 1) or (
            length is not None and length != int(span[2]) - offset + 1
        ):
            raise self._fault(name, "wrong-range", f"found {span[0]!r} with {length} bytes")
        return offset, total

    def _chunks(self, response: requests.Response, name: str) -> Iterator[bytes]:
        floor = RateFloor(*self._floor)
        while True:
            began = self._clock()
            try:
                # read1: whatever has come, at once. A read that waits for a whole chunk would let a server that
                # sends one byte now and then hold us for ever, each byte resetting the time-out.
                chunk = response.raw.read1(CHUNK, decode_content=False)
            except urllib3.exceptions.ReadTimeoutError as error:
                raise self._fault(name, "timeout", f"nothing for {self._timeouts[1]:g} s") from error
            except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
                raise self._fault(name, "cut", f"the connection broke ({error})") from error
            waited = self._clock() - began
            if not chunk:
                return
            yield chunk
            if not floor.passed(len(chunk), waited):
                raise self._fault(name, "too-slow", f"fewer than {self._floor[0]:g} bytes/s over {self._floor[1]:g} s")

    def _dismiss(self, response: requests.Response) -> None:
        """Read a short error page so that the connection can be kept; drop the connection of any other."""
        length = _whole_number(response.headers.get("Content-Length"))
        # In chunks it has no length, whatever else it says.
        if length is not None and length <= _DRAIN and "Transfer-Encoding" not in response.headers:
            with contextlib.suppress(urllib3.exceptions.HTTPError, http.client.HTTPException, OSError):
                response.raw.read(length, decode_content=False)
        response.close()

    def _fault(self, name: str, code: str, what: str) -> SourceError:
        secret = urlsplit(self._url).netloc.rpartition("@")[0]  # what the libraries say may name the whole address
        return SourceError(f"{self.name}: {name}: {what.replace(f'{secret}@', '') if secret else what}", code=code)


def _system_authorities() -> bool | str:
    """The file of the authorities that this system accepts; True where there is none: then those requests brings."""
    named = [os.environ.get(name) for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")]
    usual = [ssl.get_default_verify_paths().cafile, "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/cert.pem"]
    return next((path for path in (*named, *usual) if path and Path(path).is_file()), True)


def _whole_number(text: str | None) -> int | None:
    return int(text) if text is not None and len(text) <= 18 and text.isascii() and text.isdigit() else None


def _http_date(text: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def _retry_after(response: requests.Response) -> float:
    """Seconds; a date counts from the server's own Date, because this device's clock may be wrong."""
    text = response.headers.get("Retry-After", "")
    seconds = _whole_number(text)
    if seconds is not None:
        return min(float(seconds), _MOST_RETRY_AFTER)
    until, since = _http_date(text), _http_date(response.headers.get("Date", ""))
    return 0.0 if until is None or since is None else min(max(0.0, until - since), _MOST_RETRY_AFTER)
