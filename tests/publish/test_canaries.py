"""The sample size of the canary set, held against the paired test that it is for; and its file."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from modelagent.errors import UsageError
from modelagent.manifest import dump, parse
from modelagent.publish import canaries
from repository_simulator import make_canary, make_manifest


def test_the_rule_gives_the_published_numbers() -> None:
    assert canaries.needed(0.05) == 248
    assert canaries.needed(0.02) == 1546
    assert canaries.supported(100) == pytest.approx(0.0786, abs=1e-4)
    assert canaries.supported(0) == 1.0


@given(st.floats(0.005, 0.5), st.floats(0.6, 0.999), st.floats(0.01, 0.5))
def test_needed_and_supported_are_each_others_reverse(margin: float, confidence: float, discordance: float) -> None:
    samples = canaries.needed(margin, confidence=confidence, discordance=discordance)
    assert canaries.supported(samples, confidence=confidence, discordance=discordance) <= margin * (1 + 1e-9)
    if samples > 1:
        fewer = canaries.supported(samples - 1, confidence=confidence, discordance=discordance)
        assert fewer == 1.0 or fewer >= margin * (1 - 1e-9)


def test_equally_good_models_pass_about_as_often_as_promised() -> None:
    """Simulated: at N = needed(0.05) the lower bound of the paired difference clears the margin 80 % of times."""
    random = np.random.default_rng(1)
    samples, margin, discordance = canaries.needed(0.05), 0.05, canaries.DISCORDANCE
    trials = 4000
    counts = random.multinomial(samples, [discordance / 2, discordance / 2, 1 - discordance], trials)
    better, worse = counts[:, 0], counts[:, 1]
    mean = (better - worse) / samples
    error = np.sqrt(better + worse - (better - worse) ** 2 / samples) / samples
    passed = mean - stats.norm.ppf(0.95) * error > -margin
    assert passed.mean() == pytest.approx(canaries.POWER, abs=0.04)


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


GOOD = np.zeros((300, 4), np.float32)
LABELS = np.zeros(300, np.int64)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (npz(input_0=GOOD), "labels"),
        (npz(input_0=GOOD, labels=LABELS, extra=LABELS), "extra"),
        (npz(input_0=GOOD[:299], labels=LABELS), "leading axis"),
        (npz(input_0=GOOD[:0], labels=LABELS[:0]), "leading axis"),
        (npz(input_0=GOOD[:299], labels=LABELS[:299]), "300"),
        (npz(input_0=GOOD.astype(np.float64), labels=LABELS), "float64"),
        (npz(input_0=GOOD[:, :3], labels=LABELS), "shape"),
        (npz(input_0=GOOD, labels=LABELS.astype(np.int32)), "int64"),
        (npz(input_0=GOOD, labels=LABELS.reshape(300, 1)), "one a sample"),
        (npz(input_0=GOOD, labels=np.array([object()] * 300)), "objects"),
        (b"", "numpy.savez"),
        (b"PK\x03\x04 cut", "numpy.savez"),
        (make_canary()[:2000], "numpy.savez"),
    ],
)
def test_a_canary_file_that_does_not_keep_the_promise_is_refused(data: bytes, word: str) -> None:
    with pytest.raises(UsageError, match=word) as caught:
        canaries.check_file(parse(dump(make_manifest())), data)
    assert caught.value.code == "canary-file"


def test_a_bomb_is_refused_by_its_directory_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canaries, "MAX_UNPACKED", 2**20)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("input_0.npy", b"\0" * (2**20 + 1))
    assert len(buffer.getvalue()) < 5000
    with pytest.raises(UsageError, match="bytes unpacked"):
        canaries.check_file(parse(dump(make_manifest())), buffer.getvalue())


def test_samples_are_counted_from_the_headers(tmp_path: Path) -> None:
    (tmp_path / "c.npz").write_bytes(make_canary(17))
    assert canaries.count_samples(tmp_path / "c.npz") == 17
    assert canaries.count_samples(npz(input_0=GOOD)) == 300
    assert canaries.count_samples(npz(other=GOOD)) == 0


def test_a_warm_up_file_has_inputs_alone() -> None:
    canaries.check_file(parse(dump(make_manifest())), npz(input_0=GOOD[:3]), what="warmup")
    with pytest.raises(UsageError, match="warmup"):
        canaries.check_file(parse(dump(make_manifest())), npz(input_0=GOOD, labels=LABELS), what="warmup")
