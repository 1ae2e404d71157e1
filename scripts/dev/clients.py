"""Other people's WebSocket clients against a replica, direct and through nginx.

Each has to see its own close code in every try, and clients without a library have to read the head of the handshake
and the first frame apart. The programs are in scripts/clients.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import balancer, console, models, net, redis, replicas, tools
from .check import Outcome
from .console import Failure, Step, green, red
from .paths import ROOT
from .process import Fleet, foreground

_PROGRAMS = ROOT / "scripts" / "clients"
_PYTHON = ("aiohttp", "websocket-client", "websockets")
_NODE = ("ws", "wscat")


def check(place: Path) -> Outcome:
    fleet = Fleet()
    try:
        return _check(fleet, place)
    finally:
        fleet.stop()


def _check(fleet: Fleet, place: Path) -> Outcome:
    with Step("packages") as step:
        python = tools.python_with(_PYTHON)
        modules = tools.modules_with(_NODE)
        pinned = {**tools.PACKAGES, **tools.MODULES}
        step.text = ", ".join(f"{name} {pinned[name]}" for name in (*_PYTHON, *_NODE))
    direct, balanced = (f"127.0.0.1:{net.free_port()}" for _ in range(2))
    settings = {
        "JARVIS_REDIS_URL": redis.private(fleet, place / "redis.sock", place / "redis"),
        "JARVIS_OLLAMA_URLS": models.scripted(fleet).urls,
    }
    replicas.wait_until_live(replicas.start(fleet, "verify", direct, settings), direct)
    balancer.start(fleet, balanced, [direct])
    programs: Sequence[list[str]] = (
        [python, str(_PROGRAMS / "sockets.py"), "{url}"],
        [python, str(_PROGRAMS / "closes.py"), "{url}"],
        [tools.node(), str(_PROGRAMS / "closes.mjs"), "{url}", str(modules)],
        [python, str(_PROGRAMS / "wscat.py"), "{url}", str(modules / ".bin" / "wscat")],
    )
    tries = passed = 0
    for way, address in (("direct", direct), ("nginx", balanced)):
        for program in programs:
            for result in _results([part.format(url=f"ws://{address}/ws") for part in program]):
                good = good_tries(result)
                tries, passed = tries + result["tries"], passed + good
                _show(way, result, good)
    return Outcome(passed == tries, f"{passed} of {tries} tries")


def _results(argv: Sequence[str]) -> list[dict[str, Any]]:
    printed: list[str] = []
    code = foreground(argv, sink=printed.append, show=False)
    results = [json.loads(line) for line in "".join(printed).splitlines() if line.startswith("{")]
    if code != 0 or not results:
        raise Failure(f"{' '.join(argv)} ended with code {code}:\n{''.join(printed)}")
    return results


def good_tries(result: dict[str, Any]) -> int:
    """The tries that saw what they had to see: of a close, its own code, and 1000 where it had none."""
    if "passed" in result:
        return int(result["passed"])
    return int(result["seen"].get(str(result["close"] or 1000), 0))


def _show(way: str, result: dict[str, Any], good: int) -> None:
    what = result["client"]
    if "close" in result:
        what += f", closes with {result['close']}" if result["close"] else ", closes without a code"
    mark = green("ok") if good == result["tries"] else red(str(result.get("seen") or result["failures"]))
    console.line(way, f"{what}: {good} of {result['tries']}  {mark}")
