"""The contract of a .tflite file: its tensors as the runtime reads them, and the proof that a release keeps its word.

This file knows how to ask a child. It does not know the runtime (the child's interpreter adapter does), and a file
that crashes or hangs the runtime takes down the child, not the publisher.

    read(Path("model.tflite"))      # {"inputs": [...], "outputs": [...], "runtime": "ai-edge-litert 2.3.0"}
    prove(data, files)              # a device's own canary, here: what devices would refuse is not published
    prove_words(data, files)        # the manifest's words alone, for a file that this runtime cannot load
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from modelagent.core.verdicts import Outcome
from modelagent.errors import DeviceError, UsageError
from modelagent.manifest import Manifest, parse
from modelagent.steps.canary import CanaryRunner

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

_WORDS: Final = """
import sys
from modelagent.errors import AgentError
from modelagent.inference.decisions import Decider
from modelagent.manifest import parse
try:
    Decider(parse(sys.stdin.buffer.read()))
except AgentError as error:
    print(error.message)
"""
Files = Mapping[str, Path | bytes]


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


def prove(data: bytes, files: Files) -> None:
    """Run the release once as a device would: load, contract, samples, floor, limits; nothing to compare it with.

    Args:
        data: the manifest to sign.
        files: role -> the file or its bytes.

    Raises:
        UsageError: `contract`: devices would refuse it, with their reason.
    """
    release = parse(data)
    prove_words(data, files)
    with tempfile.TemporaryDirectory(prefix="modelagent-proof-") as folder:
        slot = Path(folder) / "slot"
        slot.mkdir()
        (slot / "manifest.json").write_bytes(data)
        for ref in release.files:
            content = files[ref.role]
            (slot / ref.name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        try:
            verdict = CanaryRunner().run(slot, None, 1, release, lambda: False)
        except DeviceError as error:
            raise UsageError(
                f"{_named(release)}: it cannot be proved here: {error.message}", code="contract"
            ) from error
    if verdict.outcome is Outcome.FAIL:
        raise _refused(release, verdict.reason)


def prove_words(data: bytes, files: Files) -> None:
    """Check what the manifest asks for before and after the model, without the model.

    Raises:
        UsageError: `contract`.
    """
    del files
    ended = subprocess.run(
        [sys.executable, "-c", _WORDS], input=data, capture_output=True, timeout=TIME_LIMIT, check=False
    )
    said = ended.stdout.decode(errors="replace").strip()
    if ended.returncode != 0:
        said = (ended.stderr.decode(errors="replace").strip().splitlines() or ["no reason"])[-1]
    if said:
        raise _refused(parse(data), said)


def _named(release: Manifest) -> str:
    return f"{release.model} {release.version}"


def _refused(release: Manifest, reason: str) -> UsageError:
    return UsageError(
        f"{_named(release)}: devices would refuse it: {reason}; nothing was published: correct the manifest "
        "([manifest] in a plan, --manifest for a file), the samples or the model",
        code="contract",
    )
