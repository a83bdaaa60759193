"""Models of every shape through a real worker: open sizes, several tensors, no signature, state between frames."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

import tiny_models
from modelagent.inference.exchange import OK, Reply
from modelagent.inference.links import Slot, open_slot
from modelagent.inference.options import ModelOptions
from modelagent.inference.workers import SERVE, Load, Loader, Worker
from modelagent.manifest import dump, parse

pytestmark = pytest.mark.process


def positives() -> bytes:
    """y = the places where x is positive: [k, 2], k is known only afterwards."""
    graph = tiny_models.Graph()
    x = graph.tensor("x", (1, 6))
    zero = graph.constant("zero", np.zeros(1, np.float32))
    found = graph.tensor("found", (1, 6), schema.TensorType.BOOL)
    y = graph.tensor("y", (0, 2), schema.TensorType.INT64)
    graph.operator(schema.BuiltinOperator.GREATER, [x, zero], [found])
    graph.operator(schema.BuiltinOperator.WHERE, [found], [y])
    return graph.finish([x], [y])


def two() -> bytes:
    """sum = a + b, difference = a - b."""
    graph = tiny_models.Graph()
    a, b = graph.tensor("a", (1, 3)), graph.tensor("b", (1, 3))
    add, sub = graph.tensor("sum", (1, 3)), graph.tensor("difference", (1, 3))
    graph.operator(
        schema.BuiltinOperator.ADD, [a, b], [add], schema.AddOptionsT(), kind=schema.BuiltinOptions.AddOptions
    )
    graph.operator(
        schema.BuiltinOperator.SUB, [a, b], [sub], schema.SubOptionsT(), kind=schema.BuiltinOptions.SubOptions
    )
    return graph.finish([a, b], [add, sub])


def elastic() -> bytes:
    """y = x + x for any number of columns."""
    graph = tiny_models.Graph()
    x, y = graph.tensor("x", (1, 1)), graph.tensor("y", (1, 1))
    for index in (x, y):
        graph.graph.tensors[index].shapeSignature = [1, -1]
    graph.operator(schema.BuiltinOperator.ADD, [x, x], [y], schema.AddOptionsT(), kind=schema.BuiltinOptions.AddOptions)
    return graph.finish([x], [y])


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
    now = 0.0
    while not done:
        now += 0.001
        loader.step(now)
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
    now = 0.0
    while not done:
        now += 0.001
        loader.step(now)
    worker = done[0].worker
    assert worker is not None, done[0].reason
    assert worker.facts["delegate"] == "cpu"
    worker.end()
    with pytest.raises(DeviceError, match=r"runtime\.delegate") as caught:
        interpreter.load(slot.path / "model.tflite", delegate="/absent/npu.so")
    assert caught.value.code == "delegate"
