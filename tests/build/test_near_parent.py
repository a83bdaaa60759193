"""Small updates: pairing two files of one graph, rounding their changes, the search, and the way to a device."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import delta_models
from modelagent import manifest
from modelagent.build import graph, near_parent, pairing, pipeline, plans
from modelagent.build.evaluate import FailedError, Measured
from modelagent.build.near_parent import FROZEN, LADDER, Near, Rules, bounds, make, rounded
from modelagent.build.pairing import Array, Family, Pair
from modelagent.cli import main
from modelagent.errors import UsageError
from modelagent.judges.metrics import Scored
from modelagent.publish import deltas
from modelagent.publish.keys import KeyRing
from modelagent.publish.repository import Repository
from modelagent.sources.directory import DirectorySource
from modelagent.steps.acquire import Acquirer
from modelagent.steps.delta import Rebuilder
from modelagent.steps.slots import SlotStore

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
OLD, NEW, INT8 = (DIGITS / "models" / f"digits-{name}.tflite" for name in ("1.2.0", "1.1.0", "1.1.0-int8"))
RULES = Rules("accuracy", margin=0.05)


def files(dtype: Any = np.float32, *, step: float = 0.1, scale: float = 1.0) -> tuple[bytes, bytes]:
    """A parent and what training on made of it, in whole numbers by scales that grew by `scale`."""
    weights = delta_models.network(dtype=dtype, width=16)
    after = delta_models.retrained(weights, step=step)
    if not np.issubdtype(dtype, np.integer):
        return delta_models.build(weights), delta_models.build(after)
    kinds = [name for name, values in weights.items() if values.dtype == dtype]
    found = []
    for values, factor in ((weights, 1.0), (after, scale)):
        scales = {name: (np.full(values[name].shape[0], 0.01 * factor), 0) for name in kinds}
        found.append(delta_models.build(values, scales=scales))
    return found[0], found[1]


# --- pairing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.int16])
def test_the_parents_file_takes_other_numbers_and_nothing_else(dtype: Any) -> None:
    parent, network = files(dtype)
    family = Family(parent, network)
    assert len(family.pairs) == 5
    assert family.write([pair.old for pair in family.pairs]) == parent
    assert family.write([pair.new for pair in family.pairs]) == network
    assert family.write([pair.old for pair in family.pairs]) == parent  # nothing of the last one stays


def test_numbers_go_to_the_parents_scale() -> None:
    parent, network = files(np.int8, scale=1.25)
    for pair in Family(parent, network).pairs:
        if pair.old.dtype == np.int8:
            theirs = next(item for item in Family(network, network).pairs if item.name == pair.name).old
            wanted = theirs.astype(float) * 1.25
            held = np.clip(wanted, -127, 127)
            assert np.abs(pair.new - held).max() <= 0.5 + 1e-5
            assert pair.clipped == np.count_nonzero(np.rint(wanted) != np.rint(held))


def test_tensors_that_shared_their_numbers_are_told_apart() -> None:
    same = np.ones((4, 8), np.float32)
    parent = graph.polish(delta_models.build({"a": same, "b": same}))
    network = delta_models.build({"a": same * 2, "b": same * 3})
    family = Family(parent, network)
    made = family.write([pair.new for pair in family.pairs])
    assert [pair.old[0, 0] for pair in Family(made, network).pairs] == [2.0, 3.0]
    assert family.write([pair.old for pair in family.pairs]) == parent


def test_a_constant_that_shares_bytes_with_a_weight_stays_as_it_is() -> None:
    axis = np.zeros(1, np.int32)
    parent = graph.polish(delta_models.build({"bias": np.zeros(1, np.float32), "axis": axis}))
    network = delta_models.build({"bias": np.ones(1, np.float32), "axis": axis})
    family = Family(parent, network)
    made = graph.unpack(family.write([pair.new for pair in family.pairs]))
    held = [made.buffers[tensor.buffer].data.tobytes() for tensor in made.subgraphs[0].tensors]
    assert held == [np.ones(1, np.float32).tobytes(), axis.tobytes()]
    assert family.write([pair.old for pair in family.pairs]) == parent


@pytest.mark.parametrize(
    ("one", "other", "word"),
    [
        ({"a": np.ones((4, 4), np.float32)}, {"a": np.ones((4, 5), np.float32)}, "shape or type"),
        ({"a": np.ones((4, 4), np.float32)}, {"a": np.ones((4, 4), np.float16)}, "shape or type"),
        ({"a": np.ones(4, np.float32)}, {"a": np.ones(4, np.float32), "b": np.ones(4, np.float32)}, "2"),
        ({"axes": np.ones(4, np.int32)}, {"axes": np.zeros(4, np.int32)}, "axes, which is no weight"),
    ],
)
def test_files_that_do_not_pair_are_refused(one: Mapping[str, Array], other: Mapping[str, Array], word: str) -> None:
    with pytest.raises(UsageError, match=word) as caught:
        Family(delta_models.build(one), delta_models.build(other))
    assert caught.value.code == "no-pair"
    assert "leave the step out" in caught.value.message


def test_other_operators_and_other_quantisation_are_refused() -> None:
    parent, network = files(np.int8)
    bare = delta_models.network(dtype=np.int8, width=16)
    with pytest.raises(UsageError, match="quantised in another way"):
        Family(parent, delta_models.build(bare))
    for one, other in ((NEW, INT8), (NEW, DIGITS / "models" / "digits-1.5.0.tflite")):
        with pytest.raises(UsageError, match="do not pair"):
            Family(one.read_bytes(), other.read_bytes())
    with pytest.raises(UsageError, match="outputs differ"):
        Family(NEW.read_bytes(), graph.polish(OLD.read_bytes(), ["scan"], ["other"]))
    assert Family(network, parent).pairs


# --- rounding ---------------------------------------------------------------------------------------------------


def pair_of(old: Array, new: Array) -> Pair:
    return Pair("w", (0, 0), old, new, np.zeros((), old.dtype))


def half_steps(pair: Pair, step: float) -> Array:
    return np.broadcast_to(bounds(pair, step) / 2, pair.old.shape)


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    dtype = np.dtype(draw(st.sampled_from(["float32", "float16", "int8", "uint8", "int32"])))
    shape = draw(st.sampled_from([(7,), (3, 5), (1, 3, 3, 4), (4, 3, 3, 2)]))
    if dtype.kind == "f":
        numbers = st.floats(-8.0, 8.0, width=16)
        small = st.floats(-2.0, 2.0, width=16)
        old = draw(arrays.arrays(dtype, shape, elements=numbers))
        return pair_of(old, (old + draw(arrays.arrays(dtype, shape, elements=small))).astype(dtype))
    least, most = {"int8": (-128, 127), "uint8": (0, 255), "int32": (-(2**30), 2**30)}[dtype.name]
    numbers = st.integers(least, most)
    return pair_of(*(draw(arrays.arrays(dtype, shape, elements=numbers)) for _ in range(2)))


@given(pairs(), st.sampled_from(LADDER[1:-1]))
@settings(max_examples=300, deadline=None)
def test_no_number_is_farther_than_half_a_step(pair: Pair, step: float) -> None:
    found = rounded(pair, step)
    assert (found.dtype, found.shape) == (pair.old.dtype, pair.old.shape)
    away = np.abs(found.astype(np.float64) - pair.new.astype(np.float64))
    assert (away <= half_steps(pair, step) * (1 + 1e-9)).all()
    if pair.old.dtype.kind == "f":
        small = np.abs(pair.new.astype(np.float64) - pair.old.astype(np.float64)) <= half_steps(pair, step)
        assert np.array_equal(found[small], pair.old[small])
    else:
        steps = (found.astype(np.int64) - pair.old.astype(np.int64)) % int(bounds(pair, step))
        edge = (found == min(pair.old.min(), pair.new.min())) | (found == max(pair.old.max(), pair.new.max()))
        assert (edge | (steps == 0)).all()


@given(pairs())
@settings(max_examples=50, deadline=None)
def test_the_ends_of_the_ladder_are_the_two_files(pair: Pair) -> None:
    assert rounded(pair, LADDER[0]) is pair.new
    assert rounded(pair, LADDER[FROZEN]) is pair.old
    kept = rounded(pair, LADDER[FROZEN], zeros=True)
    assert (kept[pair.new == 0] == 0).all()
    assert np.array_equal(kept[pair.new != 0], pair.old[pair.new != 0])


def test_odd_numbers_stay_as_the_network_has_them() -> None:
    old, new = np.ones(4, np.float32), np.array([np.nan, np.inf, -np.inf, 2], np.float32)
    assert rounded(pair_of(old, new), 0.5) is new
    assert rounded(pair_of(new, old), 0.5) is old
    zeros = np.zeros((2, 3), np.float32)  # a spread of nothing: no step is known
    assert np.array_equal(rounded(pair_of(zeros, zeros + 1), 0.5), zeros + 1)


@pytest.mark.parametrize(("dtype", "most"), [(np.float32, 0.15), (np.float16, 0.3), (np.int8, 0.3)])
def test_coarser_steps_make_smaller_updates(dtype: Any, most: float) -> None:
    parent, network = files(dtype, step=0.2)
    family = Family(parent, network)
    sizes = [
        deltas.size(parent, family.write([rounded(pair, step) for pair in family.pairs])) for step in (0.0, 0.25, 1.0)
    ]
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[2] < most * sizes[0]


# --- the search -------------------------------------------------------------------------------------------------

SAMPLES = np.random.default_rng(3).normal(size=(300, 64)).astype(np.float32)


class Reader:
    """A linear network, read from the file: 64 numbers in, 10 classes out. Counts how often it was asked."""

    def __init__(self, file: bytes) -> None:
        self.asked: list[bytes] = []
        self.labels = self.answer(file).argmax(axis=1)

    def answer(self, file: bytes) -> Array:
        head, bias = (pair.old.astype(np.float64) for pair in Family(file, file).pairs)
        found: Array = SAMPLES @ head.T + bias
        return found

    def __call__(self, file: bytes) -> Measured:
        self.asked.append(file)
        numbers = self.answer(file).astype(np.float32)
        answers = [int(answer) for answer in numbers.argmax(axis=1)]
        scored = tuple(Scored(int(label), answer) for label, answer in zip(self.labels, answers, strict=True))
        return Measured(
            answers=tuple(answers),
            scored=scored,
            value=0.0,
            interval=(0.0, 1.0),
            p50_us=1.0,
            p95_us=1.0,
            load_ms=1.0,
            peak_mb=1.0,
            latency_ratio=None,
            latency_ratio_p95=None,
            probabilities=False,
            runtime="",
            inputs=(),
            outputs=(),
            numbers=numbers,
        )


def linear(step: float = 0.3) -> tuple[bytes, bytes]:
    random = np.random.default_rng(1)
    weights: dict[str, Array] = {
        "head": random.normal(size=(10, 64)).astype(np.float32),
        "bias": random.normal(size=10).astype(np.float32),
    }
    return delta_models.build(weights), delta_models.build(delta_models.retrained(weights, step=step))


def test_the_coarsest_step_that_holds_is_found_and_found_again() -> None:
    parent, network = linear()
    reader = Reader(network)
    found = make(parent, network, RULES, measure=reader)
    assert found.evaluations == len(reader.asked) <= RULES.evaluations + 3
    assert found.step > 0.0
    assert found.kept >= RULES.keep
    assert found.loss_bound > -RULES.margin
    assert deltas.size(parent, found.data) < 0.6 * deltas.size(parent, network)
    assert make(parent, network, RULES, measure=Reader(network)).data == found.data
    # What a narrower rule allows is no coarser.
    strict = make(parent, network, Rules("accuracy", margin=0.05, keep=0.95), measure=Reader(network))
    assert strict.step < found.step
    assert deltas.size(parent, strict.data) > deltas.size(parent, found.data)


def test_a_tensor_whose_change_does_not_matter_is_the_parents_bit_by_bit() -> None:
    head, idle = np.random.default_rng(1).normal(size=(2, 10, 64)).astype(np.float32)
    bias = np.zeros(10, np.float32)
    parent = delta_models.build({"head": head, "bias": bias, "idle": idle})
    network = delta_models.build({"head": head * 1.3, "bias": bias + 0.5, "idle": idle * 1.3})

    class First(Reader):
        """Looks at the first two tensors alone."""

        def answer(self, file: bytes) -> Array:
            one, two, _ = (pair.old.astype(np.float64) for pair in Family(file, file).pairs)
            found: Array = SAMPLES @ one.T + two
            return found

    found = make(parent, network, RULES, measure=First(network))
    assert found.frozen >= 1
    assert found.steps[2] == float("inf")
    assert np.array_equal(Family(parent, found.data).pairs[2].new, idle)


@pytest.mark.parametrize(
    ("rules", "word"),
    [
        (Rules("accuracy", margin=0.005), "300 validation samples cannot show a margin of 0.005"),
        (Rules("accuracy", margin=0.99, keep=0.0), "the parent itself is within the margin"),
    ],
)
def test_rules_that_cannot_hold_are_refused(rules: Rules, word: str) -> None:
    parent, network = linear()
    with pytest.raises(UsageError, match=word) as caught:
        make(parent, network, rules, measure=Reader(network))
    assert caught.value.code == "no-gain"


def test_nothing_to_round_is_refused() -> None:
    parent, network = linear()
    with pytest.raises(UsageError, match="every weight is the parent's already"):
        make(parent, parent, RULES, measure=Reader(parent))

    class Deaf(Reader):
        def answer(self, file: bytes) -> Array:
            return np.ones((len(SAMPLES), 10))

    with pytest.raises(UsageError, match="exactly as the parent does"):
        make(parent, network, RULES, measure=Deaf(network))


def test_a_network_that_the_parents_parameters_break_is_refused() -> None:
    parent, network = linear()

    class Failing(Reader):
        def __call__(self, file: bytes) -> Measured:
            if len(self.asked) >= 3:
                raise FailedError("near.tflite: an output was NaN", code="not-finite")
            return super().__call__(file)

    with pytest.raises(UsageError, match="the parent's quantisation parameters"):
        make(parent, network, RULES, measure=Failing(network))


def test_an_error_is_held_to_a_margin_in_its_own_unit() -> None:
    parent, network = linear()

    class Meter(Reader):
        """Its truth is what the network itself says, a little off."""

        def __call__(self, file: bytes) -> Measured:
            found = super().__call__(file)
            off = np.abs(self.answer(file) - self.answer(network) - 0.1).mean(axis=1)
            return replace(found, scored=tuple(Scored(None, None, (float(error),)) for error in off))

    wide, narrow = (
        make(parent, network, Rules("mae", margin, evaluations=7), measure=Meter(network)) for margin in (0.5, 0.02)
    )
    assert wide.step > narrow.step
    assert 0.0 < narrow.loss < 0.02
    assert narrow.loss_bound > -0.02


def test_few_evaluations_are_enough_for_a_result() -> None:
    parent, network = linear()
    reader = Reader(network)
    found = make(parent, network, Rules("accuracy", margin=0.05, evaluations=4), measure=reader)
    assert len(reader.asked) == 7
    assert found.kept >= RULES.keep


def test_what_saves_nothing_is_an_idle_step() -> None:
    found = Near(b"", 0.1, (0.1,), 0, 0.9, 0.0, 0.0, 3, 9)
    assert near_parent.remark(found, 1000, 960, 4000).idle
    said = near_parent.remark(found, 1320, 360, 4000)
    assert not said.idle
    assert "delta 33.0% -> 9.0% of the file (1320 -> 360 bytes)" in said.text
    assert "3 numbers are beyond the parent's scales" in said.text


# --- a whole build ----------------------------------------------------------------------------------------------


def plan(folder: Path, source: Path = NEW, parent: Path | None = OLD, **more: Any) -> plans.Plan:
    with np.load(DIGITS / "canary.npz") as archive:
        np.savez(folder / "data.npz", input_0=archive["input_0"], labels=archive["labels"])
    beside = {"max_latency_ratio": 20, "margin": 0.08, **({} if parent is None else {"file": str(parent)})}
    return plans.make(
        {
            "model": {"name": "digits", "source": str(source), "seed": 3},
            "data": {"source": str(folder / "data.npz"), "shares": {"train": 0.1, "validation": 0.5, "canary": 0.4}},
            "variants": {"near": "near-parent"},
            "evaluate": {"rounds": 3},
            "choose": {"max_loss": 0.03, "prefer": "update"},
            "parent": beside,
            **more,
        }
    )


@pytest.mark.long
@pytest.mark.process
def test_a_build_prints_what_the_step_saves_beside_the_plain_update(tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = pipeline.build(plan(tmp_path), out, delta_size=deltas.size)
    assert made.chosen is not None, made.variants
    near = made.chosen
    assert near.name == "near"
    assert near.near is not None
    assert near.delta is not None
    assert near.plain_delta is not None
    assert near.plain_delta == made.variants["float32"].delta
    assert near.delta < 0.4 * near.plain_delta
    assert near.delta == deltas.size(OLD.read_bytes(), (out / "variants" / "near.tflite").read_bytes())
    assert near.size == OLD.stat().st_size
    card = made.card["near_parent"]
    assert card["parent"] == hashlib.sha256(OLD.read_bytes()).hexdigest()
    assert card["step"] > 0
    assert (card["plain_delta"], card["delta"]) == (near.plain_delta, near.delta)
    row = json.loads((out / "report.json").read_text())["variants"][1]
    assert (row["plain_delta"], row["delta"]) == (near.plain_delta, near.delta)
    assert row["near_parent"]["change_kept"] >= 0.5
    page = (out / "report.html").read_text()
    assert f"{near.plain_delta} -&gt; {near.delta}" in page
    assert "near-parent: delta 80" in page
    again = pipeline.build(plan(tmp_path), out, delta_size=deltas.size)
    assert again.variants["near"].reproduced == "the same bytes as the build before"
    other = pipeline.build(plan(tmp_path, choose={"max_loss": 0.04}), out, delta_size=deltas.size)
    assert other.variants["near"].reproduced == ""  # of other rules, another file


@pytest.mark.process
def test_the_step_is_typed_and_its_saving_printed(tmp_path: Path) -> None:
    plan(tmp_path)
    words = ["build", str(NEW), "--data", str(tmp_path / "data.npz"), "--name", "digits", "--parent", str(OLD)]
    words += ["--variant", "near=near-parent:margin=0.06,evaluations=6", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code in {0, 3}, result.output
    assert "near: near-parent: delta 80" in result.stdout
    assert " -> " in next(line for line in result.stdout.splitlines() if line.startswith("near "))
    assert "near-parent:margin=0.0,keep=0.5,evaluations=24" in CliRunner().invoke(main, ["build", "--help"]).output


@pytest.mark.process
def test_without_a_parent_of_the_same_graph_the_variant_says_so_and_others_go_on(tmp_path: Path) -> None:
    made = pipeline.build(plan(tmp_path, parent=None), tmp_path / "out", delta_size=deltas.size)
    assert "no published parent" in made.variants["near"].failure
    assert made.chosen is made.variants["float32"]
    made = pipeline.build(plan(tmp_path, parent=INT8), tmp_path / "out", delta_size=deltas.size)
    assert "do not pair" in made.variants["near"].failure
    made = pipeline.build(plan(tmp_path, parent=NEW), tmp_path / "out", delta_size=deltas.size)
    assert "every weight is the parent's already" in made.variants["near"].failure


@pytest.mark.process
def test_whole_numbers_keep_the_parents_parameters(tmp_path: Path) -> None:
    """An int8 parent whose weights are a little off, so that its child gets them right again."""
    family = Family(INT8.read_bytes(), INT8.read_bytes())
    random = np.random.default_rng(5)
    moved = [
        np.clip(pair.old + np.rint(random.normal(0, 12, pair.old.shape)), -127, 127).astype(pair.old.dtype)
        if pair.old.dtype == np.int8
        else pair.old
        for pair in family.pairs
    ]
    parent = tmp_path / "parent.tflite"
    parent.write_bytes(family.write(moved))
    made = pipeline.build(plan(tmp_path, INT8, parent), tmp_path / "out", delta_size=deltas.size)
    near = made.variants["near"]
    assert near.failure == ""
    assert near.file is not None
    assert near.delta is not None
    assert near.plain_delta is not None
    assert near.delta < 0.7 * near.plain_delta
    biases = [pair for pair in Family(parent.read_bytes(), near.file.read_bytes()).pairs if pair.old.dtype == np.int32]
    assert biases
    assert all(np.array_equal(pair.old, pair.new) for pair in biases)  # nothing had changed there


# --- to a device ------------------------------------------------------------------------------------------------


class Watched(DirectorySource):
    """The repository's directory, and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: list[str] = []

    def fetch(self, name: str, *arguments: Any, **more: Any) -> Any:
        self.asked.append(name)
        return super().fetch(name, *arguments, **more)


