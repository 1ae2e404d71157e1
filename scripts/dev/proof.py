"""`make chaos`, `make roll`, `make soak` and `make bench`: the proof is loadgen's; here it is built and called."""

from __future__ import annotations

import os
import random

from . import console, redis, tools
from .console import Failure, Step, bold, say
from .paths import RUN, TARGET, shown
from .process import foreground

_LOADGEN = TARGET / "release" / "loadgen"
_PLACE = RUN / "proof"
_KINDS = ("sentinel", "cluster")


def chaos(kind: str, minutes: float, sessions: int, seed: int | None) -> int:
    _prepare("make chaos")
    return _chaos(kind, minutes, sessions, seed)


def soak(minutes: float, sessions: int, seed: int | None) -> int:
    """Long runs over each kind of Redis, and ten rolling restarts. Each runs whatever came of the one before."""
    _prepare("make soak")
    return max([*[_chaos(kind, minutes, sessions, seed) for kind in _KINDS], _roll(sessions, seed)])


def roll(sessions: int, seed: int | None) -> int:
    _prepare("make roll")
    return _roll(sessions, seed)


def bench() -> int:
    _prepare("make bench")
    return _report("bench", ["bench"])


def _prepare(title: str) -> None:
    console.title(title)
    with Step("Redis") as step:
        step.text = redis.server_program()
    if not tools.find("redis-sentinel"):
        raise Failure("No redis-sentinel: install redis-sentinel (7 or later).")
    os.environ["PATH"] = tools.search_path()
    with Step("Build") as step:
        argv = ["cargo", "build", "--release", "--locked", "-p", "jarvis", "-p", "ollama-sim", "-p", "loadgen"]
        if foreground(argv) != 0:
            raise Failure("It does not build; what cargo says is above.")
        step.text = f"{bold('jarvis')}, {bold('ollama-sim')} and {bold('loadgen')}, release"


def _chaos(kind: str, minutes: float, sessions: int, seed: int | None) -> int:
    if kind not in _KINDS:
        raise Failure(f"REDIS is one of {', '.join(_KINDS)}.")
    seed = random.randrange(1_000_000) if seed is None else seed
    say(f"\n  {bold(kind)}, {minutes:g} minutes, {sessions} sessions; SEED={seed} repeats the faults\n")
    argv = ["chaos", "--redis", kind, "--seconds", str(round(minutes * 60)), "--sessions", str(sessions)]
    return _report(f"chaos-{kind}-{seed}", [*argv, "--seed", str(seed)])


def _roll(sessions: int, seed: int | None) -> int:
    seed = random.randrange(1_000_000) if seed is None else seed
    say(f"\n  {bold('rolling restart')}, three replicas ten times, {sessions} sessions; SEED={seed}\n")
    return _report(f"roll-{seed}", ["roll", "--sessions", str(sessions), "--seed", str(seed)])


def _report(name: str, argv: list[str]) -> int:
    _PLACE.mkdir(parents=True, exist_ok=True)
    path = _PLACE / f"{name}.json"
    code = foreground([str(_LOADGEN), *argv, "--json", str(path)])
    if path.exists():
        say(f"  The same as JSON: {shown(path)}")
    return code
