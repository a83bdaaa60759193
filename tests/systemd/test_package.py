"""What is in the Debian package, for both architectures: nothing for the wrong machine, bytecode, conffiles."""

import subprocess
from pathlib import Path

import pytest

from systemd_machine import ROOT, cache, missing

pytestmark = [
    pytest.mark.systemd,
    pytest.mark.skipif(bool(missing()), reason=f"no package can be built here: {missing()}"),
]
MACHINE = {"amd64": 62, "arm64": 183}  # e_machine of an ELF file (elf.h)
MIB_MAX = 148  # install.size_ratio: 0.075 of tensorflow's 1,977 MiB


@pytest.fixture(scope="module", params=sorted(MACHINE))
def unpacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    arch = str(request.param)
    words = [str(ROOT / "script/deb"), "--quick", "--arch", arch, "--out", str(cache() / "packages")]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    folder = tmp_path_factory.mktemp(arch)
    package = said.strip().splitlines()[-1].rpartition(" (")[0]
    subprocess.run(["dpkg-deb", "-R", package, str(folder)], check=True)
    return arch, folder


def test_every_library_is_for_that_machine(unpacked: tuple[str, Path]) -> None:
    arch, folder = unpacked
    found = 0
    for path in folder.rglob("*.so*"):
        head = path.read_bytes()[:20]
        if head.startswith(b"\x7fELF"):
            found += 1
            assert int.from_bytes(head[18:20], "little") == MACHINE[arch], path
    assert found > 20


def test_every_module_has_bytecode_that_is_never_compared_with_its_source(unpacked: tuple[str, Path]) -> None:
    modules = sorted((unpacked[1] / "usr/lib/modelagent/tree").rglob("site-packages/modelagent/**/*.py"))
    assert len(modules) > 50
    for module in modules:
        compiled = list((module.parent / "__pycache__").glob(f"{module.stem}.cpython-*.pyc"))
        assert len(compiled) == 1, module
        assert int.from_bytes(compiled[0].read_bytes()[4:8], "little") == 0b01, "hash-based, unchecked (PEP 552)"


def test_size_settings_and_scripts(unpacked: tuple[str, Path]) -> None:
    arch, folder = unpacked
    tree = folder / "usr/lib/modelagent/tree"
    size = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file() and not path.is_symlink()) / 2**20
    assert size < MIB_MAX
    assert (folder / "DEBIAN/conffiles").read_text() == "/etc/modelagent/modelagent.toml\n"
    assert f"Architecture: {arch}\n" in (folder / "DEBIAN/control").read_text()
    for script in ("postinst", "prerm", "postrm"):
        subprocess.run(["sh", "-n", str(folder / "DEBIAN" / script)], check=True)
    assert not list(tree.rglob("pip")), "no installer on the device"