def run(*words: str | Path) -> dict[str, Any]:
    result = CliRunner().invoke(main, ["repo", *map(str, words), "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.process
def test_from_a_build_to_a_device_that_applies_the_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan(tmp_path)
    run("init", "--model", "digits")
    versions = (("1.0.0", OLD, "1.2.0"), ("1.1.0", NEW, "1.1.0"))
    for version, source, _ in versions:
        Path("plan.toml").write_text(
            f'[model]\nname = "digits"\nsource = "{source}"\n'
            f'[data]\nsource = "{tmp_path / "data.npz"}"\n'
            "shares = { train = 0.02, validation = 0.35, canary = 0.63 }\n"
            '[variants]\nnear = "near-parent"\n[evaluate]\nrounds = 3\n'
            '[choose]\nmax_loss = 0.04\nprefer = "update"\n'
            "[parent]\nmax_latency_ratio = 20\nmax_size_ratio = 1.01\nmargin = 0.08\n"
        )
        told = run("release", "plan.toml", "--version", version, "--channel", "stable")
        assert told["published"]
    assert told["variant"] == "near"
    repository = Repository(tmp_path / "repository", KeyRing(tmp_path / "keys"))
    first, second = (manifest.parse(repository.manifest_bytes("digits", version)) for version, _, _ in versions)
    assert second.card["near_parent"]["parent"] == first.model_file.sha256
    listed = {item.base: item for item in repository.deltas("digits", "1.1.0")}
    update = listed[first.model_file.sha256]
    assert update.length == second.card["near_parent"]["delta"] < 0.3 * second.model_file.length

    state = tmp_path / "device"
    state.mkdir()
    root = (tmp_path / "keys" / "root.json").read_bytes()
    watched = Watched(tmp_path / "repository")
    store = SlotStore(state, "digits")
    slot = state / "models/digits/slots" / first.digest
    slot.mkdir(parents=True)
    (slot / "manifest.json").write_bytes(repository.manifest_bytes("digits", "1.0.0"))
    for ref in first.files:
        (slot / ref.name).write_bytes((tmp_path / "repository" / "files" / ref.sha256).read_bytes())
    acquirer = Acquirer(state, watched, root, lambda: repository.ledger.now().timestamp(), delta=Rebuilder(state))
    offer = acquirer.check("digits", "stable").offer
    assert offer is not None
    acquirer.acquire(offer)
    assert f"files/{update.sha256}" in watched.asked
    assert f"files/{second.model_file.sha256}" not in watched.asked
    store.stage(offer.digest, state / "incoming", None)
    staged = (store.path(offer.digest) / second.model_file.name).read_bytes()
    assert hashlib.sha256(staged).hexdigest() == second.model_file.sha256
    assert [pair.name for pair in pairing.Family(OLD.read_bytes(), staged).pairs]
