"""What a person sees: aligned lines, one a step, with the time it took."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from types import TracebackType

LABEL = 11


class Failure(Exception):
    """Something that the person can do something about; the message says what."""


def _colour(code: str, text: str) -> str:
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return text
    return f"\033[{code}m{text}\033[0m"


def bold(text: str) -> str:
    return _colour("1", text)


def dim(text: str) -> str:
    return _colour("2", text)


def red(text: str) -> str:
    return _colour("31", text)


def green(text: str) -> str:
    return _colour("32", text)


def say(text: str = "") -> None:
    # The terminal may be gone; that must not keep us from stopping what we started.
    with contextlib.suppress(OSError):
        print(text, flush=True)


def title(text: str) -> None:
    say()
    say(bold(text))
    say()


def line(label: str, text: str, seconds: float | None = None) -> None:
    """`label      text                    1.2 s`; further lines of the text are indented."""
    first, *rest = text.split("\n")
    took = "" if seconds is None else f"{seconds:.1f} s"
    width = min(shutil.get_terminal_size((100, 24)).columns, 100) - LABEL - 4
    room = max(width - len(first) - len(took), 2)
    say(f"  {bold(label.ljust(LABEL))}{first}{' ' * room if took else ''}{dim(took)}")
    for more in rest:
        say(f"  {' ' * LABEL}{more}")


def note(text: str) -> None:
    """Something that is about to take a while."""
    for part in text.split("\n"):
        say(f"  {' ' * LABEL}{dim(part)}")


class Step:
    """A step that reports itself when it is done: `with Step("Redis") as step: step.text = …`."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.text = ""

    def __enter__(self) -> Step:
        self._start = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            line(self.label, self.text, time.monotonic() - self._start)


class Progress:
    """One line that rewrites itself on a terminal, and is a line every ten seconds elsewhere."""

    def __init__(self) -> None:
        self._last = time.monotonic() if not sys.stdout.isatty() else 0.0
        self._shown = False

    def show(self, text: str) -> None:
        now = time.monotonic()
        terminal = sys.stdout.isatty()
        if now - self._last < (0.1 if terminal else 10):
            return
        self._last = now
        if terminal:
            print(f"\r\033[K  {' ' * LABEL}{dim(text)}", end="", flush=True)
            self._shown = True
        else:
            note(text)

    def done(self) -> None:
        if self._shown:
            print("\r\033[K", end="", flush=True)
            self._shown = False
