"""`make test`: what it needs, then every check, then one table that says how each went."""

from __future__ import annotations

import os
import py_compile
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import balancer, console, manifests, redis, tools
from .console import Failure, Step, bold, green, red, say
from .paths import BIN, ROOT, RUN
from .process import foreground, output, succeeds

_CARGO_DENY = "0.20.2"
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Outcome:
    ok: bool
    text: str = ""


@dataclass
class Tally:
    passed: int = 0
    failed: int = 0
    skipped: int = 0


def everything() -> int:
    console.title("make test")
    _prepare()
    tally = Tally()
    checks: list[tuple[str, Callable[[], Outcome]]] = [
        ("format", lambda: _run("cargo", "fmt", "--all", "--check")),
        ("scripts", _scripts),
        ("manifests", manifests.check),
        ("licences", lambda: _run("cargo", "deny", "check", "bans", "licenses", "sources")),
        ("lints", lambda: _run("cargo", "clippy", *_LOCKED, "--all-targets", "--", "-D", "warnings")),
        ("examples", lambda: _run("cargo", "test", *_LOCKED, "--doc")),
        # Last, so that what it says of itself is not far from the end.
        ("tests", lambda: _tests(tally)),
    ]
    rows = [_timed(name, check) for name, check in checks]
    return _report(rows, tally)


_LOCKED = ("--workspace", "--locked")


def _prepare() -> None:
    with Step("Redis") as step:
        step.text = redis.server_program()
    with Step("nginx") as step:
        step.text = balancer.program()
    with Step("cargo-deny") as step:
        step.text = _cargo_deny()
    # What was fetched comes first for the tests too: they look for redis-server and redis-sentinel on the PATH.
    os.environ["PATH"] = tools.search_path()


def _cargo_deny() -> str:
    if found := tools.find("cargo-deny"):
        return found
    console.note(f"building cargo-deny {_CARGO_DENY} without optimising it: it has a second's work to do")
    argv = ["cargo", "install", "cargo-deny", "--version", _CARGO_DENY, "--locked", "--no-default-features"]
    argv += ["--root", str(RUN), "--target-dir", str(RUN / "cargo-deny-build")]
    env = {"CARGO_PROFILE_RELEASE_OPT_LEVEL": "0", "CARGO_PROFILE_RELEASE_LTO": "off"}
    env |= {"CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16", "CARGO_PROFILE_RELEASE_DEBUG": "0"}
    # Not what the project itself is built with.
    env["RUSTFLAGS"] = ""
    if foreground([*argv, "--quiet"], env=env) != 0:
        raise Failure(f"cargo-deny does not build: cargo install cargo-deny --version {_CARGO_DENY} --locked")
    return str(BIN / "cargo-deny")


def _run(*argv: str) -> Outcome:
    return Outcome(foreground(argv) == 0)


def _scripts() -> Outcome:
    """Every script can be read by its interpreter; shellcheck has a word where it is installed."""
    python = [*sorted((ROOT / "scripts").rglob("*.py")), *sorted((ROOT / "ollama-sim").glob("*.py"))]
    shell = [path for path in [ROOT / "scripts" / "dev.sh", ROOT / ".ci" / "run"] if path.exists()]
    ok = True
    with tempfile.TemporaryDirectory() as place:
        for path in python:
            try:
                py_compile.compile(str(path), cfile=str(Path(place) / "x.pyc"), doraise=True)
            except py_compile.PyCompileError as error:
                say(str(error))
                ok = False
    checker = tools.find("shellcheck")
    for path in shell:
        interpreter = "bash" if "bash" in path.read_text().splitlines()[0] else "sh"
        ok &= foreground([checker, str(path)] if checker else [interpreter, "-n", str(path)]) == 0
    ok &= foreground([sys.executable, "-m", "unittest", "discover", "-q", "-s", "scripts/tests", "-t", "scripts"]) == 0
    return Outcome(ok, f"{len(python)} in Python, {len(shell)} for the shell" + ("" if checker else ", no shellcheck"))


def _tests(tally: Tally) -> Outcome:
    printed: list[str] = []
    colour = "always" if sys.stdout.isatty() else "never"
    if succeeds(["cargo", "nextest", "--version"]):
        argv = ["cargo", "nextest", "run", *_LOCKED, "--color", colour]
    else:
        argv = ["cargo", "test", *_LOCKED, "--lib", "--bins", "--tests", "--no-fail-fast", "--color", colour]
    code = foreground(argv, sink=printed.append)
    count(_ANSI.sub("", "".join(printed)), tally)
    return Outcome(code == 0, f"{tally.passed} passed, {tally.failed} failed, {tally.skipped} skipped")


def count(text: str, tally: Tally) -> None:
    """Adds up the closing lines of nextest or of cargo test."""
    for line in text.splitlines():
        if re.match(r"\s*Summary \[", line):
            found = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|timed out|skipped)", line)}
            tally.passed += found.get("passed", 0)
            tally.failed += found.get("failed", 0) + found.get("timed out", 0)
            tally.skipped += found.get("skipped", 0)
        elif found_here := re.match(r"test result: .*?(\d+) passed; (\d+) failed; (\d+) ignored", line):
            passed, failed, ignored = map(int, found_here.groups())
            tally.passed += passed
            tally.failed += failed
            tally.skipped += ignored


@dataclass
class Row:
    name: str
    outcome: Outcome
    seconds: float


def _timed(name: str, check: Callable[[], Outcome]) -> Row:
    say(f"\n{bold('── ' + name)}")
    start = time.monotonic()
    try:
        outcome = check()
    except FileNotFoundError as error:
        outcome = Outcome(False, str(error))
    except Failure as failure:
        outcome = Outcome(False, str(failure))
    return Row(name, outcome, time.monotonic() - start)


def _report(rows: list[Row], tally: Tally) -> int:
    console.title("Result")
    for row in rows:
        mark = green("ok") if row.outcome.ok else red("failed")
        console.line(row.name, f"{mark}{'  ' + row.outcome.text if row.outcome.text else ''}", row.seconds)
    versions = output(["rustc", "--version"]).strip()
    console.line("total", versions, sum(row.seconds for row in rows))
    say()
    failed = [row.name for row in rows if not row.outcome.ok]
    if failed:
        say(red(f"  Not good: {', '.join(failed)}"))
    # Alone on its line, for whoever reads this by machine.
    say(f"tests: {tally.passed} passed, {tally.failed} failed, {tally.skipped} skipped")
    if not tally.passed:
        say(red("  No test ran."))
        return 1
    return 1 if failed else 0
