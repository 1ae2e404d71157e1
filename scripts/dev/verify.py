"""`make verify`: what takes longer than `make test`, or needs more than a checkout and Redis.

A part is a function that takes a folder for its files and returns an `Outcome`. Every part runs, whatever the ones
before it found; to add one, add it to `_PARTS`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from . import clients, console, prepare, replicas
from .check import Outcome, timed
from .console import green, red, say

_PARTS: tuple[tuple[str, Callable[[Path], Outcome]], ...] = (("clients", clients.check),)


def everything() -> int:
    console.title("make verify")
    prepare.target("verify")
    replicas.build()
    with tempfile.TemporaryDirectory(prefix="jarvis-verify-") as place:
        rows = [timed(name, lambda part=part: part(Path(place))) for name, part in _PARTS]
    console.title("Result")
    for row in rows:
        mark = green("ok") if row.outcome.ok else red("failed")
        console.line(row.name, f"{mark}  {row.outcome.text}", row.seconds)
    say()
    return 0 if all(row.outcome.ok for row in rows) else 1
