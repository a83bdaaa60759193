"""The other side of `http.vs_*`: the same model behind MLServer, in an environment of its own.

This file runs where mlserver is installed (rival_litserve.py: litserve), and knows nothing of ours:

    python benchmarks/rival.py model.tflite 8001        # POST /v2/models/digits/infer, the V2 protocol
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter


class Model:
    """One interpreter, as a script would use it."""

    def __init__(self, path: str) -> None:
        self._interpreter = Interpreter(model_path=path, num_threads=1)
        self._interpreter.allocate_tensors()
        self._source = self._interpreter.get_input_details()[0]
        self._target = self._interpreter.get_output_details()[0]["index"]

    def run(self, values: Any) -> int:
        """The best class."""
        array = np.asarray(values, self._source["dtype"]).reshape(self._source["shape"])
        self._interpreter.set_tensor(self._source["index"], array)
        self._interpreter.invoke()
        return int(self._interpreter.get_tensor(self._target).argmax())


def mlserver(path: str, port: int) -> None:
    """MLServer with a runtime of ours, no parallel workers (its fastest way for a small model)."""
    folder = Path.cwd() / "mlserver"
    (folder / "digits").mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(
        json.dumps(
            {"host": "127.0.0.1", "http_port": port, "grpc_port": port + 1, "metrics_port": port + 2}
            | {"parallel_workers": 0, "debug": False, "use_structured_logging": False}
        )
    )
    (folder / "digits" / "model-settings.json").write_text(
        json.dumps({"name": "digits", "implementation": "rival_runtime.Digits", "parameters": {"uri": path}})
    )
    (folder / "rival_runtime.py").write_text(
        "from mlserver import MLModel\n"
        "from mlserver.types import InferenceResponse, ResponseOutput\n"
        "from benchmarks.rival import Model\n"
        "class Digits(MLModel):\n"
        "    async def load(self):\n"
        "        self.model = Model(self.settings.parameters.uri)\n"
        "        return True\n"
        "    async def predict(self, payload):\n"
        "        found = self.model.run(payload.inputs[0].data.root)\n"
        "        output = ResponseOutput(name='y', shape=[1], datatype='INT64', data=[found])\n"
        "        return InferenceResponse(model_name='digits', outputs=[output])\n"
    )
    program = Path(sys.executable).parent / "mlserver"
    environment = os.environ | {"PYTHONPATH": f"{folder}:{Path(__file__).resolve().parents[1]}"}
    os.execve(program, [str(program), "start", str(folder)], environment)  # noqa: S606 - it becomes the server


if __name__ == "__main__":
    mlserver(sys.argv[1], int(sys.argv[2]))
