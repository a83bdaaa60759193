"""Builds the Debian package: the program, what it needs, its own virtual environment, the units.

This file knows what lies where in the package. It does not know what is done at installation: that is postinst's and
its siblings' in packaging/debian/. It runs on the distribution's own Python and needs nothing but pip and dpkg-deb.

    script/deb                            # build/modelagent_0.1.0-1_amd64.deb for this machine's python3
    script/deb --arch arm64               # the same for the other architecture: all parts come as wheels
    script/deb --revision 2 --quick       # less compression: tests

The tree is kept in /usr/lib/modelagent/tree; postinst makes /opt/modelagent/<version> of it by hard links. dpkg
replaces files by rename, so a tree below /opt stays whole while a process runs from it, whatever is installed
meanwhile.
"""

import argparse
import compileall
import hashlib
import os
import py_compile
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
HERE: Final = ROOT / "packaging"
MACHINES: Final = {"amd64": "x86_64", "arm64": "aarch64"}
PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
# What the interpreter never loads on a device: measured before and after, both runtimes still run.
TRIM: Final = (
    "ai_edge_litert/libLiteRtWebGpuAccelerator.so",
    "ai_edge_litert/tools",
    "ai_edge_litert/vendors",
    "ai_edge_litert/aot",
    "numpy/f2py",
    "numpy/distutils",
    "numpy/_core/include",
    "numpy/_core/lib",
    "numpy/random/lib",
    "numpy/random/_examples",
    "pygments/lexers",
    "bin",
)
TRIM_NAMES: Final = ("tests", "*.pyi", "*.pxd", "__pycache__", "_cffi.cpython-*.so", "_simd.cpython-*.so")
# Wheels that come with debugging symbols, which are nine tenths of them.
STRIP: Final = ("zstandard/*.so",)
UNITS: Final = ("modelagent.service", "modelagent-updater.service", "modelagent-metrics.service")


def main() -> int:
    """See the head of the file."""
    parser = argparse.ArgumentParser(description="Build the Debian package of modelagent.")
    parser.add_argument("--arch", choices=sorted(MACHINES), default=_here(), help="architecture (this machine's)")
    parser.add_argument("--release", default=_release(), help="the version of the program (pyproject.toml's)")
    parser.add_argument("--revision", default="1", help="of the package (1)")
    parser.add_argument("--out", type=Path, default=ROOT / "build", help="directory for the package (build/)")
    parser.add_argument("--pip", default=f"{sys.executable} -m pip", help="how pip is called")
    parser.add_argument("--quick", action="store_true", help="compress less")
    options = parser.parse_args()
    version = f"{options.release}-{options.revision}"
    options.out.mkdir(parents=True, exist_ok=True)
    parts = _parts(options.arch, options.pip.split())
    with tempfile.TemporaryDirectory(prefix="modelagent-deb-") as folder:
        stage = Path(folder) / "stage"
        _tree(stage / "usr/lib/modelagent/tree", parts, version, options.release)
        _files(stage)
        _control(stage, version, options.arch)
        package: Path = options.out / f"modelagent_{version}_{options.arch}.deb"
        _run(
            "dpkg-deb", "--root-owner-group", *(["-Zgzip", "-z1"] if options.quick else ["-Zxz"]), "-b", stage, package
        )
    print(f"{package} ({package.stat().st_size / 2**20:.1f} MiB)")
    return 0


def _here() -> str:
    return subprocess.run(
        ["/usr/bin/dpkg", "--print-architecture"], check=True, capture_output=True, text=True
    ).stdout.strip()


def _release() -> str:
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    return version


def _run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True)


def _parts(arch: str, pip: list[str]) -> Path:
    """The packages from PyPI, as wheels for that architecture and this Python, trimmed; kept between runs."""
    needs: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    key = hashlib.sha256("\n".join([*needs, arch, PYTHON, *TRIM, *TRIM_NAMES, *STRIP]).encode()).hexdigest()[:16]
    kept = ROOT / "build" / "deb" / f"parts-{key}"
    if kept.is_dir():
        return kept
    machine = MACHINES[arch]
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(36, 16, -1)] + [f"manylinux2014_{machine}"]
    fresh = kept.with_name(f".{kept.name}.{os.getpid()}")
    _run(
        *pip,
        *("install", "-q", "--disable-pip-version-check", "--target", fresh, "--no-compile", "--only-binary=:all:"),
        *("--implementation", "cp", "--python-version", PYTHON),
        *(word for platform in platforms for word in ("--platform", platform)),
        *needs,
    )
    for name in TRIM:
        path = fresh / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for pattern in TRIM_NAMES:
        for path in sorted(fresh.rglob(pattern), reverse=True):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    strip = shutil.which("strip")
    for path in (path for pattern in STRIP for path in fresh.glob(pattern) if strip):
        # Most `strip` know their own machine alone: without one that fits the package is a little larger.
        subprocess.run([str(strip), "--strip-debug", str(path)], check=False, capture_output=True)
    fresh.rename(kept)
    return kept


