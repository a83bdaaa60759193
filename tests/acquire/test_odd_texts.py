"""What is signed and odd, or named oddly: half characters and moments at the end of time are refused, never a crash."""

import json
from pathlib import Path

import pytest

from modelagent import manifest
from modelagent.core.state import State, Watch
from modelagent.errors import ModelError, SourceError, TrustError
from modelagent.sources.directory import DirectorySource
from modelagent.steps import channel
from modelagent.steps.acquire import Acquirer
from modelagent.steps.journal import Journal
from repository_simulator import RepositorySimulator

HALF = "\ud800"
FIRST_MOMENT = "0001-01-01T00:00:00+14:00"  # before the first year in UTC


def document(**changes: object) -> bytes:
    told = {
        "schema": 1,
        "model": "digits",
        "channel": "stable",
        "issued": "2026-11-01T12:00:00Z",
        "release": None,
        "waves": [],
        "withdrawn": [],
    }
    return json.dumps(told | changes).encode()


@pytest.mark.parametrize(
    "change",
    [
        {"withdrawn": [{"version": "1.0.0", "digest": "a" * 64, "reason": f"bad {HALF}"}]},
        {"schema": HALF},
        {"waves": [{"start": "2026-11-01T12:00:00Z", "share": HALF}]},
        {"model": HALF},
    ],
)
def test_a_channel_with_half_a_character_is_refused_in_words_that_can_be_kept(
    change: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(TrustError) as caught:
        channel.parse(document(**change))
    journal = Journal(tmp_path, "digits", State)
    journal.load()
    journal.write(State("digits", watch=Watch(error=caught.value.message)), ())


def test_a_moment_that_utc_does_not_have_is_a_number_like_any_other() -> None:
    assert channel.parse(document(issued=FIRST_MOMENT)).issued < 0


def test_the_same_in_a_manifest(simulator: RepositorySimulator, tmp_path: Path) -> None:
    simulator.release("1.0.0")
    stored = next(tmp_path.rglob("*manifest.json"))
    told = json.loads(stored.read_bytes())
    assert manifest.parse(json.dumps(told | {"issued": FIRST_MOMENT}).encode()).issued < 0
    with pytest.raises(ModelError) as caught:
        manifest.parse(json.dumps(told | {HALF: 1}).encode())
    assert r"\ud800" in caught.value.message
    assert caught.value.message.encode()


def test_a_stick_whose_name_is_no_text_is_named_in_words_that_can_be_kept(
    acquirer: Acquirer, simulator: RepositorySimulator, tmp_path: Path
) -> None:
    simulator.release("1.0.0")
    acquirer.check("digits", "stable")
    odd = DirectorySource(tmp_path / b"pr\xfcfstand".decode("utf-8", "surrogateescape"))
    acquirer.attach(odd)
    notes = acquirer.check("digits", "stable").notes
    assert any("its files are taken" in note for note in notes)
    assert all(note.encode() for note in notes)
    with pytest.raises(SourceError) as caught:
        odd.fetch("files/a", limit=1)
    assert caught.value.message.encode()
