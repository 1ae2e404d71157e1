"""What the scripts `sdk.py` share: they run their checks, and print one JSON object a line."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
from typing import Any, Callable


def show(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


def printed_by_page(heading: str, url: str) -> str:
    """Returns what the first lines of Python below a heading of the page about clients print, with the
    address of a replica."""
    page = pathlib.Path(__file__).parents[2] / "docs" / "CLIENTS.md"
    section = page.read_text(encoding="utf-8").split(f"\n## {heading}\n", 1)[1]
    code = section.split("```python\n", 1)[1].split("```", 1)[0]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code.replace("http://HOST:10200", url), {})
    return printed.getvalue()


def run(checks: list[Callable[[str], None]], urls: list[str]) -> None:
    """Runs every check at each replica in turn, and prints {"check": its name} after each."""
    for check in checks:
        for url in urls:
            check(url)
        show({"check": check.__name__})
