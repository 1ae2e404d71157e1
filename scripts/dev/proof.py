"""`make chaos`, `make roll`, `make soak` and `make bench`: the proof is loadgen's; here it is built and called."""

from __future__ import annotations

import random

from . import console, prepare, replicas
from .console import Failure, bold, say
from .paths import RUN, TARGET, shown
from .process import foreground

_LOADGEN = TARGET / "release" / "loadgen"
_PLACE = RUN / "proof"
_KINDS = ("sentinel", "cluster")


def chaos(kind: str, minutes: float, sessions: int, seed: int | None) -> int:
    _prepare("chaos")
    return _chaos(kind, minutes, sessions, seed)


def soak(minutes: float, sessions: int, seed: int | None) -> int:
    """Long runs over each kind of Redis, and ten rolling restarts. Each runs whatever came of the one before."""
    _prepare("soak")
    return max([*[_chaos(kind, minutes, sessions, seed) for kind in _KINDS], _roll(sessions, seed)])


def roll(sessions: int, seed: int | None) -> int:
    _prepare("roll")
    return _roll(sessions, seed)


def bench() -> int:
    _prepare("bench")
    return _report("bench", ["bench"])


def _prepare(name: str) -> None:
    console.title(f"make {name}")
    prepare.target(name)
    replicas.build("jarvis", "ollama-sim", "loadgen")


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
