"""OpenAI's own package for Python, used as its users do, against two replicas.

Usage: sdk.py checks TOKEN URL URL: runs every check at each replica in turn, and prints one JSON object
a line: {"check": its name}. TOKEN signs in a user who may begin two turns a minute.
Usage: sdk.py full URL URL: checks the error of two replicas whose queue is full, and prints the same.
Usage: sdk.py read KEY QUESTION URL: reads the streamed completion with this idempotency key, prints
{"begun": true} at its third chunk, and at its end {"text", "finish_reason", "usage"}.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import json
import struct
import sys
from typing import Any, Callable

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel
from sdk_checks import run, show

MODEL = "tinyllama"
# A PNG of one pixel.
PIXEL = ("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJg"
         "gg==")
TOKEN, URLS = "", []


def client(url: str, key: str = "not-needed") -> OpenAI:
    # The package then raises where a reply differs from OpenAI's description.
    return OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=30,
                  _strict_response_validation=True)


def question(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def models(url: str) -> None:
    listed = [model.id for model in client(url).models.list()]
    assert "tinyllama:latest" in listed, listed
    assert client(url).models.retrieve("tinyllama").id == "tinyllama:latest"


def whole(url: str) -> None:
    reply = client(url).chat.completions.create(
        model=MODEL, messages=question("[[tokens=20]] tell me"), temperature=0, top_p=1, user="me",
        presence_penalty=0.1, frequency_penalty=0.1, n=1)
    assert reply.model == MODEL and reply.object == "chat.completion"
    assert reply.choices[0].message.role == "assistant" and reply.choices[0].message.content
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage and reply.usage.completion_tokens == 20, reply.usage
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 20
    assert reply._request_id


def streamed(url: str) -> None:
    asked: Any = {"model": MODEL, "messages": question("[[tokens=40 rate=200]] go"), "temperature": 0}
    reply = client(url).chat.completions.create(**asked)
    stream = client(url).chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == reply.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage == reply.usage and not chunks[-1].choices
    assert len(chunks) > 10, len(chunks)


def helper(url: str) -> None:
    with client(url).chat.completions.stream(
            model=MODEL, messages=question("[[tokens=10]] go")) as stream:
        events = [event.type for event in stream]
        assert "content.delta" in events and "content.done" in events, events
        assert stream.get_final_completion().choices[0].message.content


def asynchronous(url: str) -> None:
    async def run() -> str:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model=MODEL, messages=question("[[tokens=10]] go"), stream=True)
            return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
    assert asyncio.run(run())


def stop_and_limit(url: str) -> None:
    create: Any = client(url).chat.completions.create
    asked: Any = {"model": MODEL, "messages": question("[[tokens=30]] tell me"), "temperature": 0}
    text = create(**asked).choices[0].message.content
    word = text.split()[4]
    stopped = create(**asked, stop=[word, "never"]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (text[:text.index(word)], "stop")
    for name in ["max_tokens", "max_completion_tokens"]:
        cut = create(**asked, **{name: 3})
        assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 3


def seed(url: str) -> None:
    create: Any = client(url).chat.completions.create
    asked: Any = {"model": MODEL, "messages": question("[[tokens=20]] tell me"), "temperature": 1}
    texts = [create(**asked, seed=seed).choices[0].message.content for seed in [1, 1, 2]]
    assert texts[0] == texts[1] != texts[2], texts


def conversation(url: str) -> None:
    create: Any = client(url).chat.completions.create
    messages: list[Any] = [{"role": "developer", "content": "be brief"}, *question("[[tokens=5]] one")]
    messages.append(create(model=MODEL, messages=messages).choices[0].message)
    messages += question("[[tokens=5]] two")
    assert create(model=MODEL, messages=messages).choices[0].message.content


class City(BaseModel):
    name: str
    people: int


def json_schema(url: str) -> None:
    parsed = client(url).chat.completions.parse(
        model=MODEL, messages=question("a city"), response_format=City)
    city = parsed.choices[0].message.parsed
    assert city and (city.name, city.people) == ("word", 7), parsed
    with client(url).chat.completions.stream(
            model=MODEL, messages=question("a city"), response_format=City) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == city


def tools(url: str) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    asked: Any = {"model": MODEL, "tools": [tool]}
    messages: list[Any] = question("[[call=weather]] how is it?")
    create: Any = client(url).chat.completions.create
    reply = create(**asked, messages=messages).choices[0]
    call = reply.message.tool_calls[0]
    assert reply.finish_reason == "tool_calls" and call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"city": "word"}
    with client(url).chat.completions.stream(**asked, messages=messages) as stream:
        final = stream.get_final_completion().choices[0].message.tool_calls
        assert final[0].function.arguments == call.function.arguments
    messages += [reply.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    assert create(**asked, messages=messages).choices[0].finish_reason == "stop"


class Weather(BaseModel):
    """The weather of a city."""

    city: str


def strict_tools(url: str) -> None:
    def ask(text: str, **asked: Any) -> Any:
        tools = [openai.pydantic_function_tool(Weather)]
        return client(url).chat.completions.parse(
            model=MODEL, messages=question(text), tools=tools, **asked)

    call = "[[call=Weather]]"
    calls = ask(f"{call} and {call}").choices[0].message.tool_calls
    assert [it.function.parsed_arguments for it in calls] == [Weather(city="word")] * 2, calls
    calls = ask(f"{call} and {call}", parallel_tool_calls=False).choices[0].message.tool_calls
    assert [it.function.parsed_arguments for it in calls] == [Weather(city="word")], calls
    raises(openai.InternalServerError, 502, "tool_call_invalid", None,
           lambda: ask("[[call=Weather wrong]]"))
    for choice in ["required", {"type": "function", "function": {"name": "Weather"}}]:
        raises(openai.BadRequestError, 400, "unsupported_value", "tool_choice",
               lambda: ask(call, tool_choice=choice))
    named: list[Any] = [{"role": "user", "name": "ada", "content": "hi"}]
    raises(openai.BadRequestError, 400, "unsupported_parameter", "messages[0].name",
           lambda: client(url).chat.completions.create(model=MODEL, messages=named))


def carried(url: str) -> None:
    """The message of a helper is sent again as it came, and the next question is answered."""
    completions = client(url).chat.completions
    for text, asked in [("[[tokens=5]] hi", {}), ("a city", {"response_format": City}),
                        ("[[call=Weather]] hi", {"tools": [openai.pydantic_function_tool(Weather)]})]:
        first: Any = {"model": MODEL, "messages": question(text), **asked}
        with completions.stream(**first) as stream:
            replies = [completions.parse(**first), stream.get_final_completion()]
        for message in [reply.choices[0].message for reply in replies]:
            messages: list[Any] = [*question(text), message]
            for call in message.tool_calls or []:
                messages.append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})
            assert (len(messages) == 3) == ("tools" in asked), messages
            messages += question("[[tokens=5]] and then?")
            assert completions.create(model=MODEL, messages=messages).choices[0].message.content
            with completions.stream(**{**first, "messages": messages}) as stream:
                assert stream.get_final_completion().choices[0].message.content


def embedded(url: str) -> None:
    asked: Any = {"model": MODEL, "input": ["one", "two"]}
    # The package requests base64 unless it is told otherwise, and decodes it after it has validated
    # the reply, which the strict validation takes for an error.
    lenient = OpenAI(base_url=f"{url}/v1", api_key="not-needed", max_retries=0, timeout=30)
    coded = lenient.embeddings.create(**asked)
    plain = client(url).embeddings.create(**asked, encoding_format="float")
    assert [item.index for item in coded.data] == [0, 1]
    single = [struct.unpack("f", struct.pack("f", number))[0] for number in plain.data[1].embedding]
    assert coded.data[1].embedding == single, coded
    assert coded.usage.prompt_tokens == coded.usage.total_tokens > 0
    short = lenient.embeddings.create(model=MODEL, input="one", dimensions=4)
    assert len(short.data[0].embedding) == 4
    raises(openai.BadRequestError, 400, "unsupported_value", "input",
           lambda: client(url).embeddings.create(model=MODEL, input=[1, 2]))


def images(url: str) -> None:
    digest = hashlib.sha256(base64.b64decode(PIXEL)).hexdigest()
    shown: list[Any] = [{"role": "user", "content": [
        {"type": "text", "text": "[[images]] what is it?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}]}]
    create: Any = client(url).chat.completions.create
    reply = create(model="vision", messages=shown).choices[0].message.content
    assert reply == f"1 images: {digest}", reply
    chunks = create(model="vision", messages=shown, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == reply
    shown[0]["content"][1]["image_url"]["url"] = "https://example.org/x.png"
    raises(openai.BadRequestError, 400, "unsupported_value", "messages[0].content[1].image_url.url",
           lambda: create(model="vision", messages=shown))


def raises(kind: type[openai.APIStatusError], status: int, code: str, param: str | None,
           call: Callable[[], object]) -> openai.APIStatusError:
    try:
        call()
    except openai.APIStatusError as error:
        assert type(error) is kind, repr(error)
        assert (error.status_code, error.code, error.param) == (status, code, param), repr(error)
        assert error.request_id and error.message
        return error
    raise AssertionError(f"no {kind.__name__}")


def errors(url: str) -> None:
    def ask(key: str = "not-needed", **changed: Any) -> Callable[[], object]:
        asked = {"model": MODEL, "messages": question("hi"), **changed}
        return lambda: client(url, key).chat.completions.create(**asked)

    for stream in [False, True]:
        raises(openai.NotFoundError, 404, "model_not_found", "model", ask(model="no", stream=stream))
        raises(openai.BadRequestError, 400, "unsupported_value", "n", ask(n=2, stream=stream))
        raises(openai.BadRequestError, 400, "invalid_value", "messages[0].role",
               ask(messages=[{"role": "robot", "content": "x"}], stream=stream))
        long = question("long " * 100_000)
        raises(openai.BadRequestError, 400, "context_length_exceeded", "messages",
               ask(messages=long, stream=stream))
        # The host alone can count these: the error comes after the turn was accepted.
        long = question("[[tokens=1]] " + "a b c d " * 3_000)
        raises(openai.BadRequestError, 400, "context_length_exceeded", "messages",
               ask(messages=long, stream=stream))
        raises(openai.AuthenticationError, 401, "invalid_api_key", None,
               ask(key="sk-jarvis-wrong", stream=stream))


def queue_full(url: str) -> None:
    asks: list[Callable[[bool], object]] = [
        lambda stream: client(url).chat.completions.create(
            model=MODEL, messages=question("hi"), stream=stream),
        lambda stream: client(url).responses.create(model=MODEL, input="hi", stream=stream),
    ]
    for ask in asks:
        for stream in [False, True]:
            error = raises(openai.InternalServerError, 503, "queue_full", None, lambda: ask(stream))
            assert int(error.response.headers["retry-after"]) > 0


def rate_limit(url: str) -> None:
    def ask() -> object:
        return client(url, TOKEN).chat.completions.create(
            model=MODEL, messages=question("[[tokens=1]] hi"))

    if url == URLS[0]:
        ask(), ask()
    error = raises(openai.RateLimitError, 429, "rate_limit_exceeded", None, ask)
    assert int(error.response.headers["retry-after"]) > 0
    assert error.response.headers["x-ratelimit-remaining-requests"] == "0"


def error_in_a_stream(url: str) -> None:
    if url != URLS[0]:
        return  # It takes seconds until a host is given up.
    asked: Any = {"model": MODEL, "messages": question("[[tokens=500 fault=cut@3!]] go")}
    stream = client(url).chat.completions.create(**asked, stream=True)
    seen = 0
    try:
        for chunk in stream:
            seen += len(chunk.choices[0].delta.content or "")
    except openai.APIError as error:
        assert error.code in ("upstream_interrupted", "upstream_error"), repr(error.body)
        assert seen > 0
        return
    raise AssertionError("no APIError")


CHECKS = [models, whole, streamed, helper, asynchronous, stop_and_limit, seed, conversation,
          json_schema, tools, strict_tools, carried, images, embedded, errors, rate_limit,
          error_in_a_stream]


def read(key: str, text: str, url: str) -> None:
    stream = client(url).chat.completions.create(
        model=MODEL, messages=question(text), temperature=0, stream=True,
        stream_options={"include_usage": True}, extra_headers={"Idempotency-Key": key})
    answer, finish_reason, usage = "", None, None
    for number in itertools.count():
        chunk = next(stream, None)
        if chunk is None:
            break
        if number == 2:
            show({"begun": True})
        if chunk.choices:
            answer += chunk.choices[0].delta.content or ""
            finish_reason = chunk.choices[0].finish_reason or finish_reason
        usage = chunk.usage.to_dict() if chunk.usage else usage
    show({"text": answer, "finish_reason": finish_reason, "usage": usage})


if sys.argv[1] == "read":
    read(*sys.argv[2:5])
else:
    if sys.argv[1] == "full":
        CHECKS, URLS = [queue_full], sys.argv[2:]
    else:
        TOKEN, *URLS = sys.argv[2:]
    run(CHECKS, URLS)
