"""The scaffold holds: layers, purity, scripts, and what a fresh clone needs."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ("script/setup", "script/install-debian", "script/demo", "script/test", ".ci/run")


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"],
        cwd=tree,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(tree / "src"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "COLUMNS": "200",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


@pytest.mark.process
def test_the_layers_hold(tree: Path) -> None:
    done = lint_imports(tree)
    assert done.returncode == 0, done.stdout


@pytest.mark.process
@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("core/machine.py", "import time", "The pure part"),
        ("judges/canary.py", "import random", "The pure part"),
        ("manifest.py", "from modelagent import durable", "Layers"),
        ("steps/slots.py", "import modelagent.updater", "Layers"),
        ("steps/canary.py", "import modelagent.steps.journal", "siblings"),
        ("inputs/health.py", "import numpy", "never imports the runtime"),
        ("supervisor.py", "import pydantic", "nothing heavy"),
        ("inference/loop.py", "import modelagent.updater", "Layers"),
    ],
)
def test_a_planted_violation_is_found(tree: Path, file: str, line: str, contract: str) -> None:
    victim = tree / "src" / "modelagent" / file
    original = victim.read_text()
    try:
        victim.write_text(f"{original}\n{line}\n")
        done = lint_imports(tree)
    finally:
        victim.write_text(original)
    assert done.returncode != 0
    broken = [row for row in done.stdout.splitlines() if row.rstrip().endswith("BROKEN")]
    assert any(contract in row for row in broken), done.stdout


def test_scripts_are_posix_and_executable() -> None:
    for name in SCRIPTS:
        file = ROOT / name
        assert os.access(file, os.X_OK), name
        shell = "bash" if "bash" in file.read_text().splitlines()[0] else "sh"
        done = subprocess.run([shell, "-n", str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{name}: {done.stderr}"


def test_make_has_every_target_that_the_documents_name() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "test-fast", "test-all", "check", "bench", "clean", "help"} <= targets


def test_every_module_says_what_it_knows() -> None:
    for file in sorted((ROOT / "src").rglob("*.py")):
        text = file.read_text()
        assert text.startswith('"""'), f"{file} has no head"
        assert len(text.splitlines()) <= 600, f"{file} is too long"
        assert file.stem not in {"manager", "service", "utils", "helpers", "common", "models"}


def test_decision_records_are_numbered_once_and_have_a_status() -> None:
    records = sorted((ROOT / "docs" / "adr").glob("*.md"))
    numbers = [record.name[:4] for record in records]
    assert len(set(numbers)) == len(numbers)
    for record in records:
        text = record.read_text()
        assert text.startswith(f"# {record.name[:4]}: "), record
        assert "\nStatus: " in text, record


def test_the_version_is_written_in_one_way() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    init = (ROOT / "src" / "modelagent" / "__init__.py").read_text()
    assert f'__version__ = "{project["version"]}"' in init


def test_units_keep_the_promises_that_cost_nothing() -> None:
    for name in ("modelagent.service", "modelagent-updater.service"):
        lines = (ROOT / "systemd" / name).read_text().splitlines()
        for wanted in ("Type=notify", "StartLimitIntervalSec=0", "OOMPolicy=continue", "NoNewPrivileges=yes"):
            assert wanted in lines, f"{name}: {wanted}"
        assert not any(line.startswith(("PartOf=", "DynamicUser=")) for line in lines)


def test_the_architecture_names_files_that_are_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    names = re.findall(r"`([\w./-]+)`", page.split("## Where things are")[1].split("\n## ")[0])
    package = ROOT / "src" / "modelagent"
    places = (ROOT, ROOT / "examples" / "digits", package, *(path for path in package.iterdir() if path.is_dir()))
    assert len(names) > 50
    for name in names:
        assert any((place / name).exists() for place in places), name


def test_no_folder_of_tests_is_passed_over(pytestconfig: pytest.Config) -> None:
    """By default pytest does not look into folders called `build`, and says nothing of it."""
    folders = {path.parent.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert not [name for name in folders for pattern in pytestconfig.getini("norecursedirs") if fnmatch(name, pattern)]
