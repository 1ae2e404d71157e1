"""Ollama's own package for Python, used as its users do, against two replicas.

Usage: sdk.py checks TOKEN URL URL: runs every check at each replica in turn, and prints one JSON object
a line: {"check": its name}. TOKEN signs in a user who may begin two turns a minute.
Usage: sdk.py full URL URL: checks the error of two replicas whose queue is full, and prints the same.
Usage: sdk.py read KEY QUESTION URL: reads the streamed chat with this idempotency key, prints
{"begun": true} at its third part, and at its end {"text", "done_reason", "eval_count",
"prompt_eval_count"}.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sys
from typing import Any, Callable

from ollama import AsyncClient, Client, ResponseError
from sdk_checks import run, show

MODEL = "tinyllama"
# A PNG of one pixel.
PIXEL = ("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJg"
         "gg==")
TOKEN, URLS = "", []


def client(url: str, key: str = "ollama") -> Client:
    return Client(url, headers={"Authorization": f"Bearer {key}"}, timeout=30)


def question(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def models(url: str) -> None:
    listed = client(url).list().models
    assert "tinyllama:latest" in [model.model for model in listed], listed
    assert listed[0].details and listed[0].details.family == "llama" and listed[0].modified_at
    described = client(url).show(MODEL)
    assert described.capabilities == ["completion"] and described.modelinfo, described
    assert described.details and described.details.format == "gguf"


def whole(url: str) -> None:
    reply = client(url).chat(MODEL, question("[[tokens=20]] tell me"), options={"temperature": 0},
                             keep_alive="5m")
    assert reply.model == MODEL and reply.done and reply.done_reason == "stop"
    assert reply.message.role == "assistant" and reply.message.content
    assert reply.eval_count == 20 and reply.prompt_eval_count, reply
    assert reply.total_duration and reply.eval_duration is not None
    loaded = [model.model for model in client(url).ps().models]
    assert loaded in ([], ["tinyllama:latest"]), loaded


def streamed(url: str) -> None:
    asked: Any = {"model": MODEL, "messages": question("[[tokens=40 rate=200]] go"),
                  "options": {"temperature": 0}}
    reply = client(url).chat(**asked)
    parts = list(client(url).chat(**asked, stream=True))
    assert "".join(part.message.content or "" for part in parts) == reply.message.content
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count == reply.eval_count and parts[-1].done_reason == "stop"
    assert len(parts) > 10, len(parts)


def generated(url: str) -> None:
    asked: Any = {"model": MODEL, "prompt": "[[tokens=10]] go", "system": "be brief",
                  "options": {"temperature": 0}}
    reply = client(url).generate(**asked)
    assert reply.response and reply.eval_count == 10
    parts = list(client(url).generate(**asked, stream=True))
    assert "".join(part.response or "" for part in parts) == reply.response
    loaded = client(url).generate(MODEL)
    assert (loaded.response, loaded.done_reason) == ("", "load"), loaded
    assert client(url).generate(MODEL, keep_alive=0).done_reason == "unload"


def asynchronous(url: str) -> None:
    async def run() -> str:
        stream = await AsyncClient(url).chat(MODEL, question("[[tokens=10]] go"), stream=True)
        return "".join([part.message.content or "" async for part in stream])
    assert asyncio.run(run())


def options(url: str) -> None:
    def ask(**options: Any) -> Any:
        asked = question("[[tokens=30]] tell me")
        return client(url).chat(MODEL, asked, options={"temperature": 0, **options})

    text = ask(num_ctx=64, num_gpu=0).message.content
    word = text.split()[4]
    stopped = ask(stop=[word, "never"])
    assert (stopped.message.content, stopped.done_reason) == (text[:text.index(word)], "stop")
    cut = ask(num_predict=3)
    assert cut.done_reason == "length" and cut.eval_count == 3
    texts = [ask(temperature=1, seed=seed).message.content for seed in [1, 1, 2]]
    assert texts[0] == texts[1] != texts[2], texts


def conversation(url: str) -> None:
    messages: list[Any] = [{"role": "system", "content": "be brief"}, *question("[[tokens=5]] one")]
    messages.append(client(url).chat(MODEL, messages).message)
    messages += question("[[tokens=5]] two")
    assert client(url).chat(MODEL, messages).message.content


def formatted(url: str) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 3}}}
    reply = client(url).chat(MODEL, question("hi"), format=schema)
    assert json.loads(reply.message.content or "") == {"age": 3}
    reply = client(url).generate(MODEL, "hi", format="json")
    assert isinstance(json.loads(reply.response), dict)


def tools(url: str) -> None:
    def weather(city: str) -> str:
        """Tells the weather.

        Args:
          city: the city
        """
        return f"[[tokens=5]] rain in {city}"

    messages: list[Any] = question("[[call=weather]] how is it?")
    reply = client(url).chat(MODEL, messages, tools=[weather])
    (call,) = reply.message.tool_calls or []
    assert call.function.name == "weather"
    result = weather(**call.function.arguments)
    messages += [reply.message, {"role": "tool", "tool_name": "weather", "content": result}]
    assert client(url).chat(MODEL, messages, tools=[weather]).message.content
    (part,) = [part for part in client(url).chat(MODEL, messages[:1], tools=[weather], stream=True)
               if part.message.tool_calls]
    assert part.message.tool_calls[0].function.arguments == call.function.arguments


def images(url: str) -> None:
    pixel = base64.b64decode(PIXEL)
    expected = f"1 images: {hashlib.sha256(pixel).hexdigest()}"
    shown: list[Any] = [{"role": "user", "content": "[[images]] what is it?", "images": [pixel]}]
    assert client(url).chat("vision", shown).message.content == expected
    parts = client(url).chat("vision", shown, stream=True)
    assert "".join(part.message.content or "" for part in parts) == expected
    assert client(url).generate("vision", "[[images]] what is it?", images=[PIXEL]).response == expected


def embedded(url: str) -> None:
    reply = client(url).embed(MODEL, ["one", "two"])
    assert len(reply.embeddings) == 2 and len(reply.embeddings[0]) == len(reply.embeddings[1])
    assert reply.prompt_eval_count
    assert client(url).embed(MODEL, "one").embeddings[0] == reply.embeddings[0]
    assert client(url).embeddings(MODEL, "one").embedding


def raises(status: int, words: str, call: Callable[[], object]) -> ResponseError:
    try:
        reply = call()
        if not hasattr(reply, "model"):
            list(reply)  # type: ignore[call-overload]
    except ResponseError as error:
        assert error.status_code == status and words in error.error, error
        return error
    raise AssertionError(f"no ResponseError: {status} {words}")


def errors(url: str) -> None:
    def ask(key: str = "ollama", **changed: Any) -> Callable[[], object]:
        asked = {"model": MODEL, "messages": question("hi"), **changed}
        return lambda: client(url, key).chat(**asked)

    for stream in [False, True]:
        raises(404, "model 'no' not found", ask(model="no", stream=stream))
        raises(400, "must be a number", ask(options={"top_p": "x"}, stream=stream))
        raises(400, "too long", ask(messages=question("long " * 100_000), stream=stream))
        # The host alone can count these: the error comes after the turn was accepted.
        long = question("[[tokens=1]] " + "a b c d " * 3_000)
        raises(400, "too long", ask(messages=long, stream=stream))
        raises(401, "", ask(key="sk-jarvis-wrong", stream=stream))
    raises(403, "operator", lambda: client(url).pull("other"))
    raises(403, "operator", lambda: client(url).delete(MODEL))
    raises(404, "model 'no' not found", lambda: client(url).show("no"))
    raises(404, "model 'no' not found", lambda: client(url).embed("no", "x"))


def queue_full(url: str) -> None:
    for stream in [False, True]:
        raises(503, "server busy", lambda: client(url).chat(MODEL, question("hi"), stream=stream))
        raises(503, "server busy", lambda: client(url).generate(MODEL, "hi", stream=stream))


def rate_limit(url: str) -> None:
    def ask() -> object:
        return client(url, TOKEN).chat(MODEL, question("[[tokens=1]] hi"))

    if url == URLS[0]:
        ask(), ask()
    raises(429, "", ask)


def error_in_a_stream(url: str) -> None:
    if url != URLS[0]:
        return  # It takes seconds until a host is given up.
    seen = 0
    try:
        asked = question("[[tokens=500 fault=cut@3!]] go")
        for part in client(url).chat(MODEL, asked, stream=True):
            seen += len(part.message.content or "")
    except ResponseError as error:
        assert error.status_code == -1 and "broke off" in error.error, error
        assert seen > 0
        return
    raise AssertionError("no ResponseError")


CHECKS = [models, whole, streamed, generated, asynchronous, options, conversation, formatted,
          tools, images, embedded, errors, rate_limit, error_in_a_stream]


def read(key: str, text: str, url: str) -> None:
    reading = Client(url, headers={"Idempotency-Key": key}, timeout=60)
    stream = reading.chat(MODEL, question(text), stream=True, options={"temperature": 0})
    answer, last = "", None
    for number, part in enumerate(stream):
        if number == 2:
            show({"begun": True})
        answer, last = answer + (part.message.content or ""), part
    assert last and last.done
    show({"text": answer, "done_reason": last.done_reason, "eval_count": last.eval_count,
          "prompt_eval_count": last.prompt_eval_count})


if sys.argv[1] == "read":
    read(*sys.argv[2:5])
else:
    if sys.argv[1] == "full":
        CHECKS, URLS = [queue_full], sys.argv[2:]
    else:
        TOKEN, *URLS = sys.argv[2:]
    run(CHECKS, URLS)
