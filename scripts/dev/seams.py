"""`make seams`: answers of a real model, each broken off once, compared with the same ones left alone."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import signal
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import console, models, net, prepare, redis, replicas
from .console import Failure, Progress, Step, say
from .process import Fleet, Interrupted, Service, Signals
from .seam_texts import SCRIPTS, Script

_TOKENS = 60
_MODEL = "tinyllama:latest"
# Every so often the writer is killed instead of the stream of the model; that takes a lease's length.
_KILL_EVERY = 5
_LEASE_MS = "1000"
# Two continuations from neighbouring places may use up their tokens some characters apart.
_SLACK = 24
_COLUMNS = ("asked", "without", "broken", "awkward", "killed", "identical", "reworded", "flawed", "restarts")


@dataclass
class Tally:
    """What became of the answers in one script. Each field is a column of the table."""

    asked: int = 0
    # Answers that do not contain the script: the model did not write what it was asked for.
    without: int = 0
    broken: int = 0
    # Breaks right after a character that is not ASCII; in English, code and tables after punctuation.
    awkward: int = 0
    killed: int = 0
    identical: int = 0
    # The model itself goes another way after the text that the client had read.
    reworded: int = 0
    # Anything else: a character is missing, doubled or another one.
    flawed: int = 0
    # `stream_restart` events that took text back which the client had read.
    restarts: int = 0


@dataclass
class Reader:
    """One client that streams one answer."""

    text: bytes = b""
    restarts: int = 0
    holes: int = 0
    cursor: str | None = None
    generation: str | None = None
    # The answer as the last event has it; None before that.
    whole: str | None = None

    def read(self, stream: Any) -> Iterator[None]:
        """Takes the events of a stream in, one at a time, until the answer or the stream ends."""
        block: dict[str, str] = {}
        for line in stream:
            name, _, value = line.decode().rstrip("\n").partition(":")
            if name:
                block[name] = value.strip()
                continue
            # An event ends with a blank line; what came without one was not received.
            if "data" in block:
                self._take_in(json.loads(block["data"]))
                self.cursor = block.get("id", self.cursor)
                yield
                if self.whole is not None:
                    return
            block = {}

    def _take_in(self, event: dict[str, Any]) -> None:
        self.generation = event.get("generation_id", self.generation)
        match event["type"]:
            case "stream_chunk" if not event["done"]:
                self.holes += event["offset"] != len(self.text)
                self.text += event["content"].encode()
            case "stream_restart":
                self.restarts += event["from"] < len(self.text)
                self.text = self.text[: event["from"]]
            case "stream_end":
                self.whole = event["full_response"]
            case "error" | "cancelled":
                raise Failure(f"An answer ended with {event}.")


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
        "JARVIS_LEASE_MS": _LEASE_MS,
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
    questions = {}
    for script in SCRIPTS:
        dice.shuffle(shuffled := list(script.questions))
        questions[script.name] = itertools.cycle(shuffled)
    progress = Progress()
    for number in range(count):
        Signals.check()
        # Each script in turn, half of them broken at an awkward place, and each killed in its turn.
        turn, which = divmod(number, len(SCRIPTS))
        script = SCRIPTS[which]
        kill = (turn + which) % _KILL_EVERY == 0
        trial.ask(script, next(questions[script.name]), awkward=turn % 2 == 0, kill=kill)
        progress.show(f"{number + 1} of {count}")
    progress.done()
    return _report(trial)


@dataclass
class _Trial:
    host: str
    pair: list[tuple[Service, str]]
    dice: random.Random
    tallies: dict[str, Tally] = field(default_factory=lambda: {script.name: Tally() for script in SCRIPTS})
    repeated: int = 0
    flaws: list[str] = field(default_factory=list)

    def ask(self, script: Script, question: str, *, awkward: bool, kill: bool) -> None:
        tally = self.tallies[script.name]
        tally.asked += 1
        _http("DELETE", f"{self.host}/sim/requests")
        alone = _http("POST", f"{self.pair[0][1]}/api/v1/chat", _body(question, str(uuid.uuid4())))["response"]
        pieces = self._pieces()
        expected = "".join(pieces)
        self.repeated += alone == expected
        if not script.is_in(expected) or len(pieces) < 2:
            tally.without += 1
            return
        broken_after = self._place(script, pieces, awkward)
        so_far = "".join(pieces[:broken_after])
        reader = self._broken(question, broken_after, so_far, kill)
        answer = reader.whole or ""
        tally.broken += 1
        tally.awkward += script.is_awkward(so_far[-1])
        tally.killed += kill
        tally.restarts += reader.restarts
        if reader.holes or reader.text.decode() != answer:
            tally.flawed += 1
            self.flaws.append(f"{script.name}: {question}\n  the client holds {reader.text.decode()!r} of {answer!r}")
        elif answer == expected:
            tally.identical += 1
        elif self._is_the_models_doing(so_far, answer, expected):
            tally.reworded += 1
        else:
            tally.flawed += 1
            self.flaws.append(
                f"{script.name}: {question}\n  expected {expected!r}\n  came     {answer!r}\n"
                f"  broken after {so_far[-40:]!r}, asked to go on after {self._continued()[0][-40:]!r}"
            )

    def _pieces(self) -> list[str]:
        """The pieces of the answer that the host gave last, as it streams them: it is asked once more."""
        asked = [entry for entry in self._requests() if entry["path"] == "/api/chat" and entry["tokens"]]
        with _open("POST", f"{self.host}/api/chat", {**asked[-1]["request"], "stream": True}) as lines:
            pieces = [json.loads(line)["message"]["content"] for line in lines]
        return [piece for piece in pieces if piece]

    def _place(self, script: Script, pieces: list[str], awkward: bool) -> int:
        """After how many pieces the answer is broken off."""
        places = range(1, len(pieces))
        chosen = [at for at in places if script.is_awkward(pieces[at - 1][-1])] if awkward else []
        return self.dice.choice(chosen or places)

    def _broken(self, question: str, pieces: int, so_far: str, kill: bool) -> Reader:
        (writer, url), (_, other) = self.pair
        session = str(uuid.uuid4())
        reader = Reader()
        fault = "stall" if kill else "cut"
        _http("POST", f"{self.host}/sim/faults", {"fault": fault, "after_pieces": pieces, "path": "/api/chat"})
        try:
            with contextlib.suppress(OSError), _open("POST", f"{url}/api/v1/chat", _body(question, session, True)) as got:
                for _ in reader.read(got):
                    if kill and reader.text == so_far.encode():
                        writer.signal(signal.SIGKILL)
                        break
        finally:
            _http("DELETE", f"{self.host}/sim/faults")
        if not kill:
            return reader
        writer.bury()
        writer.start()
        path = f"/api/v1/chat/sessions/{session}/events?generation_id={reader.generation}"
        with _open("GET", f"{other}{path}", headers={"Last-Event-ID": str(reader.cursor)}) as rest:
            for _ in reader.read(rest):
                pass
        replicas.wait_until_live(writer, url.removeprefix("http://"))
        return reader

    def _is_the_models_doing(self, so_far: str, answer: str, expected: str) -> bool:
        """Nothing that was read is another text now, and the model alone goes another way from there, too."""
        before, prompt, options = self._continued()
        exact = so_far + self._raw(prompt + so_far, options)
        asked = before + self._raw(prompt + before, options)
        own_words = any(_alike(answer, own) for own in (exact, asked))
        return answer.startswith(so_far) and own_words and not _alike(exact, expected)

    def _continued(self) -> tuple[str, str, dict[str, Any]]:
        """What stood behind the prompt when the model was last asked to go on, the prompt, and the options."""
        opening = "<|im_start|>assistant\n"
        for entry in reversed(self._requests()):
            options = entry["options"] or {}
            if entry["path"] == "/api/generate" and options.get("num_predict") != 1:
                prompt, _, before = entry["prompt"].rpartition(opening)
                return before, prompt + opening, options
        return "", "", {}

    def _requests(self) -> list[dict[str, Any]]:
        return list(_http("GET", f"{self.host}/sim/requests")["requests"])

    def _raw(self, prompt: str, options: dict[str, Any]) -> str:
        body = {"model": _MODEL, "prompt": prompt, "raw": True, "stream": False, "options": options}
        return str(_http("POST", f"{self.host}/api/generate", body)["response"])


def _alike(one: str, other: str) -> bool:
    """The same text, but for its last characters."""
    shorter, longer = sorted((one, other), key=len)
    return longer.startswith(shorter) and len(longer) - len(shorter) <= _SLACK


def _body(question: str, session: str, stream: bool = False) -> dict[str, Any]:
    return {
        "message": question,
        "session_id": session,
        "temperature": 0,
        "max_tokens": _TOKENS,
        "stream": stream,
    }


def _open(method: str, url: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, data, headers, method=method)
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60)


def _http(method: str, url: str, body: Any = None) -> Any:
    try:
        with _open(method, url, body) as reply:
            text = reply.read()
    except urllib.error.HTTPError as error:
        raise Failure(f"{method} {url}: {error.code} {error.read().decode(errors='replace')[:300]}") from None
    return json.loads(text) if text else None


def _report(trial: _Trial) -> int:
    tallies = trial.tallies
    total = Tally(**{name: sum(getattr(tally, name) for tally in tallies.values()) for name in _COLUMNS})
    console.title("Result")
    console.line("alone", f"{trial.repeated} of {total.asked} answers are the same when asked twice")
    say(f"\n  {'':<9}" + "".join(f"{name:>10}" for name in _COLUMNS))
    for name, tally in [*tallies.items(), ("all", total)]:
        say(f"  {name:<9}" + "".join(f"{getattr(tally, column):>10}" for column in _COLUMNS))
    say(
        "\n  without: the answer has nothing of the script and was not broken off. awkward: broken off right"
        "\n  after a character that is not ASCII; in English, code and tables right after punctuation."
        "\n  reworded: the model itself goes another way after the text that was read. flawed: a character"
        "\n  is missing, doubled or another one. restarts: stream_restart events for text that was read."
    )
    for flaw in trial.flaws:
        say(f"\n{flaw}")
    return 1 if trial.flaws or total.restarts or not total.broken else 0
