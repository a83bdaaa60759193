"""A command as it arrives, whether by the control socket or by the broker: checked, then handed on.

This file knows the request's format, its limits and the one way every request is answered. It does not know how bytes
travel, and executes nothing: what steers goes to the driver through `submit`, what only asks is answered by `view`.

    desk = Desk(submit=driver.submit, view=driver.view, now=time.time, ledger=Ledger(state_dir / "commands"))
    desk.take(b'{"id":"7f3a","verb":"hold","model":"digits"}', origin="cli", limit=65536, reply=print)

A request is one JSON object: `id` and `verb`, and as the verb needs them `model`, `argument`, `expires` (Unix
seconds), `labels`. An unknown key is refused: a misspelt `expires` must not make a command that never expires.
An answer is one JSON object: `id`, `status` (accepted, refused, done, failed), `reason`, and perhaps `code`,
`result`, `duplicate`. Both are described by `modelagent/schemas/{command,reply}.schema.json`.
"""

import json
import math
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from modelagent.core.events import Event, Instant, RevertWanted, Verb, Wanted
from modelagent.errors import AgentError, UsageError
from modelagent.inputs import EventFactory, Reply
from modelagent.inputs.labels import Label, parse_labels
from modelagent.inputs.ledger import Ledger

VIEWS: Final = ("status", "history", "explain")  # change nothing, answered at once
STEERING: Final = tuple(verb for verb in Verb.ALL if verb != Verb.CONFIG)
OTHERS: Final = ("label", "reload", "install")
WATCH: Final = "watch"  # status and every event from now on; where the caller can be told
VERBS: Final = (*VIEWS, WATCH, *STEERING, *OTHERS)
FINAL: Final = ("refused", "done", "failed")  # no further answer follows one of these
_NEEDS_ARGUMENT: Final = (Verb.PIN, Verb.LIFT, Verb.BLOCK, "install")
_KEYS: Final = ("id", "verb", "model", "argument", "expires", "labels")
_ID: Final = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
_MODEL: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_ARGUMENT_MAX: Final = 1024  # characters
_DEPTH_MAX: Final = 16  # brackets inside brackets


@dataclass(frozen=True, slots=True)
class Request:
    """One checked request. `model` None: the only one, or all; `expires` in Unix seconds, None: never."""

    id: str
    verb: str
    origin: str
    model: str | None = None
    argument: str = ""
    expires: float | None = None
    labels: tuple[Label, ...] = ()

    @property
    def event(self) -> EventFactory:
        """What the request means to the machine; for the verbs in STEERING only."""

        def make(at: Instant, draw: float) -> Event:
            if self.verb == Verb.ROLLBACK:
                return RevertWanted(at, draw, origin=self.origin, id=self.id, reason=self.argument)
            return Wanted(at, draw, verb=self.verb, origin=self.origin, id=self.id, argument=self.argument)

        return make


class RequestError(UsageError):
    """A request that is not taken; `id` is the request's where it could be read, else empty."""

    def __init__(self, message: str, *, code: str, id: str = "") -> None:  # noqa: A002 - the protocol's word
        super().__init__(message, code=code)
        self.id = id


Submit = Callable[[Request, Reply], None]  # never blocks; called from the inputs' threads
View = Callable[[Request], Mapping[str, Any]]  # quick and thread-safe; AgentError is a refusal


def answer(
    id: str,  # noqa: A002 - the protocol's word
    status: str,
    reason: str = "",
    **more: object,
) -> dict[str, Any]:
    """One answer in the order a person reads it."""
    return {"id": id, "status": status, "reason": reason, **more}


def parse_request(data: bytes, *, origin: str, limit: int) -> Request:
    """Check the bytes of one request against the format and the limits; raises RequestError, and nothing else."""
    if len(data) > limit:
        raise RequestError(f"the request has {len(data)} bytes; allowed: {limit}", code="oversized")
    document = _parse_json(data)
    found = document.get("id")
    id_ = found if isinstance(found, str) and _ID.fullmatch(found) else ""

    def refuse(what: str, code: str = "malformed") -> RequestError:
        return RequestError(what, code=code, id=id_)

    if not id_:
        raise refuse("id: a text of 1 to 128 letters, digits or . _ : / - is needed; a new one for each command")
    unknown = sorted(set(document) - set(_KEYS))
    if unknown:
        raise refuse(f"unknown key {_short(unknown[0])}; allowed: {', '.join(_KEYS)}")
    verb = document.get("verb")
    if not isinstance(verb, str) or verb not in VERBS:
        raise refuse(f"verb: found {_short(verb)}; allowed: {', '.join(VERBS)}", "unknown-verb")
    model = document.get("model")
    if model is not None and (not isinstance(model, str) or not _MODEL.fullmatch(model)):
        raise refuse(f"model: found {_short(model)}; allowed: the name of a model, or nothing")
    argument = document.get("argument", "")
    if not isinstance(argument, str) or len(argument) > _ARGUMENT_MAX or not argument.isprintable():
        raise refuse(f"argument: found {_short(argument)}; allowed: printable text, at most {_ARGUMENT_MAX} characters")
    if verb in _NEEDS_ARGUMENT and not argument:
        raise refuse(f"argument: the verb {verb} needs one: a version, a digest or a path")
    labels: tuple[Label, ...] = ()
    if verb == "label":
        try:
            labels = parse_labels(document.get("labels"))
        except UsageError as error:
            raise refuse(error.message, error.code) from error
    elif "labels" in document:
        raise refuse("labels: only the verb label takes them")
    return Request(id_, verb, origin, model, argument, _expiry(document.get("expires"), refuse), labels)


