"""Sample upload: single frames that leave the device, where the settings ask for it. Off, no frame ever does.

This file knows which frames are sent, how many and how many bytes a day, and how one travels. It does not know what is
done with them, and nothing waits for it.

    options = SampleOptions(url="https://hooks.example.org/frames")
    upload = Upload("digits", options, "box-17", keep_dir / "samples.json")
    upload.keep("9f2c-17", frame, "<digest>", "1.4.0", decision)      # the serving thread: never waits
    upload.report()                                                  # for health: {"sent": 3, "lost": 0, ...}

A sample is an .npz of one frame (`input_0`, ...), with what is known of it in headers, percent-encoded because labels
may be anything. Samples wait in memory only, and the first one is tried until it is taken or refused: a target
that is away for long costs the samples that come meanwhile, not those that were there first.
"""

import contextlib
import io
import json
import logging
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlsplit

import numpy as np

from modelagent.durable import write_atomic
from modelagent.inference.decisions import Decision
from modelagent.inference.frames import Frame
from modelagent.inference.options import SampleOptions
from modelagent.inference.post import post

_log = logging.getLogger(__name__)

_BACK_OFF: Final = (1.0, 300.0)  # seconds between two tries, doubling
_DAY: Final = 86_400
_LATER: Final = (408, 429)  # the answers below 500 that mean: not now


class _Sample(NamedTuple):
    """One frame and what is said of it."""

    id: str
    frame: Frame
    about: dict[str, str]


class _RefusedError(Exception):
    """The target will never take this sample."""


class _UnaffordableError(Exception):
    """The day's bytes are spent."""


