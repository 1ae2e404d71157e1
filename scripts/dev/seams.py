"""`make seams`: answers of a real model, each broken off once, compared with the same ones left alone."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import signal
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import console, models, net, prepare, redis, replicas
from .console import Failure, Progress, Step, say
from .process import Fleet, Interrupted, Service, pause

_TOKENS = 60
_MODEL = "tinyllama:latest"
# Every so often it is the writer that dies, not the stream of the model; that takes a lease's length.
_KILL_EVERY = 5
_ASK = (
    "Write a short story about {}.",
    "Explain {} to a child.",
    "List five facts about {}.",
    "Write a letter to a friend about {}.",
    "What would the world be without {}?",
    "Describe {} in one paragraph.",
    "Write a poem about {}.",
    "Give advice to somebody who is new to {}.",
    "Tell the history of {}.",
    "Write a dialogue between two people about {}.",
)
_ABOUT = ("the sea", "bread", "trains", "winter", "mathematics", "gardens", "music", "bees", "mountains", "the moon")
_OPENING = "<|im_start|>assistant\n"


@dataclass
class Tally:
    asked: int = 0
    repeated: int = 0
    identical: int = 0
    reworded: int = 0
    killed: int = 0
    unbroken: int = 0


def seams(count: int, seed: int | None) -> int:
    seed = random.randrange(1_000_000) if seed is None else seed
    console.title(f"make seams: {count} answers, SEED={seed} breaks them at the same places")
    fleet = Fleet()
    with tempfile.TemporaryDirectory(prefix="jarvis-seams-") as place:
        try:
            return _run(fleet, Path(place), count, random.Random(seed))
        except Interrupted:
            return 130
        finally:
            fleet.stop()


def _run(fleet: Fleet, place: Path, count: int, dice: random.Random) -> int:
    prepare.target("seams")
    replicas.build("jarvis", "ollama-sim")
    model = models.small(fleet, _MODEL)
    settings = {
        "JARVIS_REDIS_URL": redis.private(fleet, place / "redis.sock", place / "redis"),
        "JARVIS_OLLAMA_URLS": model.urls,
        "JARVIS_DEFAULT_MODEL": model.default,
    }
    pair = []
    with Step("jarvis") as step:
        for number in (1, 2):
            listen = f"127.0.0.1:{net.free_port()}"
            service = replicas.start(fleet, f"seams-{number}", listen, settings)
            replicas.wait_until_live(service, listen)
            pair.append((service, f"http://{listen}"))
        step.text = "two replicas"
    trial = _Trial(model.urls, pair, dice)
    questions = [ask.format(about) for about, ask in itertools.product(_ABOUT, _ASK)]
    dice.shuffle(questions)
    progress = Progress()
    for number, question in enumerate(itertools.islice(itertools.cycle(questions), count), 1):
        trial.ask(question, kill=number % _KILL_EVERY == 0)
        progress.show(f"{number} of {count}")
    progress.done()
    return _report(trial)


class _Trial:
    def __init__(self, host: str, pair: list[tuple[Service, str]], dice: random.Random) -> None:
        self.host = host
        self.pair = pair
        self.dice = dice
        self.tally = Tally()
        self.flaws: list[str] = []

    def ask(self, question: str, *, kill: bool) -> None:
        expected, tokens = self._answer(question)
        self.tally.asked += 1
        self.tally.repeated += self._answer(question)[0] == expected
        _http("DELETE", f"{self.host}/sim/requests")
        at = self.dice.randint(1, max(1, tokens * 3 // 4))
        answer = self._killed(question, at) if kill else self._cut(question, at)
        broken = self._prompt_of_the_rest()
        if broken is None:
            self.tally.unbroken += 1
            return
        self.tally.killed += kill
        if answer == expected:
            self.tally.identical += 1
            return
        # What the model says itself to the same beginning: what differs then is its doing.
        prompt, options = broken
        before = prompt.rpartition(_OPENING)[2]
        rest = self._raw(prompt, options)
        if expected.startswith(before) and answer == before + rest:
            self.tally.reworded += 1
            return
        self.flaws.append(
            f"{question}\n  expected {expected!r}\n  came     {answer!r}\n"
            f"  broken after {before[-40:]!r}; alone the model goes on {rest[:40]!r}"
        )

    def _answer(self, question: str) -> tuple[str, int]:
        reply = _http("POST", f"{self.pair[0][1]}/api/v1/chat", _body(question, str(uuid.uuid4())))
        return reply["response"], reply["usage"]["completion_tokens"]

    def _cut(self, question: str, pieces: int) -> str:
        _http("POST", f"{self.host}/sim/faults", {"fault": "cut", "after_pieces": pieces, "path": "/api/chat"})
        try:
            return self._answer(question)[0]
        finally:
            _http("DELETE", f"{self.host}/sim/faults")

    def _killed(self, question: str, pieces: int) -> str:
        (writer, url), (_, other) = self.pair
        session = str(uuid.uuid4())
        with contextlib.suppress(OSError), _open("POST", f"{url}/api/v1/chat", _body(question, session, True)) as events:
            chunks = (line for line in events if line.startswith(b"data:") and b'"stream_chunk"' in line)
            for _ in itertools.islice(chunks, pieces):
                pass
            writer.signal(signal.SIGKILL)
        writer.bury()
        writer.start()
        replicas.wait_until_live(writer, url.removeprefix("http://"))
        until = time.monotonic() + 30
        while time.monotonic() < until:
            messages = _http("GET", f"{other}/api/v1/chat/sessions/{session}")["messages"]
            if len(messages) == 2:
                return str(messages[1]["content"])
            pause(0.1)
        raise Failure(f"Nobody finished the answer to {question!r} within 30 s of its writer's death.")

    def _prompt_of_the_rest(self) -> tuple[str, dict[str, Any]] | None:
        """What the model was asked to go on from; None where it never was."""
        for entry in reversed(_http("GET", f"{self.host}/sim/requests")["requests"]):
            options = entry["options"] or {}
            if entry["path"] == "/api/generate" and options.get("num_predict") != 1:
                return entry["prompt"], options
        return None

    def _raw(self, prompt: str, options: dict[str, Any]) -> str:
        body = {"model": _MODEL, "prompt": prompt, "raw": True, "stream": False, "options": options}
        return str(_http("POST", f"{self.host}/api/generate", body)["response"])


def _body(question: str, session: str, stream: bool = False) -> dict[str, Any]:
    return {
        "message": question,
        "session_id": session,
        "temperature": 0,
        "max_tokens": _TOKENS,
        "stream": stream,
    }


def _open(method: str, url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60)


def _http(method: str, url: str, body: Any = None) -> Any:
    try:
        with _open(method, url, body) as reply:
            text = reply.read()
    except urllib.error.HTTPError as error:
        raise Failure(f"{method} {url}: {error.code} {error.read().decode(errors='replace')[:300]}") from None
    return json.loads(text) if text else None


def _report(trial: _Trial) -> int:
    tally = trial.tally
    broken = tally.asked - tally.unbroken
    console.title("Result")
    console.line("alone", f"{tally.repeated} of {tally.asked} answers are the same when asked twice")
    console.line("broken off", f"{broken}, of them {tally.killed} by killing the replica that wrote")
    console.line("identical", f"{tally.identical} of {broken}")
    console.line("reworded", f"{tally.reworded}: the model itself goes another way there; nothing missing, nothing doubled")
    console.line("flawed", f"{len(trial.flaws)}")
    for flaw in trial.flaws:
        say(f"\n{flaw}")
    return 1 if trial.flaws or not broken else 0