class Desk:
    """Takes requests from any number of threads and sees that each one gets its answer."""

    def __init__(self, *, submit: Submit, view: View, now: Callable[[], float], ledger: Ledger | None = None) -> None:
        """Remember whom to ask; `now` gives Unix seconds, for expiry only. `ledger` None: answers kept in memory."""
        self._submit = submit
        self._view = view
        self._now = now
        self._ledger = ledger if ledger is not None else Ledger(None)
        self._pending: dict[str, list[Reply]] = {}  # commands without an answer yet, and who repeated them meanwhile
        self._lock = threading.Lock()

    def take(
        self,
        data: bytes,
        *,
        origin: str,
        limit: int,
        reply: Reply,
        watch: Callable[[str], None] | None = None,
    ) -> None:
        """Check one request and answer or submit it; the bytes may be anything. `limit` in bytes.

        `watch` is given the id of a request of the verb `watch`, and from then on owes its asker the news; None: the
        way it came by has no news of its own.
        """
        try:
            request = parse_request(data, origin=origin, limit=limit)
            if request.verb not in (*VIEWS, WATCH) and self._repeated(request.id, reply):
                return
            late = 0.0 if request.expires is None else self._now() - request.expires
            if late > 0:
                raise RequestError(f"expired {late:.0f} s ago; send it again", code="expired", id=request.id)
        except RequestError as refusal:
            reply(answer(refusal.id, "refused", refusal.message, code=refusal.code))
            return
        try:
            if request.verb in VIEWS:
                reply(answer(request.id, "done", result=self._view(request)))
            elif request.verb == WATCH:
                self._watch(request, reply, watch)
            else:
                self._hand_on(request, reply)
        except AgentError as error:
            reply(answer(request.id, "refused", error.message, code=error.code))

    def _repeated(self, command: str, reply: Reply) -> bool:
        """Answer a repeat as the first one was, or have it wait for that answer. False: it is no repeat."""
        with self._lock:
            if command in self._pending:
                self._pending[command].append(reply)
                return True
            known = self._ledger.recall(command)
        if known is not None:
            reply({"id": command, **known, "duplicate": True})
        return known is not None

    def _hand_on(self, request: Request, reply: Reply) -> None:
        """Submit a command once.

        Its first answer is recorded and goes to whoever repeated it meanwhile. What failed, or was refused by a fault
        of the device, is not recorded: nothing was done, so the same command may be tried again.
        """
        with self._lock:
            if request.id in self._pending:  # a second thread was as quick
                self._pending[request.id].append(reply)
                return
            self._pending[request.id] = []

        def settle(document: Mapping[str, Any], *, record: bool) -> None:
            with self._lock:
                if record:
                    told = {key: document[key] for key in ("status", "reason", "code") if key in document}
                    self._ledger.keep(request.id, told)
                waiting = self._pending.pop(request.id, [])
            reply(document)
            for other in waiting:
                other({**document, "duplicate": True})

        try:
            self._submit(request, lambda document: settle(document, record=document.get("status") != "failed"))
        except AgentError as error:
            settle(answer(request.id, "refused", error.message, code=error.code), record=False)

    def _watch(self, request: Request, reply: Reply, watch: Callable[[str], None] | None) -> None:
        if watch is None:
            why = "watch works through the control socket; here, subscribe to the event and status topics"
            reply(answer(request.id, "refused", why, code="no-watch"))
            return
        question = replace(request, verb="status")
        self._view(question)  # refuses what cannot be watched
        watch(request.id)
        # Asked for only now: what happens meanwhile is in it, or comes as news.
        reply(answer(request.id, "accepted", result={"status": self._view(question)}))


def _parse_json(data: bytes) -> dict[str, Any]:
    try:
        text = data.decode("utf-8")
        # The parser recurses in C; a bound on nesting keeps a short hostile line from costing the whole stack.
        if _depth(text) > _DEPTH_MAX:
            raise RequestError(f"nested more than {_DEPTH_MAX} deep; a request is flat", code="malformed")
        document = json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        raise RequestError(f"not JSON: {error}; one object is needed", code="malformed") from error
    if not isinstance(document, dict):
        raise RequestError(f"found {_short(document)}; one JSON object is needed", code="malformed")
    return document


def _depth(text: str) -> int:
    deepest = depth = 0
    for character in text:
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _expiry(value: object, refuse: Callable[[str], RequestError]) -> float | None:
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except OverflowError:
            seconds = math.inf
        if math.isfinite(seconds):
            return seconds
    raise refuse(f"expires: found {_short(value)}; allowed: Unix seconds as a number")


def _short(value: object) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
