"""Models of every shape through a real worker: open sizes, several tensors, no signature, state between frames."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from line_rig import Rig
from modelagent.inference.exchange import OK, Reply
from modelagent.inference.links import Slot, open_slot
from modelagent.inference.options import ModelOptions
from modelagent.inference.workers import SERVE, Load, Loader, Worker
from modelagent.manifest import dump, parse
from odd_models import elastic, positives, running_sum, two

pytestmark = pytest.mark.process


def tensor(name: str, shape: list[int | None], dtype: str = "float32") -> dict[str, Any]:
    return {"name": name, "shape": shape, "dtype": dtype, "quantisation": None}


def stage(root: Path, model: bytes, change: dict[str, Any]) -> Slot:
    """A slot as the store has it."""
    draft = root / "draft"
    tiny_models.write_slot(draft, model, size=(1, 1), change={"postprocess": {"kind": "raw"}})
    document = json.loads((draft / "manifest.json").read_bytes()) | change
    data = dump(document)
    digest = parse(data).digest
    (draft / "manifest.json").write_bytes(data)
    (root / "slots").mkdir()
    draft.rename(root / "slots" / digest)
    return open_slot(root, digest)


def loaded(root: Path, slot: Slot) -> Worker:
    options = ModelOptions("tiny", root, root, root, root / "health.json")
    loader = Loader()
    done: list[Load] = []
    loader.request(slot, options, purpose=SERVE, done=done.append)
    while not done:
        loader.step(time.monotonic())
        time.sleep(0.001)
    assert done[0].worker is not None, done[0].reason
    return done[0].worker


@pytest.fixture
def serve(tmp_path: Path) -> Any:
    workers: list[Worker] = []

    def start(model: bytes, **change: Any) -> Callable[..., list[Any]]:
        worker = loaded(tmp_path, stage(tmp_path, model, change))
        workers.append(worker)

        def run(*arrays: Any) -> list[Any]:
            worker.fill([np.asarray(array) for array in arrays])
            assert worker.exchange.ask(10.0) is Reply.ANSWERED
            assert worker.exchange.status == OK
            return [output.copy() for output in worker.exchange.answered.read_outputs()]

        return run

    yield start
    for worker in workers:
        worker.end()


def test_an_output_whose_size_depends_on_the_frame(serve: Any) -> None:
    run = serve(positives(), inputs=[tensor("x", [1, 6])], outputs=[tensor("y", [None, 2], "int64")])
    for frame in ([1, 0, 0, 1, 0, 1], [0] * 6, [1] * 6):
        [found] = run(np.array(frame, np.float32))
        assert found.tolist() == [[0, place] for place, value in enumerate(frame) if value]


def test_several_inputs_and_outputs(serve: Any) -> None:
    run = serve(
        two(),
        inputs=[tensor("a", [1, 3]), tensor("b", [1, 3])],
        outputs=[tensor("sum", [1, 3]), tensor("difference", [1, 3])],
    )
    total, difference = run(np.array([1, 2, 3], np.float32), np.ones(3, np.float32))
    assert total.tolist() == [[2, 3, 4]]
    assert difference.tolist() == [[0, 1, 2]]


def test_an_input_of_any_length(serve: Any) -> None:
    run = serve(elastic(), inputs=[tensor("x", [1, None])], outputs=[tensor("y", [1, None])])
    for length in (1, 5, 3, 1000):
        [found] = run(np.arange(length, dtype=np.float32)[np.newaxis])
        assert found.tolist() == [[2.0 * k for k in range(length)]]


@pytest.mark.parametrize("stateful", [False, True])
def test_what_a_model_remembers_is_forgotten_between_frames_unless_it_is_stateful(serve: Any, stateful: bool) -> None:
    contract = {"inputs": [tensor("x", [1, 3])], "outputs": [tensor("y", [1, 3])], "stateful": stateful}
    run = serve(running_sum(), **contract)
    found = [run(np.ones((1, 3), np.float32))[0].tolist()[0][0] for _ in range(4)]
    assert found == ([1.0, 2.0, 3.0, 4.0] if stateful else [1.0] * 4)


@pytest.mark.parametrize("stateful", [False, True])
def test_the_whole_loop_keeps_or_forgets_what_a_model_remembers(tmp_path: Path, stateful: bool) -> None:
    with Rig(tmp_path, "tiny") as rig:
        made = tmp_path / "made"
        change = {"stateful": stateful, "canary.samples": 0}
        digest = tiny_models.write_slot(made, running_sum(), size=(3, 3), change=change).digest
        made.rename(rig.model_dir / "slots" / digest)
        (rig.model_dir / "slots" / digest / "confirmed").touch()
        rig.link("current", digest)
        rig.frames(np.tile(np.array([[[1.0, 0.0, 0.0]]], np.float32), (6, 1, 1)))
        rig.start(fps=50.0, loop=False)
        rig.wait(lambda: rig.total("done") == 6)
        assert rig.stop() == 0
        scores = [round(row["confidence"]) for row in rig.rows()]
        assert scores == ([1, 2, 3, 4, 5, 6] if stateful else [1] * 6)


def test_a_delegate_is_used_only_where_the_release_asks_for_it(tmp_path: Path) -> None:
    """No delegate's library is at hand: what is tested is who is asked for one, and how its absence is told."""
    from modelagent.errors import DeviceError  # noqa: PLC0415 - this test alone
    from modelagent.inference import interpreter  # noqa: PLC0415 - the same

    slot = stage(
        tmp_path, tiny_models.linear(np.eye(3)), {"inputs": [tensor("x", [1, 3])], "outputs": [tensor("y", [1, 3])]}
    )
    options = ModelOptions("tiny", tmp_path, tmp_path, tmp_path, tmp_path / "health.json", delegate="/absent/npu.so")
    loader = Loader()
    done: list[Load] = []
    loader.request(slot, options, purpose=SERVE, done=done.append)
    while not done:
        loader.step(time.monotonic())
        time.sleep(0.001)
    worker = done[0].worker
    assert worker is not None, done[0].reason
    assert worker.facts["delegate"] == "cpu"
    worker.end()
    with pytest.raises(DeviceError, match=r"runtime\.delegate") as caught:
        interpreter.load(slot.path / "model.tflite", delegate="/absent/npu.so")
    assert caught.value.code == "delegate"
