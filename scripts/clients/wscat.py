"""`wscat` in a terminal against a running jarvis: it has to see its own close code.

Usage: wscat.py URL PROGRAM. Prints one JSON object a line: {"client", "close", "tries", "seen": {code: times}}.
"""

from __future__ import annotations

import collections
import json
import os
import pty
import re
import select
import sys
import time

TRIES = 12
CHAT = json.dumps({"type": "chat", "message": "[[tokens=5]] hello", "max_tokens": 5})


def _attempt(url: str, program: str, code: int) -> str:
    child, terminal = pty.fork()
    if child == 0:
        os.execv(program, [program, "--no-color", "--slash", "--connect", url])
    printed = ""
    # The text that is typed once the pattern was printed.
    steps = [("Connected", CHAT), ("stream_end", f"/close {code}")]
    end = time.monotonic() + 30
    try:
        while time.monotonic() < end:
            if not select.select([terminal], [], [], 1)[0]:
                continue
            try:
                data = os.read(terminal, 65536)
            except OSError:
                break
            if not data:
                break
            printed += data.decode(errors="replace")
            if steps and steps[0][0] in printed:
                os.write(terminal, f"{steps.pop(0)[1]}\n".encode())
            if found := re.search(r"Disconnected \(code: (\d+)", printed):
                return found[1]
        return "nothing"
    finally:
        os.close(terminal)
        os.waitpid(child, 0)


def _main(url: str, program: str) -> None:
    for code in (1000, 4999):
        seen = collections.Counter(_attempt(url, program, code) for _ in range(TRIES))
        print(json.dumps({"client": "wscat", "close": code, "tries": TRIES, "seen": seen}), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
