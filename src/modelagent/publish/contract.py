"""The contract of a .tflite file: its tensors, read by the runtime in a child process.

This file knows how to ask a child. It does not know the runtime (the child's interpreter adapter does), and a file
that crashes or hangs the runtime takes down the child, not the publisher.

    read(Path("model.tflite"))      # {"inputs": [...], "outputs": [...], "runtime": "ai-edge-litert 2.3.0"}
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from modelagent.errors import UsageError

TIME_LIMIT: Final = 60.0  # seconds to load and to unload
# The child imports the adapter by name at run time: the publisher itself must not import the runtime. It prints
# before it unloads, because some models end the process only then, and says so by its exit status.
_CHILD: Final = """
import json, sys
from pathlib import Path
from modelagent.errors import AgentError
from modelagent.inference import interpreter
try:
    model = interpreter.load(Path(sys.argv[1]))
except AgentError as error:
    print(json.dumps({"refused": error.message}), flush=True)
    sys.exit(0)
print(json.dumps({
    "inputs": [interpreter.describe(found) for found in model.inputs],
    "outputs": [interpreter.describe(found) for found in model.outputs],
    "runtime": interpreter.runtime_version(),
}), flush=True)
model.close()
"""


def read(path: Path, *, time_limit: float = TIME_LIMIT) -> dict[str, Any]:
    """Load a model in a child and say what its tensors are, as a manifest writes them.

    Args:
        path: the .tflite file.
        time_limit: seconds.

    Raises:
        UsageError: `model-file`: no readable file, refused by the runtime, or the child crashed or hung.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; name the .tflite file", code="model-file")
    try:
        ended = subprocess.run(
            [sys.executable, "-c", _CHILD, str(path.resolve())],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=time_limit,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UsageError(
            f"{path}: the runtime did not load it within {time_limit:g} s; devices would refuse it too",
            code="model-file",
        ) from error
    if ended.returncode < 0:
        raise UsageError(
            f"{path}: it crashes the runtime (signal {-ended.returncode}) when loaded or unloaded; devices would "
            "refuse it too (to publish it all the same, state its inputs and outputs with --manifest)",
            code="model-file",
        )
    try:
        answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    except (ValueError, IndexError) as error:
        said = ended.stderr.decode(errors="replace").strip().splitlines()
        raise UsageError(
            f"{path}: it could not be read (exit {ended.returncode}): {said[-1] if said else 'no reason given'}",
            code="model-file",
        ) from error
    if "refused" in answer:
        raise UsageError(f"{answer['refused']}; name a .tflite file that the runtime loads", code="model-file")
    return answer
