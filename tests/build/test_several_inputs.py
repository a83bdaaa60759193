"""Networks of several inputs, from the plan to a release that a device takes.

Their names are in another order than the alphabet's and two of them have the same shape, so that samples which went
to the wrong one would be noticed by nothing but the metric.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from modelagent import manifest
from modelagent.build import convert, data, graph, pipeline, plans, source, toolbox
from modelagent.build.data import Samples
from modelagent.cli import main
from modelagent.core.verdicts import Outcome
from modelagent.errors import UsageError
from modelagent.publish.keys import KeyRing
from modelagent.publish.repository import Repository
from modelagent.sources.directory import DirectorySource
from modelagent.steps.acquire import Acquirer
from modelagent.steps.canary import CanaryRunner
from modelagent.steps.slots import SlotStore

pytestmark = [pytest.mark.tensorflow, pytest.mark.filterwarnings("ignore")]

NAMES = ("zeta", "alpha", "mid")
RANDOM = np.random.RandomState(3)
COUNT = 900
LEFT = RANDOM.randn(COUNT, 6).astype(np.float32)
RIGHT = RANDOM.randn(COUNT, 6).astype(np.float32)
MODE = RANDOM.randint(0, 3, (COUNT, 1)).astype(np.float32)
TRUTH = (2 * LEFT[:, 0] - RIGHT[:, 1] + 0.5 * MODE[:, 0] > 0.3).astype(np.int64) + (LEFT[:, 1] > 0.5)


def samples() -> dict[str, Any]:
    return {"input_0": LEFT, "input_1": RIGHT, "input_2": MODE, "labels": TRUTH}


def layered(*hidden: int, mapped: bool = False) -> Any:
    keras = toolbox.keras3()
    layers = keras.layers
    given = [keras.Input((size,), name=name) for name, size in zip(NAMES, (6, 6, 1), strict=True)]
    made = layers.Concatenate()(given)
    for size in hidden:
        made = layers.Dense(size, activation="relu")(made)
    made = layers.Dense(3, activation="softmax")(made)
    return keras.Model(dict(zip(NAMES, given, strict=True)) if mapped else given, made)


def network(train: Samples, seed: int, *, mapped: bool = False) -> Any:
    del seed
    made = layered(64, 48, mapped=mapped)
    made.compile(toolbox.keras3().optimizers.Adam(5e-3), "sparse_categorical_crossentropy")
    made.fit(source.feed(made, train.inputs), train.labels, epochs=15, batch_size=32, verbose=0)
    return made


def student(train: Samples, seed: int) -> Any:
    del train, seed
    return layered(16)


def test_from_a_network_to_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> dict[str, Any]:
        result = CliRunner().invoke(main, ["repo", *words, "--json"])
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    lines = [
        f'[model]\nname = "pair"\nsource = "{__name__}:network"\nseed = 1\n[data]\nsource = "{__name__}:samples"\n',
        "shares = { train = 0.5, validation = 0.15, canary = 0.35 }\n",
        '[variants]\nint8-io = "int8:io=int8"\nqat = "qat:epochs=1"\npruned-int8 = "prune:epochs=2+int8"\n',
        f'small = "distil:student={__name__}:student,epochs=15,rate=0.005"\n',
        "[choose]\nmax_loss = 0.1\n[evaluate]\nrounds = 3\n",
    ]
    Path("build.toml").write_text("".join(lines))
    run("init", "--model", "pair")
    told = run("release", "build.toml", "--version", "1", "--channel", "stable")
    report = json.loads(Path("build/release/report.json").read_text())
    assert {row["name"]: row["failure"] for row in report["variants"] if row["failure"]} == {}
    for row in report["variants"]:
        # Right in a third of all cases by chance; inputs that change places leave about a half.
        assert row["value"] > 0.7, row["name"]
    assert told["variant"] != "float32"

    repository = Repository(tmp_path / "repository", KeyRing(tmp_path / "keys"))
    release = manifest.parse(repository.manifest_bytes("pair", "1"))
    assert [(found.name, found.shape) for found in release.inputs] == [
        ("zeta", (1, 6)),
        ("alpha", (1, 6)),
        ("mid", (1, 1)),
    ]
    state = tmp_path / "device"
    state.mkdir()
    root = (tmp_path / "keys" / "root.json").read_bytes()
    acquirer = Acquirer(state, DirectorySource(tmp_path / "repository"), root, lambda: _now(repository))
    offer = acquirer.check("pair", "stable").offer
    assert offer is not None
    acquirer.acquire(offer)
    store = SlotStore(state, "pair")
    store.stage(offer.digest, state / "incoming", None)
    verdict = CanaryRunner(clock=lambda: 0.0).run(store.path(offer.digest), None, 1, release, lambda: False)
    assert verdict.outcome is Outcome.PASS, verdict


def _now(repository: Repository) -> float:
    return repository.ledger.now().timestamp()


def test_every_kind_of_source_keeps_or_takes_an_order(tmp_path: Path) -> None:
    parts = data.split(data.read(f"{__name__}:samples"), seed=1)
    made = network(parts.train, 1)
    made.export(tmp_path / "saved", verbose=False)
    saved = source.load(str(tmp_path / "saved"), parts.train, seed=1)
    some = convert.representative(parts.train, 50)

    def order(given: source.Source, inputs: tuple[str, ...], model: Any = None, kind: str = "float32") -> list[str]:
        content = convert.convert(given, model, kind, some, names=convert.Names(inputs, ("p",)))
        (tmp_path / f"{kind}.tflite").write_bytes(content)
        return [name for name, _ in graph.shapes(content)]

    keras = source.Source("made", "", network=made)
    assert order(keras, (), made) == list(NAMES)
    assert order(keras, ("left", "right", "mode"), made) == ["left", "right", "mode"]
    assert order(saved, ()) == sorted(NAMES)  # a signature has no order of its own
    assert order(saved, NAMES, kind="int8") == list(NAMES)  # ... but the plan may give one
    assert order(saved, NAMES) == list(NAMES)
    flat = source.load(str(tmp_path / "float32.tflite"), parts.train, seed=1)
    assert order(flat, ()) == list(NAMES)
    assert order(flat, ("mid", "zeta", "alpha")) == ["mid", "zeta", "alpha"]

    # Built with a mapping, Keras sorts the names; samples then come in that order.
    mapped = network(Samples((RIGHT, MODE, LEFT), TRUTH, ()), 1, mapped=True)
    assert order(source.Source("mapped", "", network=mapped), (), mapped) == sorted(NAMES)


def test_samples_in_another_order_or_shape_are_refused_at_once(tmp_path: Path) -> None:
    model = {"name": "pair", "source": f"{__name__}:untrained", "seed": 1}
    plan = plans.make({"model": model, "data": {"source": f"{__name__}:turned"}, "variants": {}})
    with pytest.raises(UsageError) as caught:
        pipeline.build(plan, tmp_path / "out")
    assert caught.value.code == "data"
    assert "zeta [1, 6], alpha [1, 6], mid [1, 1]" in caught.value.message
    assert "input_0 [1, 1], input_1 [1, 6], input_2 [1, 6]" in caught.value.message


def untrained(train: Samples, seed: int) -> Any:
    del train, seed
    return layered(8)


def turned() -> dict[str, Any]:
    return {"input_0": MODE, "input_1": RIGHT, "input_2": LEFT, "labels": TRUTH}