class Upload:
    """See the head of the file. `keep` is the serving thread's alone.

    Args:
        model: its name.
        options: exactly one of `url` and `path` is set.
        device: its name.
        ledger: file that holds how much was sent today: a restart is no new day.
        back_off: seconds before the second try of a sample, and the most that they double to.
    """

    def __init__(
        self,
        model: str,
        options: SampleOptions,
        device: str,
        ledger: Path,
        *,
        back_off: tuple[float, float] = _BACK_OFF,
    ) -> None:
        self._back_off = back_off
        self._options = options
        self._fixed = {"device": device, "model": model}
        self._ledger = ledger
        self._day, self._bytes = _read_ledger(ledger)
        self._overflowed = 0  # counted by the serving thread, the others by ours
        self._counts = {"sent": 0, "lost": 0, "refused": 0, "over_budget": 0}
        self._problem = ""
        self._spacing = 3600.0 / options.per_hour
        self._not_before = 0.0
        self._due = 0.0
        self._waiting: deque[_Sample] = deque()
        self._some = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"samples-{model}", daemon=True)
        self._thread.start()

    def keep(self, name: str, frame: Frame, digest: str, version: str, decision: Decision) -> None:
        """Take this frame if it is one to be sent and its turn has come; when too many wait it is lost and counted.

        Args:
            name: id of the result.
            frame: as it came from the source.
            digest: of the version that decided.
            version: its name.
            decision: what it said.
        """
        if frame.mono < self._not_before or not self._is_wanted(decision.confidence):
            return
        self._not_before = frame.mono + self._spacing
        if len(self._waiting) >= self._options.queue:
            self._overflowed += 1
            return
        said = {"prediction": decision.prediction, "label": decision.label, "confidence": decision.confidence}
        about = {"result": name, **self._fixed, "version": version, "digest": digest, "frame": frame.id}
        about |= {key: str(value) for key, value in {**said, "at": frame.wall}.items() if value is not None}
        self._waiting.append(_Sample(name, frame, about))
        self._some.set()

    def close(self, timeout: float) -> None:
        """End within so many seconds; what waits is lost."""
        self._stop.set()
        self._some.set()
        self._thread.join(timeout)

    def report(self) -> dict[str, Any]:
        """For health."""
        return {
            **self._counts,
            "lost": self._counts["lost"] + self._overflowed,
            "waiting": len(self._waiting),
            "bytes_today": self._bytes,
            "problem": self._problem,
        }

    def _is_wanted(self, confidence: float | None) -> bool:
        if confidence is not None and confidence < self._options.below_confidence:
            return True
        self._due += self._options.share
        if self._due < 1.0:
            return False
        self._due -= 1.0
        return True

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            self._some.wait()
            self._some.clear()
            while self._waiting and not self._stop.is_set():
                try:
                    outcome = self._deliver(self._waiting[0])
                except Exception as error:  # noqa: BLE001 - no fault may end the thread for good
                    self._complain(repr(error))
                    outcome = "lost"
                self._waiting.popleft()  # only now: what is being sent still counts against the queue
                self._counts[outcome] += 1
        self._counts["lost"] += len(self._waiting)
        self._waiting.clear()

    def _deliver(self, sample: _Sample) -> str:
        """Send one sample, however long that takes; returns what became of it."""
        pause = self._back_off[0]
        try:
            body = _encode(sample.frame)
        except MemoryError:
            return "lost"
        while not self._stop.is_set():
            try:
                if self._options.path is not None:
                    self._write(self._options.path, sample, body)
                else:
                    self._post(sample, body)
            except _UnaffordableError:
                return "over_budget"
            except _RefusedError as error:
                self._complain(f"{error}; this sample is given up")
                return "refused"
            except OSError as error:
                self._complain(f"{error}; samples wait in memory, up to {self._options.queue}")
                self._stop.wait(pause)
                pause = min(self._back_off[1], pause * 2)
            else:
                if self._problem:
                    _log.info("%s: samples are taken again", self._fixed["model"])
                self._problem = ""
                return "sent"
        return "lost"

    def _complain(self, problem: str) -> None:
        """Log once until it works again; health shows the newest."""
        if not self._problem:
            _log.warning("%s: samples: %s", self._fixed["model"], problem)
        self._problem = problem

    def _post(self, sample: _Sample, body: bytes) -> None:
        self._afford(len(body))
        headers = {f"Modelagent-{key.title()}": quote(value) for key, value in sample.about.items()}
        headers["Content-Type"] = "application/zip"
        # Spent also where it fails later: a metered link has carried it.
        status = post(self._options.url, body, headers, sample.id, connected=lambda: self._spend(len(body)))
        if 200 <= status < 300:
            return
        text = f"{urlsplit(self._options.url).hostname}: answered {status}"
        raise OSError(text) if status >= 500 or status in _LATER else _RefusedError(text)

    def _write(self, directory: Path, sample: _Sample, body: bytes) -> None:
        self._afford(len(body))
        lying = sum(path.stat().st_size for path in directory.glob("*.npz"))
        if lying + len(body) > self._options.daily_bytes:
            raise OSError(f"{directory}: full of samples that nobody has collected")
        write_atomic(directory / f"{sample.id}.json", json.dumps(sample.about).encode(), durable=False)
        write_atomic(directory / f"{sample.id}.npz", body, durable=False)
        self._spend(len(body))

    def _afford(self, size: int) -> None:
        today = int(time.time() // _DAY)
        if today != self._day:
            self._day, self._bytes = today, 0
        if self._bytes + size > self._options.daily_bytes:
            raise _UnaffordableError

    def _spend(self, size: int) -> None:
        self._bytes += size
        with contextlib.suppress(OSError):  # a full disk: what is in memory holds until the restart
            write_atomic(self._ledger, json.dumps({"day": self._day, "bytes": self._bytes}).encode(), durable=False)


def _encode(frame: Frame) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **{f"input_{index}": one for index, one in enumerate(frame.arrays)})
    return file.getvalue()


def _read_ledger(path: Path) -> tuple[int, int]:
    """Day since 1970 and bytes of that day; a file that is missing or damaged is an empty one."""
    try:
        document = json.loads(path.read_bytes())
        return int(document["day"]), max(0, int(document["bytes"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return 0, 0
