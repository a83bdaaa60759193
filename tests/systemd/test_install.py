"""install-service and uninstall, into an image's directory: the plan, twice, and back."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from modelagent.cli import install, main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "image"
    (root / "etc").mkdir(parents=True)
    monkeypatch.setattr(install, "program", lambda: Path("/opt/modelagent/venv/bin/modelagent"))
    return root


def call(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, list(words))
    return result.exit_code, result.output


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


def test_a_dry_run_says_all_and_changes_nothing(image: Path) -> None:
    code, said = call("install-service", "--dry-run", "--root", str(image))
    assert code == 0
    assert said.count("would write") == 5
    assert files(image) == set()


def test_units_start_this_environments_program_and_are_otherwise_the_packages(image: Path) -> None:
    text = install.unit_text("modelagent.service", Path("/opt/modelagent/venv/bin/modelagent"))
    shipped = (ROOT / "systemd/modelagent.service").read_text()
    assert "ExecStart=/opt/modelagent/venv/bin/modelagent run inference\n" in text
    assert len(text.splitlines()) == len(shipped.splitlines())


@pytest.mark.process
@pytest.mark.skipif(not shutil.which("systemd-sysusers") or not shutil.which("systemctl"), reason="needs systemd")
def test_twice_is_once_and_uninstall_takes_all_but_the_data(image: Path) -> None:
    assert call("install-service", "--root", str(image))[0] == 0
    first = {name: (image / name).read_bytes() for name in files(image) if not (image / name).is_symlink()}
    assert {"etc/systemd/system/modelagent.service", "etc/modelagent/modelagent.toml"} <= set(first)
    assert "modelagent-inference" in (image / "etc/passwd").read_text()

    (image / "etc/modelagent/modelagent.toml").write_text("# mine\n")
    assert call("install-service", "--root", str(image)) == (0, "everything is in place\n")
    assert (image / "etc/modelagent/modelagent.toml").read_text() == "# mine\n"

    (image / "var/lib/modelagent").mkdir(parents=True)
    assert call("uninstall", "--root", str(image))[0] == 0
    assert not [name for name in files(image) if "systemd" in name or "sysusers" in name]
    assert (image / "etc/modelagent/modelagent.toml").exists()
    assert (image / "var/lib/modelagent").exists()
    assert call("uninstall", "--root", str(image)) == (0, "nothing is installed\n")

    assert call("uninstall", "--purge", "--root", str(image))[0] == 0
    assert not (image / "etc/modelagent").exists()
    assert not (image / "var/lib/modelagent").exists()


def test_json_gives_the_steps(image: Path) -> None:
    code, said = call("install-service", "--dry-run", "--root", str(image), "--json")
    assert code == 0
    assert json.loads(said)["dry_run"] is True
    assert any("modelagent-updater.service" in step for step in json.loads(said)["steps"])


def test_a_packaged_installation_is_left_alone(image: Path) -> None:
    unit = image / "usr/lib/systemd/system/modelagent.service"
    unit.parent.mkdir(parents=True)
    unit.touch()
    for command in ("install-service", "uninstall"):
        code, said = call(command, "--root", str(image))
        assert code == 2
        assert "use apt" in said


@pytest.mark.parametrize("prefix", ["/home/me/venv", "/root/venv", "/tmp/venv"])
def test_an_environment_that_services_cannot_see_is_refused(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", prefix)
    monkeypatch.setattr(Path, "exists", lambda _: True)
    code, said = call("install-service", "--dry-run")
    assert code == 2
    assert "a package has installed" in said or "cannot see this place" in said


@pytest.mark.process
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
@pytest.mark.parametrize(("unit", "limit"), [("modelagent-updater", 2.0), ("modelagent", 1.5)])
def test_exposure_stays_below_its_limit(unit: str, limit: float) -> None:
    path = ROOT / "systemd" / f"{unit}.service"
    words = ["systemd-analyze", "security", "--offline=true", f"--threshold={round(limit * 10)}", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert float(done.stdout.rsplit("service:", 1)[1].split()[0]) <= limit
