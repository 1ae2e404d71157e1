"""`make run`, `make cluster` and `make stop`."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from typing import Any

from . import balancer, console, models, net, prepare, redis, replicas
from .console import Failure, Progress, Step, bold, dim, say
from .paths import LOGS, REDIS_DATA, RUN, TARGET, shown
from .process import Fleet, Interrupted, Service, Signals, pause

_STATE = RUN / "run.json"
_LOCK = RUN / "lock"
_DEFAULT_LISTEN = "127.0.0.1:10200"
# A replica that comes back and dies this often in a row will not get better by itself.
_DEATHS = 3
_DEATHS_WITHIN = 30.0


def run(count: int | None) -> None:
    """One replica, or `count` of them behind nginx; until a signal."""
    listen = os.environ.get("JARVIS_LISTEN") or _DEFAULT_LISTEN
    host, port = net.split(listen)
    with _alone(listen):
        _check_port(host, port)
        console.title("jarvis" if count is None else f"jarvis, {count} replicas behind nginx")
        fleet = Fleet()
        try:
            prepare.target("run" if count is None else "cluster")
            replicas.build("jarvis", "ollama-sim")
            url = redis.start(fleet)
            model = models.start(fleet)
            settings = {
                "JARVIS_REDIS_URL": url,
                "JARVIS_OLLAMA_URLS": model.urls,
                "JARVIS_DEFAULT_MODEL": model.default,
            }
            if count is None:
                _single(fleet, listen, settings)
            else:
                _several(fleet, listen, settings, count)
            _invitation(f"http://{net.joined(net.reachable(host), port)}", model.default)
            _watch(fleet)
        except Interrupted:
            pass
        finally:
            _stop(fleet)


def _single(fleet: Fleet, listen: str, settings: dict[str, str]) -> None:
    with Step("jarvis") as step:
        service = replicas.start(fleet, "jarvis", listen, settings)
        step.text = replicas.wait_until_live(service, listen) or f"ready at {listen}"


def _several(fleet: Fleet, listen: str, settings: dict[str, str], count: int) -> None:
    places = [f"127.0.0.1:{net.free_port()}" for _ in range(count)]
    # nginx tells where a client comes from.
    settings = {**settings, "JARVIS_PROXIES": "1"}
    with Step("jarvis") as step:
        # One after another: the first loads the functions, and a port is taken before the next is chosen.
        texts = []
        for number, place in enumerate(places, 1):
            service = replicas.start(fleet, f"jarvis-{number}", place, settings)
            missing = replicas.wait_until_live(service, place)
            process = service.process.pid if service.process else 0
            texts.append(f"replica {number} {missing or 'ready'} at {place} {dim(f'(process {process})')}")
        step.text = "\n".join(texts)
    with Step("nginx") as step:
        balancer.start(fleet, listen, places)
        step.text = f"in front of them at {listen}, round robin, no sticky sessions"


def _invitation(url: str, model: str) -> None:
    question = '{"message": "Hello, how are you?"}'
    streamed = '{"message": "Tell me a story", "stream": true}'
    say()
    say(f"  {bold('Browser'.ljust(console.LABEL))}{url}/docs")
    say(f"  {bold('curl'.ljust(console.LABEL))}curl --json '{question}' {url}/api/v1/chat/")
    say(f"  {' ' * console.LABEL}curl -N --json '{streamed}' {url}/api/v1/chat/")
    say(f"  {bold('WebSocket'.ljust(console.LABEL))}{url.replace('http', 'ws', 1)}/ws {dim('(try it: make chat)')}")
    say()
    say(dim(f"  The model is {model}. Logs are in {shown(LOGS)}. Ctrl-C stops all of it; the history stays."))
    say()


def _watch(fleet: Fleet) -> None:
    """Until a signal, or until something ends that must not."""
    deaths: dict[str, list[float]] = {}
    while True:
        pause(0.3)
        for service in fleet.dead():
            if not service.name.startswith("jarvis-"):
                raise Failure(service.epitaph())
            _revive(service, deaths.setdefault(service.name, []))


def _revive(service: Service, deaths: list[float]) -> None:
    now = time.monotonic()
    deaths[:] = [when for when in deaths if now - when < _DEATHS_WITHIN] + [now]
    if len(deaths) > _DEATHS:
        raise Failure(service.epitaph())
    code = service.process.returncode if service.process else 0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    pause(1)
    service.start()
    process = service.process.pid if service.process else 0
    say(dim(f"  {time.strftime('%H:%M:%S')}  {service.name} {how}; started again as process {process}"))


def _stop(fleet: Fleet) -> None:
    if not fleet.services:
        return
    if Signals.count:
        say()
        say("  Stopping. What is being answered may end, for at most 20 s; Ctrl-C again ends it now.")
    start = time.monotonic()
    kept = any(service.name == "redis" for service in fleet.services)
    fleet.stop()
    where = f" The history is kept in {shown(REDIS_DATA)}." if kept else ""
    say(f"  Stopped after {time.monotonic() - start:.1f} s.{where}")


@contextlib.contextmanager
def _alone(listen: str) -> Iterator[None]:
    """Two in one folder would share a Redis file."""
    RUN.mkdir(exist_ok=True)
    with _LOCK.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            state = _state()
            raise Failure(
                f"Already running here: http://{state.get('listen', '?')} (process {state.get('process', '?')}).\n"
                "`make stop` ends it."
            ) from None
        _STATE.write_text(json.dumps({"process": os.getpid(), "listen": listen}))
        try:
            yield
        finally:
            _STATE.unlink(missing_ok=True)


def _state() -> dict[str, Any]:
    try:
        state = json.loads(_STATE.read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _check_port(host: str, port: int) -> None:
    if port and not net.is_free(host, port):
        other = next(free for free in range(port + 1, port + 1000) if net.is_free(host, free))
        app = net.get_json(f"http://{net.joined(net.reachable(host), port)}/health")
        who = "another jarvis" if isinstance(app, dict) and "app" in app else "another program"
        raise Failure(
            f"Port {port} of {host} is taken by {who}.\n"
            f"Stop that one, or choose another: JARVIS_LISTEN={net.joined(host, other)} make run"
        )


def url_of_running() -> str:
    """Where `make chat` goes."""
    listen = _state().get("listen") or os.environ.get("JARVIS_LISTEN") or _DEFAULT_LISTEN
    host, port = net.split(listen)
    return f"http://{net.joined(net.reachable(host), port)}"


def stop() -> bool:
    """Stops what runs from this folder; False where nothing does."""
    if not _LOCK.exists():
        return False
    with _LOCK.open("a") as lock:
        progress = Progress()
        asked = 0.0
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                progress.done()
                return asked > 0
            except OSError:
                now = time.monotonic()
                if not asked:
                    os.kill(int(_state()["process"]), signal.SIGTERM)
                    asked = now
                elif now - asked > 90:
                    raise Failure(f"Process {_state().get('process')} does not end; its logs: {shown(LOGS)}") from None
                progress.show(f"stopping … {now - asked:.0f} s")
                pause(0.1)


def clean(*, history: bool) -> None:
    if stop():
        say("  Stopped what was running.")
    kept = [] if history else [REDIS_DATA]
    for path in [TARGET, *(sorted(RUN.iterdir()) if RUN.exists() else [])]:
        if path in kept:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if REDIS_DATA.exists():
        say(f"  Removed what was built and fetched. The history is still in {shown(REDIS_DATA)} (make purge removes it).")
    else:
        say("  Removed what was built and fetched, and there is no history.")
