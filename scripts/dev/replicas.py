"""jarvis itself, once or several times."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping

from . import net
from .console import Failure, Step, bold
from .paths import TARGET
from .process import Fleet, Service, foreground

JARVIS = TARGET / "release" / "jarvis"
# What jarvis may take to drain, and a little to say so.
_GRACE = 27.0


def build(*packages: str) -> None:
    with Step("Build") as step:
        argv = ["cargo", "build", "--release", "--locked"]
        argv += [word for package in packages for word in ("-p", package)]
        try:
            code = foreground(argv)
        except FileNotFoundError:
            raise Failure("There is no cargo here: install the Rust toolchain (1.95 or later).") from None
        if code != 0:
            raise Failure("It does not build; what cargo says is above.")
        step.text = f"{', '.join(map(bold, packages))}, release"


def start(fleet: Fleet, name: str, listen: str, settings: Mapping[str, str]) -> Service:
    env = {**settings, "JARVIS_LISTEN": listen}
    return fleet.start(Service(name, [str(JARVIS), "serve"], stage=4, env=env, grace=_GRACE))


def wait_until_live(service: Service, listen: str) -> str:
    """Returns what is still missing; empty where it is ready."""
    url = _url(listen)
    service.wait_until(lambda: net.get(f"{url}/health/live")[0] == 200, 30, f"{service.name} starts")
    try:
        service.wait_until(lambda: net.get(f"{url}/health/ready")[0] == 200, 10, f"{service.name} gets ready")
    except Failure:
        if not service.alive:
            raise
        return f"up, but not ready yet: {_why_not_ready(net.get(f'{url}/health/ready')[1])}"
    return ""


def _why_not_ready(body: str) -> str:
    with contextlib.suppress(ValueError, AttributeError):
        return str(json.loads(body).get("detail") or "it does not say why")
    return "it does not say why"


def _url(listen: str) -> str:
    host, port = net.split(listen)
    return f"http://{net.joined(net.reachable(host), port)}"
