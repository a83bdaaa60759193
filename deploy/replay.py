"""Builds deploy/Dockerfile without an engine: each step in a debootstrap tree, and then measures what came out.

This file knows the few instructions that our Dockerfile uses. It is no builder: there are no layers, no cache, no
isolation but chroot, and debian:12-slim is replayed as a minimal debootstrap without documents and locales.

    sudo python3 deploy/replay.py                # prints the image's size, and what `modelagent doctor` says in it
    sudo python3 deploy/replay.py --json
"""

import argparse
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
MIRROR: Final = "http://deb.debian.org/debian"
# What the official slim images leave out.
SLIM: Final = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "var/lib/apt/lists",
    "var/cache/apt",
)
_ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def main() -> int:
    """See the head of the file."""
    parser = argparse.ArgumentParser(description="Replay deploy/Dockerfile and measure the image.")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--base", type=Path, help="keep the Debian that it starts from here, for the next time")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root: debootstrap and chroot")
    with tempfile.TemporaryDirectory(prefix="modelagent-image-") as folder:
        base = options.base or Path(folder) / "base"
        image = replay((ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8"), Path(folder), base)
        size = weigh(image.tree) / 1e6
        said = _chroot(image.tree, ["modelagent", "doctor", "--json"], user=image.user)
        failed = [check["name"] for check in json.loads(said)["checks"] if check["status"] == "fail"]
        tools = [tool for tool in ("gcc", "cc", "make", "pip") if (image.tree / "usr/bin" / tool).exists()]
        facts = {"mb": round(size, 1), "user": image.user, "compilers": tools, "doctor_failed": failed}
    print(json.dumps(facts) if options.json else "\n".join(f"{key}: {value}" for key, value in facts.items()))
    return 1 if failed or tools or image.user in ("", "root") else 0


class Stage:
    """One FROM with what followed it."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.folder = "/"
        self.user = ""


def replay(text: str, folder: Path, base: Path) -> Stage:
    """Carry out the instructions; returns the last stage. `base` is made when it is not there."""
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    if not base.is_dir():
        _slim(base.with_name(f".{base.name}.new")).rename(base)
    for line in instructions(text):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            name = [*rest.split(), "", "", ""][2] or "last"
            current = stages[name] = Stage(folder / name)
            _do("cp", "-a", base, current.tree)
            continue
        assert current is not None, f"{word} before FROM"  # noqa: S101 - a Dockerfile of ours
        if word == "RUN":
            _chroot(current.tree, ["/bin/sh", "-c", f"cd {shlex.quote(current.folder)} && {rest}"])
        elif word == "COPY" and rest.startswith("--from="):
            source, path, target = rest.removeprefix("--from=").split()
            _do("cp", "-a", f"{stages[source].tree}{path}/.", f"{current.tree}{target}")
        elif word == "COPY":
            shutil.copytree(ROOT, current.tree / current.folder.lstrip("/"), ignore=ignored(), dirs_exist_ok=True)
        elif word == "WORKDIR":
            current.folder = rest
            (current.tree / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif word == "USER":
            current.user = rest
        elif word not in ("ENV", "VOLUME", "HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT", "CMD"):
            raise SystemExit(f"deploy/Dockerfile: {word} is not known here; teach deploy/replay.py")
    assert current is not None  # noqa: S101 - the same
    return current


def instructions(text: str) -> list[str]:
    """The instructions, each on one line, without comments."""
    plain = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    return [line.strip() for line in re.sub(r"\\\n\s*", "", plain).splitlines() if line.strip()]


def ignored() -> Callable[[str, list[str]], set[str]]:
    """What .dockerignore leaves out, close enough: the first part of a path, or a name anywhere."""
    patterns = [line.removeprefix("**/") for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split()]

    def leave_out(folder: str, names: list[str]) -> set[str]:
        top = Path(folder) == ROOT
        wanted = patterns if top else ["__pycache__"]
        return {name for name in names for pattern in wanted if fnmatch.fnmatch(name, pattern)}

    return leave_out


def weigh(tree: Path) -> int:
    """Bytes of all files, each once."""
    seen, total = set(), 0
    for path in tree.rglob("*"):
        found = path.lstat()
        if found.st_ino not in seen:
            seen.add(found.st_ino)
            total += found.st_size if path.is_file() and not path.is_symlink() else 0
    return total


def _slim(tree: Path) -> Path:
    tree.parent.mkdir(parents=True, exist_ok=True)
    _do("debootstrap", "--variant=minbase", "bookworm", tree, MIRROR)
    for name in SLIM:
        shutil.rmtree(tree / name, ignore_errors=True)
        (tree / name).mkdir(parents=True, exist_ok=True)
    (tree / "var/cache/apt/archives/partial").mkdir(parents=True, exist_ok=True)
    (tree / "etc/apt/apt.conf.d/docker-clean").write_text(
        'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb"; };\n'
        'Dir::Cache::pkgcache "";\nDir::Cache::srcpkgcache "";\n'
    )
    return tree


def _chroot(tree: Path, words: list[str], user: str = "") -> str:
    """Run in the tree; for the time of it the host's name servers and accepted authorities are borrowed."""
    borrowed = [Path("etc/resolv.conf"), Path("etc/ssl/certs/ca-certificates.crt")]
    lent = []
    for path in borrowed:
        if Path("/", path).exists() and not (tree / path).exists():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path("/", path), tree / path)
            lent.append(tree / path)
    environment = _ENVIRONMENT | {
        key: value for key, value in os.environ.items() if key in ("PIP_CERT", "PIP_INDEX_URL")
    }
    prefix = ["chroot", *([f"--userspec={user}:{user}"] if user else []), str(tree)]
    _do("mount", "--bind", "/dev", tree / "dev")
    _do("mount", "-t", "proc", "proc", tree / "proc")
    try:
        done = subprocess.run([*prefix, *words], env=environment, capture_output=True, text=True, check=False)
    finally:
        _do("umount", tree / "proc")
        _do("umount", tree / "dev")
        for path in lent:
            path.unlink()
    if done.returncode != 0 and not user:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"[-4000:])
    return done.stdout


def _do(*words: object) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(
            f"{' '.join(map(str, words))} ended with {done.returncode}:\n{done.stdout}{done.stderr}"[-4000:]
        )


if __name__ == "__main__":
    sys.exit(main())
