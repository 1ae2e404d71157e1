"""The end of each script `sdk.py`: runs its checks, and prints one JSON object a line."""

from __future__ import annotations

import json
from typing import Any, Callable


def show(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


def run(checks: list[Callable[[str], None]], urls: list[str]) -> None:
    """Runs every check at each replica in turn, and prints {"check": its name} after each."""
    for check in checks:
        for url in urls:
            check(url)
        show({"check": check.__name__})
