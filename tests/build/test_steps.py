"""Each step and the chains on a small network, with the real tools: sizes fall as stated, accuracy stays in a bound.

One build of every kind of variant is made once and looked at from many sides.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import small_networks
from modelagent import manifest
from modelagent.build import convert, data, graph, pipeline, plans, source, toolbox, train
from modelagent.build.pipeline import Outcome
from modelagent.cli import main
from modelagent.core.verdicts import Outcome as Verdict
from modelagent.errors import UsageError
from modelagent.publish.keys import KeyRing
from modelagent.publish.repository import Repository
from modelagent.sources.directory import DirectorySource
from modelagent.steps.acquire import Acquirer
from modelagent.steps.canary import CanaryRunner
from modelagent.steps.slots import SlotStore

# Tensorflow and its relatives warn of each other's deprecations at every turn.
pytestmark = [pytest.mark.tensorflow, pytest.mark.filterwarnings("ignore")]
ROOT = Path(__file__).parents[2]


VARIANTS = {
    "float16": "float16",
    "dynamic": "dynamic",
    "int8": "int8",
    "int8-io": "int8:io=int8",
    "qat": "qat:epochs=1",
    "pruned": "prune:sparsity=0.5,epochs=3",
    "pruned-int8": "prune:sparsity=0.5,epochs=3+int8",
    "pruned-qat": "prune:sparsity=0.5,epochs=3+qat:epochs=1",
    "at-once": "prune:sparsity=0.3,epochs=0",
    "distilled": "distil:student=small_networks:student,epochs=20,rate=0.005",
    "distilled-int8": "distil:student=small_networks:student,epochs=20,rate=0.005+int8",
    "same-student": "distil:student=small_networks:network,epochs=1",
}


def plan(**more: Any) -> plans.Plan:
    document: dict[str, Any] = {
        "model": {
            "name": "digits",
            "source": "small_networks:network",
            "seed": 5,
            "inputs": ["scan"],
            "outputs": ["probabilities"],
        },
        "data": {"source": "small_networks:samples", "shares": {"train": 0.5, "validation": 0.2, "canary": 0.3}},
        "variants": VARIANTS,
        "choose": {"max_loss": 0.03},
        "evaluate": {"rounds": 5},
    }
    document.update(more)
    return plans.make(document)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return pipeline.build(plan(), tmp_path_factory.mktemp("built"))


def test_every_variant_can_be_built_and_measured(built: Outcome) -> None:
    assert {name: item.failure for name, item in built.variants.items() if item.failure} == {}
    assert built.variants["float32"].measured is not None
    assert built.variants["float32"].measured.value > 0.93


@pytest.mark.parametrize(
    ("name", "least_smaller", "loss"),
    [
        ("float16", 0.45, 0.005),
        ("dynamic", 0.65, 0.02),
        ("int8", 0.65, 0.02),
        ("int8-io", 0.65, 0.02),
        ("qat", 0.65, 0.05),
        ("pruned-int8", 0.65, 0.03),
        ("distilled", 0.7, 0.15),
        ("distilled-int8", 0.9, 0.15),
    ],
)
def test_size_falls_as_stated_and_accuracy_stays_in_a_bound(
    built: Outcome, name: str, least_smaller: float, loss: float
) -> None:
    found = built.variants[name].figures
    assert found is not None
    assert 1 - found.size_ratio >= least_smaller
    assert found.loss <= loss
    assert built.variants[name].refusals == [] or found.loss > 0.03


def test_pruned_weights_are_zero_and_stay_zero_through_later_steps(built: Outcome) -> None:
    base = built.variants["float32"]
    for name, share in (("pruned", 0.5), ("pruned-int8", 0.5), ("pruned-qat", 0.5), ("at-once", 0.3)):
        item = built.variants[name]
        assert item.inside is not None
        assert item.inside.zeros >= share - 0.01, name
        assert item.remarks == [], name
    # Zeros are no smaller as they lie on the disk, only on the way.
    assert built.variants["pruned"].size == base.size
    assert built.variants["pruned"].compressed < 0.7 * base.compressed
    pruned = built.variants["pruned"].figures
    assert pruned is not None
    assert pruned.loss <= 0.02


def test_a_student_that_is_no_smaller_is_said(built: Outcome) -> None:
    assert [remark.text for remark in built.variants["distilled"].remarks] == []
    (remark,) = built.variants["same-student"].remarks
    assert "nothing gets smaller" in remark.text


def test_files_keep_the_contract_that_was_asked_for(built: Outcome) -> None:
    for name, item in built.variants.items():
        assert item.measured is not None
        (given,), (made,) = item.measured.inputs, item.measured.outputs
        assert (given["name"], made["name"]) == ("scan", "probabilities")
        assert (given["shape"], made["shape"]) == ([1, 8, 8, 1], [1, 10])
        assert given["dtype"] == ("int8" if name == "int8-io" else "float32")
        assert item.inside is not None
        assert item.inside.signatures == ("serving_default",)
        assert item.inside.custom == ()


def test_the_choice_follows_the_rule(built: Outcome) -> None:
    assert built.chosen is not None
    assert built.canary is not None
    fitting = [item for item in built.variants.values() if item.figures is not None and not item.refusals]
    assert built.chosen.compressed == min(item.compressed for item in fitting)
    card = built.card
    assert card["versions"]["tensorflow"]
    assert card["data"]["canary"] == built.parts.canary.digest
    assert card["seed"] == 5


def test_the_same_input_and_seed_give_the_same_bytes(built: Outcome, tmp_path: Path) -> None:
    names = ("float16", "int8", "pruned-int8", "qat", "distilled")
    chained = {name: VARIANTS[name] for name in names}
    out = Path(str(built.report)).parent
    script = (
        f"from modelagent.build import pipeline; import test_steps; from pathlib import Path\n"
        f"pipeline.build(test_steps.plan(variants={chained!r}), Path({str(tmp_path)!r}))"
    )
    path = f"{ROOT / 'src'}:{ROOT / 'tests'}:{Path(__file__).parent}"
    subprocess.run([sys.executable, "-c", script], check=True, env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin"})
    for name in ("float32", *names):
        here, there = out / "variants" / f"{name}.tflite", tmp_path / "variants" / f"{name}.tflite"
        assert graph.differences(here.read_bytes(), there.read_bytes()) == [], name
    again = pipeline.build(plan(variants=chained), tmp_path)
    assert {item.reproduced for item in again.variants.values()} == {"the same bytes as the build before"}


def test_a_quantiser_that_silently_does_nothing_is_caught(tmp_path: Path) -> None:
    made = pipeline.build(
        plan(model={"name": "t", "source": "small_networks:tiny"}, variants={"dynamic": "dynamic"}, choose={}), tmp_path
    )
    item = made.variants["dynamic"]
    assert item.inside is not None
    assert item.inside.share("int8") == 0.0
    assert any("dynamic did nothing" in reason for reason in item.refusals)


# --- other sources ----------------------------------------------------------------------------------------------


def test_keras_files_saved_models_and_tflite_files(tmp_path: Path) -> None:
    parts = data.split(small_networks.samples(), seed=1)
    net = small_networks.network(parts.train, 1, epochs=4)
    wanted = net.predict(parts.canary.inputs[0][:50], verbose=0).argmax(axis=1)
    net.save(tmp_path / "net.keras")
    net.save(tmp_path / "net.h5")
    net.export(tmp_path / "saved", verbose=False)
    loaded = {name: source.load(str(tmp_path / name), parts.train, seed=1) for name in ("net.keras", "net.h5", "saved")}
    assert loaded["saved"].saved is not None
    names = convert.Names(("scan",), ("probabilities",))
    some = convert.representative(parts.train, 100)
    made = {}
    for name, found in loaded.items():
        made[name] = convert.convert(found, found.network, "float32", some, names=names)
        quantised = convert.convert(found, found.network, "int8", some, names=names)
        assert graph.inspect(quantised).share("int8") > 0.9, name
    (tmp_path / "net.tflite").write_bytes(made["net.keras"])
    flat = source.load(str(tmp_path / "net.tflite"), parts.train, seed=1)
    for kind, types in (("dynamic", ("int8",)), ("float16", ("float16",)), ("int8", ("int8",))):
        quantised = convert.convert(flat, None, kind, some, names=names)
        assert graph.inspect(quantised).share(*types) > 0.9, kind
        assert graph.order(quantised) == (["scan"], ["probabilities"])
        made[kind] = quantised
    made["int8-io"] = convert.convert(flat, None, "int8", some, io="int8", names=names)
    for name, content in made.items():
        assert (answers(content, parts.canary.inputs[0][:50]) == wanted).mean() > 0.9, name


def answers(content: bytes, scans: Any) -> Any:
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415 - the runtime is in this process only here

    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    (given,), (found,) = interpreter.get_input_details(), interpreter.get_output_details()
    read = []
    for scan in scans:
        frame = scan[None]
        if given["dtype"] == np.int8:
            scale, zero = given["quantization"]
            frame = np.clip(np.round(frame / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(given["index"], frame)
        interpreter.invoke()
        read.append(int(interpreter.get_tensor(found["index"])[0].argmax()))
    return np.array(read)


def test_what_tools_cannot_do_is_said(tmp_path: Path) -> None:
    keras = toolbox.keras3()
    parts = data.split(small_networks.samples(), seed=1)
    options: dict[str, Any] = {"epochs": 1, "rate": 1e-3, "batch": 32, "seed": 1}
    odd = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.RMSNormalization()])
    with pytest.raises(UsageError) as caught:
        train.qat(odd, parts.train, **options)
    assert caught.value.code == "cannot-qat"
    assert "RMSNormalization" in caught.value.message
    with pytest.raises(UsageError) as caught:
        train.prune(odd, parts.train, sparsity=0.5, start=0.0, every=10, **options)
    assert caught.value.code == "cannot-prune"
    eleven = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(11)])
    with pytest.raises(UsageError, match="same classes"):
        train.distil(
            small_networks.network(parts.train, 1, epochs=0), eleven, parts.train, temperature=4.0, alpha=0.1, **options
        )
    open_shape = keras.Sequential([keras.Input((None, 8, 1)), keras.layers.Conv2D(4, 3)])
    given = source.Source("open", "", network=open_shape)
    with pytest.raises(UsageError, match=r"model\.shapes"):
        convert.convert(given, open_shape, "float32", parts.train)
    fixed = convert.convert(given, open_shape, "float32", parts.train, shapes=[[1, 8, 8, 1]])
    assert graph.inspect(fixed).operators["CONV_2D"] == 1
    (tmp_path / "x.keras").write_bytes(b"no archive")
    for name in ("x.keras", "missing.h5", str(tmp_path)):
        with pytest.raises(UsageError) as caught:
            source.load(str(tmp_path / name), parts.train, seed=1)
        assert caught.value.code == "source"


def test_an_operator_that_devices_lack_is_refused(tmp_path: Path) -> None:
    tf = toolbox.tensorflow()
    parts = data.split(small_networks.samples(), seed=1)

    def serve(scan: Any) -> Any:
        return {"out": tf.raw_ops.Betainc(a=scan, b=scan, x=scan)}

    module = tf.Module()
    module.serve = tf.function(serve, input_signature=[tf.TensorSpec([1, 8, 8, 1], tf.float32, name="scan")])
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures={"serving_default": module.serve})
    found = source.load(str(tmp_path / "saved"), parts.train, seed=1)
    with pytest.raises(UsageError) as caught:
        convert.convert(found, None, "float32", parts.train)
    assert caught.value.code == "cannot-convert"


# --- to a device ------------------------------------------------------------------------------------------------


def run(*words: str | Path, code: int = 0) -> Any:
    result = CliRunner().invoke(main, ["repo", *map(str, words), "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def test_from_a_network_to_a_device_in_one_command(
    built: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    toml = [
        '[model]\nname = "digits"\nseed = 5\ninputs = ["scan"]\noutputs = ["probabilities"]\n',
        'source = "small_networks:network"\n[data]\nsource = "small_networks:samples"\n',
        'shares = { train = 0.5, validation = 0.2, canary = 0.3 }\n[variants]\nint8 = "int8:io=int8"\n',
        '[choose]\nmax_loss = 0.03\n[card]\nintended_use = "a test"\n',
    ]
    Path("build.toml").write_text("".join(toml))
    run("init", "--model", "digits")
    release = ("release", "build.toml", "--version", "1.0.0", "--channel", "stable")
    assert run(*release, "--dry-run")["published"] is False
    assert run("status")["models"]["digits"] == []
    told = run(*release)
    assert told["published"]
    assert (told["variant"], told["canary_samples"]) == ("int8", 248)  # what a margin of 0.05 asks for
    assert run("verify")["good"]
    assert run(*release, code=2)["code"] == "duplicate-version"
    # Against this parent the float network is bigger: refused at the desk.
    bigger = ("release", "build.toml", "--version", "1.1.0", "--channel", "stable", "--variant", "float32=")
    refused = run(*bigger, code=3)
    assert "bigger than the parent" in str(refused["reasons"])
    small = ("release", "build.toml", "--version", "1.1.0", "--margin", "0.01")
    assert run(*small, code=2)["code"] == "small-canary"

    repository = Repository(tmp_path / "repository", KeyRing(tmp_path / "keys"))
    found = manifest.parse(repository.manifest_bytes("digits", "1.0.0"))
    assert found.card["intended_use"] == "a test"
    assert found.card["data"]["train"] == built.parts.train.digest
    assert found.labels == tuple("0123456789")
    slot = install(repository, found, tmp_path / "device")
    assert hashlib.sha256((slot / "model.tflite").read_bytes()).hexdigest() == found.model_file.sha256
    verdict = CanaryRunner(clock=lambda: 0.0).run(slot, None, 1, found, lambda: False)
    assert verdict.outcome is Verdict.PASS, verdict


def install(repository: Repository, release: manifest.Manifest, state: Path) -> Path:
    """As a device does it: check, acquire, stage."""
    state.mkdir()
    root = (repository.directory / "metadata" / "1.root.json").read_bytes()
    acquirer = Acquirer(state, DirectorySource(repository.directory), root, lambda: repository.ledger.now().timestamp())
    offer = acquirer.check("digits", "stable").offer
    assert offer is not None
    assert offer.digest == release.digest
    acquirer.acquire(offer)
    slots = SlotStore(state, "digits")
    slots.stage(release.digest, state / "incoming", None)
    slot: Path = slots.path(release.digest)
    return slot
