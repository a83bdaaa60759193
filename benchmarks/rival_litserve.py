"""LitServe with the digits model: one worker, no batching. Runs where litserve is installed; see rival.py.

python benchmarks/rival_litserve.py model.tflite 8001        # POST /predict {"inputs": [[...]]} -> {"prediction": 7}
"""

import sys
from typing import Any

import litserve as ls
from benchmarks.rival import Model
from fastapi import Request


class Api(ls.LitAPI):  # type: ignore[misc]
    """LitServe's way of naming a model."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - theirs
        """Load once, in the worker."""
        self.model = Model(sys.argv[1])

    def decode_request(self, request: Request) -> Any:
        """The frame; they hand us the parsed body."""
        return request["inputs"]

    def predict(self, inputs: Any) -> int:
        """One frame."""
        return int(self.model.run(inputs[0]))

    def encode_response(self, output: int) -> dict[str, int]:
        """The answer."""
        return {"prediction": output}


if __name__ == "__main__":
    server = ls.LitServer(Api(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", generate_client_file=False)