def _tree(tree: Path, parts: Path, version: str, release: str) -> None:
    """A virtual environment as it will stand in /opt/modelagent/<version>, bytecode included."""
    home = f"/opt/modelagent/{version}"
    packages = tree / "lib" / f"python{PYTHON}" / "site-packages"
    shutil.copytree(parts, packages, symlinks=True)
    shutil.copytree(ROOT / "src" / "modelagent", packages / "modelagent", ignore=shutil.ignore_patterns("__pycache__"))
    head = packages / "modelagent" / "__init__.py"
    head.write_text(
        re.sub(r'(?m)^__version__ = ".*"$', f'__version__ = "{release}"', head.read_text(encoding="utf-8")),
        encoding="utf-8",
    )
    _metadata(packages, release)
    programs = tree / "bin"
    programs.mkdir()
    (programs / "python3").symlink_to(f"/usr/bin/python{PYTHON}")
    _write(
        programs / "modelagent",
        f"#!{home}/bin/python3 -P\nimport sys\n\nfrom modelagent.cli import main\n\nsys.exit(main())\n",
        0o755,
    )
    _write(tree / "pyvenv.cfg", f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {PYTHON}\n")
    _write(tree / "VERSION", f"{version}\n")
    # Bytecode that is never compared with its source: nothing changes there, and a start reads half as many files.
    good = compileall.compile_dir(
        tree / "lib",
        quiet=1,
        stripdir=str(tree),
        prependdir=home,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        workers=0,
    )
    if not good:
        raise SystemExit("some file of the tree is no Python of this version; see above")
    _write(tree / "BUILD", _fingerprint(tree) + "\n")


def _fingerprint(tree: Path) -> str:
    """One hash over names and contents."""
    total = hashlib.sha256()
    for path in sorted(tree.rglob("*")):
        total.update(f"{path.relative_to(tree)}\0".encode())
        if path.is_file() and not path.is_symlink():
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _metadata(packages: Path, release: str) -> None:
    """What importlib.metadata says of us."""
    folder = packages / f"modelagent-{release}.dist-info"
    folder.mkdir()
    _write(folder / "METADATA", f"Metadata-Version: 2.1\nName: modelagent\nVersion: {release}\n")
    _write(folder / "INSTALLER", "dpkg\n")


def _files(stage: Path) -> None:
    """Units, users, settings, documents."""
    units = stage / "usr/lib/systemd/system"
    for name in UNITS:
        _copy(ROOT / "systemd" / name, units / name)
    _copy(HERE / "debian/modelagent-sweep.service", units / "modelagent-sweep.service")
    wants = units / "modelagent.service.wants"
    wants.mkdir()
    (wants / "modelagent-sweep.service").symlink_to("../modelagent-sweep.service")
    _copy(ROOT / "systemd/modelagent.sysusers", stage / "usr/lib/sysusers.d/modelagent.conf")
    _copy(HERE / "debian/trees", stage / "usr/lib/modelagent/trees", 0o755)
    program = stage / "usr/bin/modelagent"
    program.parent.mkdir(parents=True)
    program.symlink_to("/opt/modelagent/current/bin/modelagent")
    _copy(ROOT / "config/modelagent.toml", stage / "etc/modelagent/modelagent.toml")
    (stage / "etc/modelagent/conf.d").mkdir()
    documents = stage / "usr/share/doc/modelagent"
    for path in sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"]):
        if path.exists():
            _copy(path, documents / path.name)
    for path in sorted((ROOT / "config/examples").glob("*.toml")):
        _copy(path, documents / "examples" / path.name)
    for path in sorted((ROOT / "systemd/drop-ins").glob("*.conf")):
        _copy(path, documents / "examples/drop-ins" / path.name)
    _write(
        documents / "copyright",
        "Copyright: the modelagent authors\nLicense: Apache-2.0, see /usr/share/common-licenses/Apache-2.0\n"
        "The packages in /opt/modelagent carry their own licenses in *.dist-info.\n",
    )


def _control(stage: Path, version: str, arch: str) -> None:
    control = stage / "DEBIAN"
    control.mkdir()
    size = sum(path.lstat().st_size for path in stage.rglob("*") if path.is_file() and not path.is_symlink()) // 1024
    major, minor = PYTHON.split(".")
    _write(
        control / "control",
        (HERE / "debian/control")
        .read_text(encoding="utf-8")
        .format(version=version, arch=arch, size=size, python=PYTHON, after=f"{major}.{int(minor) + 1}"),
    )
    for name in ("postinst", "prerm", "postrm"):
        _copy(HERE / "debian" / name, control / name, 0o755)
    _write(control / "conffiles", "/etc/modelagent/modelagent.toml\n")
    for path in stage.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)


def _copy(source: Path, target: Path, mode: int = 0o644) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


if __name__ == "__main__":
    sys.exit(main())
