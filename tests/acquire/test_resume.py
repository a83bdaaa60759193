"""Whatever cuts, short reads and restarts happen: the right bytes or a clean refusal, and in the end the bytes."""

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from modelagent.errors import AgentError, SourceError, TrustError
from modelagent.sources import Body
from modelagent.sources.mirrors import Mirrors
from modelagent.steps.transfer import Transfer

CONTENT = bytes(range(256)) * 40
DIGEST = hashlib.sha256(CONTENT).hexdigest()
OTHER = CONTENT[:5000] + b"!" + CONTENT[5001:]


class Flaky:
    """Plays one behaviour a request: (kind, where it cuts, size of its chunks)."""

    name = "flaky"

    def __init__(self, script: list[tuple[str, int, int]]) -> None:
        self.script = script
        self.sent = 0

    def close(self) -> None:
        pass

    remote = True

    def fetch(self, name: str, *, limit: int, offset: int = 0, validator: str = "") -> Body:
        kind, cut, step = self.script.pop(0) if self.script else ("honest", 0, 4096)
        data = OTHER if kind == "lies" else CONTENT
        start = {"restarts": 0, "elsewhere": offset // 2}.get(kind, offset)
        if kind == "down":
            raise SourceError("down", code="unreachable")
        if kind == "no-range" and offset:
            raise SourceError("no such range", code="wrong-range")
        total = {"silent": None, "endless": None, "longer": len(data) + 1, "shorter": len(data) - 1}.get(
            kind, len(data)
        )

        def chunks() -> Iterator[bytes]:
            sent = start
            while sent < len(data):
                chunk = data[sent : sent + step]
                if kind in {"cuts", "silent"} and sent + len(chunk) > start + cut:
                    chunk = chunk[: start + cut - sent]
                    self.sent += len(chunk)
                    yield chunk
                    if kind == "cuts":
                        raise SourceError("cut", code="cut")
                    return
                sent += len(chunk)
                self.sent += len(chunk)
                yield chunk
            while kind == "endless":
                yield b"\0" * step

        return Body(chunks(), offset=start, total=total)


KINDS = [
    "honest", "cuts", "silent", "restarts", "elsewhere", "down", "no-range", "lies", "endless", "longer", "shorter",
]  # fmt: skip
BEHAVIOUR = st.tuples(st.sampled_from(KINDS), st.integers(0, len(CONTENT)), st.integers(1, 5000))


def stranger(sha256: str) -> str | None:
    """No bytes are known to belong elsewhere."""
    return None


def bring(source: Flaky, incoming: Path, here: list[int] | None = None) -> AgentError | None:
    """One try, by a new process; the refusal, if it was one."""
    transfer = Transfer(incoming, Mirrors([source]), stranger)
    told = [] if here is None else here
    try:
        transfer.fetch(DIGEST, len(CONTENT), progress=told.append, abandoned=lambda: False)
    except AgentError as error:
        return error
    return None


@settings(max_examples=150, deadline=None)
@given(st.lists(BEHAVIOUR, max_size=12), st.binary(max_size=64))
def test_any_sequence_of_cuts_ends_with_the_right_bytes_or_a_clean_refusal(
    script: list[tuple[str, int, int]], left_over: bytes
) -> None:
    with tempfile.TemporaryDirectory() as name:
        incoming = Path(name)
        if left_over:
            (incoming / f"{DIGEST}.part").write_bytes(left_over)
        source = Flaky(list(script))
        here: list[int] = []
        while (refusal := bring(source, incoming, here)) is not None:
            assert isinstance(refusal, SourceError | TrustError)
            assert [path.name for path in incoming.iterdir()] in ([], [f"{DIGEST}.part"])
            assert all(path.stat().st_size <= len(CONTENT) for path in incoming.iterdir())
        assert max(here) <= len(CONTENT)
        assert (incoming / DIGEST).read_bytes() == CONTENT
        assert [path.name for path in incoming.iterdir()] == [DIGEST]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, len(CONTENT) // 4), min_size=1, max_size=10), st.integers(1, 5000))
def test_cuts_alone_cost_no_byte_twice(cuts: list[int], step: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        source = Flaky([("cuts", cut, step) for cut in cuts])
        while (refusal := bring(source, Path(name))) is not None:
            assert refusal.code == "cut"
        assert source.sent == len(CONTENT)


def test_a_lie_takes_back_only_what_the_liar_sent(tmp_path: Path) -> None:
    source = Flaky([("cuts", 3000, 500), ("endless", 0, 700)])
    refusals = [bring(source, tmp_path), bring(source, tmp_path)]
    assert [refusal.code for refusal in refusals if refusal is not None] == ["cut", "endless-data"]
    assert (tmp_path / f"{DIGEST}.part").read_bytes() == CONTENT[:3000]


def test_a_source_that_knows_no_ranges_and_then_goes_away_costs_nothing_that_is_here(tmp_path: Path) -> None:
    bring(Flaky([("cuts", 5000, 1000)]), tmp_path)
    part = tmp_path / f"{DIGEST}.part"
    assert part.stat().st_size == 5000
    for script in ([("no-range", 0, 1000), ("down", 0, 1)], [("no-range", 0, 1000), ("cuts", 300, 100)]):
        error = bring(Flaky(script), tmp_path)
        assert isinstance(error, SourceError)
        assert part.stat().st_size == 5000
    assert isinstance(bring(Flaky([("no-range", 0, 1000), ("endless", 0, 700)]), tmp_path), TrustError)
    assert part.stat().st_size == 5000
    assert bring(Flaky([]), tmp_path) is None
