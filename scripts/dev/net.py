"""Addresses, and asking a server over HTTP."""

from __future__ import annotations

import contextlib
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from .console import Failure
from .process import Signals


def split(address: str) -> tuple[str, int]:
    """`127.0.0.1:10200` or `[::1]:10200`."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise Failure(f"JARVIS_LISTEN is {address!r}; an address and a port are meant, like 127.0.0.1:10200")
    return host.strip("[]"), int(port)


def joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reachable(host: str) -> str:
    """Where a program on this machine finds what listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def is_free(host: str, port: int) -> bool:
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket(_family(host)) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def get(url: str, seconds: float = 2.0) -> tuple[int, str]:
    """Status and body; 0 where nobody answers."""
    # A proxy that is set for the world has no business between us and our own machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=seconds) as reply:
            return reply.status, reply.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except (OSError, ValueError):
        return 0, ""


def get_json(url: str, seconds: float = 2.0) -> Any:
    """The body as JSON; None where it is not to be had."""
    status, body = get(url, seconds)
    with contextlib.suppress(ValueError):
        if status == 200:
            return json.loads(body)
    return None


def post_lines(url: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Sends JSON and yields the lines of JSON that come back."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=300) as reply:
            for raw in reply:
                Signals.check()
                if raw.strip():
                    yield json.loads(raw)
    except urllib.error.HTTPError as error:
        yield {"error": error.read().decode(errors="replace")[:200]}
    except (OSError, ValueError) as error:
        yield {"error": str(error)}
