"""What must hold on the disk of a tortured device: after each death, and at the end of each chapter.

    problems = disk_problems(world, ("1.0.0", "1.1.0"))          # before anything starts again
    problems = end_problems(world, chapter, history)             # the right end, no leftovers, no hole, no lie

Problems are sentences; an empty list is good. The bytes are compared with what was published, not with what the
device believes.
"""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

from modelagent.core.state import State
from modelagent.errors import AgentError
from modelagent.steps.journal import Journal, read_history
from torture.world import MODEL, Chapter, World, content_is

LINKS: Final = ("current", "fallback", "shadow")
_MAY_STAY: Final = (f"models/{MODEL}/.current.revert",)


def disk_problems(world: World, runs: Collection[str]) -> list[str]:
    """Links name complete verified slots; `current` names one of the versions `runs` ("" allows none)."""
    root = world.state_dir / "models" / MODEL
    problems = []
    for name in LINKS:
        link = root / name
        if link.is_symlink():
            target = str(link.readlink())
            if not target.startswith("slots/") or (why := _incomplete(world, root / target)):
                problems.append(f"{name} names {target}: {why if target.startswith('slots/') else 'no slot'}")
        elif link.exists():
            problems.append(f"{name} is no link")
    if root.is_dir() or "" not in runs:
        current = root / "current"
        named = world.version(current.readlink().name) if current.is_symlink() else ""
        if named not in runs:
            problems.append(
                f"current names {named or 'nothing'}, expected {' or '.join(run or 'nothing' for run in runs)}"
            )
    if (root / "slots").is_dir():
        problems += [
            f"slots/{slot.name[:12]} stands under its name and is not whole: {why}"
            for slot in sorted((root / "slots").iterdir())
            if not slot.name.startswith(".") and (why := _incomplete(world, slot))
        ]
    return problems


def _incomplete(world: World, slot: Path) -> str:
    manifest = world.manifests.get(slot.name)
    if manifest is None:
        return "nobody published it"
    wanted = [("manifest.json", slot.name), *((ref.name, ref.sha256) for ref in manifest.files)]
    wrong = [name for name, sha256 in wanted if not content_is(slot / name, sha256)]
    return f"{', '.join(wrong)} missing or with other bytes" if wrong else ""


def end_problems(world: World, chapter: Chapter, before: bytes) -> list[str]:
    """Everything that must hold once the chapter is over; `before` is the history with which it began."""
    return [
        *disk_problems(world, (chapter.runs,)),
        *(f"left over: {name}" for name in leftovers(world.state_dir)),
        *_history_problems(world, chapter, before),
    ]


def leftovers(state_dir: Path) -> Iterator[str]:
    """What should not be there once the machine is at rest."""
    for path in sorted(state_dir.rglob("*")):
        name = str(path.relative_to(state_dir))
        if path.name.startswith(".") and name not in _MAY_STAY:
            yield name
    yield from (f"incoming/{path.name}" for path in sorted((state_dir / "incoming").iterdir()))


def _history_problems(world: World, chapter: Chapter, before: bytes) -> Iterator[str]:
    data = (world.state_dir / "history.jsonl").read_bytes()
    if not data.startswith(before):
        yield "history: lines that were there are gone"
        return
    try:
        lines = [json.loads(line) for line in data.splitlines()]
        told = read_history(world.state_dir)
        state = Journal(world.state_dir, MODEL, State).peek()
    except (ValueError, AgentError) as error:
        yield f"history: {error}"
        return
    numbers = [line["seq"] for line in lines]
    if numbers != sorted(numbers):
        yield "history: numbers go back"
    new = [line for line in told[before.count(b"\n") :] if not line.get("unfinished")]
    for kind, version in chapter.told:
        if not any(line["kind"] == kind and version in ("", line["version"]) for line in new):
            yield f"history: a hole: nothing says {kind} {version}"
    if state is not None:
        yield from _lies(world, told, state)


def _lies(world: World, told: list[dict[str, Any]], state: State) -> Iterator[str]:
    done = [line for line in told if not line.get("unfinished")]
    switches = [line for line in done if line["kind"] in ("activated", "reverted")]
    # A revert's line before it is done is called `reverting`; one that was overtaken says so by a later line.
    if switches and state.current is not None and switches[-1]["digest"] != state.current:
        last = switches[-1]
        yield f"history: a lie: last {last['kind']} {last['version']}, but {state.current[:12]} is current"
    marked = {s.release.digest for s in state.slots if s.confirmed}
    here = {s.release.digest for s in state.slots}
    confirmed = {line["digest"] for line in done if line["kind"] == "confirmed"}
    for digest in (confirmed & here) ^ marked:
        yield f"history: a lie: {world.version(digest)} is {'' if digest in marked else 'not '}marked confirmed"
