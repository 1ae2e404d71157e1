"""Starting programs so that none of them outlives us."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import console
from .console import Failure
from .paths import LOGS, ROOT, shown

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


class Interrupted(Exception):
    """A signal asked us to stop."""


class Signals:
    """Counts the requests to stop. Everything that waits asks here, so nothing is torn in the middle."""

    count = 0
    last = 0

    @classmethod
    def install(cls) -> None:
        def note(number: int, _frame: object) -> None:
            cls.count += 1
            cls.last = number

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, note)

    @classmethod
    def check(cls) -> None:
        if cls.count:
            raise Interrupted


def pause(seconds: float) -> None:
    """Sleeps, unless we are asked to stop."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        Signals.check()
        time.sleep(min(left, 0.1))
    Signals.check()


def _end_with_parent() -> None:
    # Should we be killed outright, the kernel stops what we started.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def foreground(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    quiet: bool = False,
    sink: Callable[[str], None] | None = None,
    show: bool = True,
    tick: Callable[[], None] | None = None,
) -> int:
    """Runs a program to its end, its output shown and given to `sink`, and returns its exit code.

    `tick` is called ten times a second meanwhile.
    """
    output = subprocess.DEVNULL if quiet else subprocess.PIPE if sink else None
    child = subprocess.Popen(
        argv,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL if quiet else None,
        stdout=output,
        stderr=subprocess.STDOUT if sink else output,
        preexec_fn=_end_with_parent,
    )
    try:
        if sink and child.stdout:
            _copy(child.stdout.fileno(), sink, show)
        while True:
            try:
                return child.wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                Signals.check()
                if tick:
                    tick()
    except Interrupted:
        child.terminate()
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        raise


def _copy(source: int, sink: Callable[[str], None], show: bool) -> None:
    """Shows what comes, and gives it to `sink`. Never blocks: a signal must be seen at once."""
    while True:
        if select.select([source], [], [], 0.1)[0]:
            data = os.read(source, 65536)
            if not data:
                return
            if show:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            sink(data.decode(errors="replace"))
        Signals.check()


def succeeds(
    argv: Sequence[str], env: Mapping[str, str] | None = None, tick: Callable[[], None] | None = None
) -> bool:
    try:
        return foreground(argv, env=env, quiet=True, tick=tick) == 0
    except OSError:
        return False


def output(argv: Sequence[str]) -> str:
    """What a short-lived program prints; empty where it is missing or fails."""
    try:
        result = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout if result.returncode == 0 else ""


@dataclass
class Service:
    """A program that runs until we stop it."""

    name: str
    argv: Sequence[str]
    # Services of the highest stage are stopped first, those of one stage together.
    stage: int
    env: Mapping[str, str] = field(default_factory=dict)
    # How long it may take to end by itself.
    grace: float = 5.0
    # A second Ctrl-C ends it at once. Not for what has data to write.
    impatient: bool = True
    process: subprocess.Popen[bytes] | None = None
    _offset: int = 0

    @property
    def log(self) -> Path:
        return LOGS / f"{self.name}.log"

    def start(self) -> None:
        LOGS.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._offset = log.tell()
            # A session of its own: Ctrl-C in the terminal reaches us alone, and we decide the order.
            self.process = subprocess.Popen(
                self.argv,
                cwd=ROOT,
                # Its log is a file: some would colour it all the same.
                env={**os.environ, "NO_COLOR": "1", **self.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def printed(self) -> str:
        """What it wrote since it was started."""
        with self.log.open("rb") as log:
            log.seek(self._offset)
            return log.read().decode(errors="replace")

    def epitaph(self) -> str:
        """How it ended, and its last words."""
        code = self.process.returncode if self.process else 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        last = "\n".join(f"    {text}" for text in self.printed().strip().splitlines()[-8:])
        return f"{self.name} {how}. The end of {shown(self.log)}:\n{last}"

    def wait_until(self, ready: Callable[[], bool], seconds: float, what: str) -> None:
        """Waits for a condition; ends with the service's last words where it does not come."""
        until = time.monotonic() + seconds
        progress = console.Progress()
        start = time.monotonic()
        try:
            while not ready():
                if not self.alive:
                    raise Failure(self.epitaph())
                if time.monotonic() > until:
                    raise Failure(f"{what} took more than {seconds:.0f} s; see {shown(self.log)}")
                if time.monotonic() - start > 2:
                    progress.show(f"{what} … {time.monotonic() - start:.0f} s")
                pause(0.05)
        finally:
            progress.done()

    def signal(self, number: int) -> None:
        if self.alive and self.process:
            self.process.send_signal(number)

    def bury(self) -> None:
        """Removes what it may have left behind: its own children are of its group."""
        if self.process:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
            self.process.wait()


class Fleet:
    """All services, and the order in which they end."""

    def __init__(self) -> None:
        self.services: list[Service] = []

    def start(self, service: Service) -> Service:
        self.services.append(service)
        service.start()
        return service

    def dead(self) -> list[Service]:
        return [service for service in self.services if not service.alive]

    def stop(self) -> None:
        already = Signals.count
        for stage in sorted({service.stage for service in self.services}, reverse=True):
            group = [service for service in self.services if service.stage == stage]
            for service in group:
                service.signal(signal.SIGTERM)
            start = time.monotonic()
            while waiting := [service for service in group if service.alive]:
                for service in waiting:
                    hurried = Signals.count > max(already, 1) and service.impatient
                    if hurried or time.monotonic() - start > service.grace:
                        service.signal(signal.SIGKILL)
                time.sleep(0.05)
            for service in group:
                service.bury()
        self.services.clear()


