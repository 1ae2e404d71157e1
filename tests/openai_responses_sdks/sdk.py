"""OpenAI's own package for Python asks for responses, as its users do, of two replicas.

Usage: sdk.py checks TOKEN URL URL: runs every check at each replica in turn, and prints one JSON object a
line: {"check": its name}. The second replica continues the answers that the first one began. TOKEN signs in
a user who may begin two turns a minute.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sys
import time
from typing import Any, Callable

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel
from sdk_checks import run

MODEL = "tinyllama"
# A PNG of one pixel.
PIXEL = ("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJg"
         "gg==")
TOKEN = ""
URLS: list[str] = []


def client(url: str, key: str = "not-needed") -> OpenAI:
    # The package then raises where a reply differs from OpenAI's description.
    return OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=30,
                  _strict_response_validation=True)


def other(url: str) -> OpenAI:
    return client(URLS[1 - URLS.index(url)])


def ended(of: OpenAI, id: str) -> Any:
    for _ in range(300):
        response = of.responses.retrieve(id)
        if response.status not in ("queued", "in_progress"):
            return response
        time.sleep(0.1)
    raise AssertionError(response)


def whole(url: str) -> None:
    response = client(url).responses.create(
        model=MODEL, input="[[tokens=20]] tell me", instructions="be brief", temperature=0, top_p=1,
        metadata={"a": "b"}, max_output_tokens=100, user="me")
    assert response.status == "completed" and response.output_text, response
    assert response.usage and response.usage.output_tokens == 20, response.usage
    assert response.usage.total_tokens == response.usage.input_tokens + 20
    assert response.metadata == {"a": "b"} and response.instructions == "be brief"
    assert response._request_id
    assert other(url).responses.retrieve(response.id).to_dict() == response.to_dict()
    cut = client(url).responses.create(model=MODEL, input="[[tokens=20]] x", max_output_tokens=3)
    assert cut.status == "incomplete" and cut.incomplete_details
    assert cut.incomplete_details.reason == "max_output_tokens"


def streamed(url: str) -> None:
    stream = client(url).responses.create(
        model=MODEL, input="[[tokens=40 rate=200]] go", temperature=0, stream=True)
    events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text and len(events) > 20
    for after in [0, 1, 2, 7, len(events) - 2]:
        rest = other(url).responses.retrieve(
            events[0].response.id, stream=True, starting_after=after)
        assert [event.to_dict() for event in rest] == [e.to_dict() for e in events[after + 1:]]


def helper(url: str) -> None:
    with client(url).responses.stream(model=MODEL, input="[[tokens=10]] go") as stream:
        kinds = [event.type for event in stream]
        assert "response.output_text.delta" in kinds and "response.completed" in kinds, kinds
        final = stream.get_final_response()
    assert final.output_text
    with other(url).responses.stream(response_id=final.id, starting_after=3) as stream:
        assert [event.sequence_number for event in stream][0] == 4


def asynchronous(url: str) -> None:
    async def run() -> str:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
            stream = await client.responses.create(
                model=MODEL, input="[[tokens=10]] go", stream=True)
            deltas = [e.delta async for e in stream if e.type == "response.output_text.delta"]
            return "".join(deltas)
    assert asyncio.run(run())


def background(url: str) -> None:
    response = client(url).responses.create(
        model=MODEL, input="[[tokens=60 rate=100]] go", temperature=0, background=True)
    assert response.status == "queued" and response.background
    events = list(other(url).responses.retrieve(response.id, stream=True, starting_after=0))
    assert [event.sequence_number for event in events] == list(range(1, len(events) + 1))
    final = ended(client(url), response.id)
    assert events[-1].response.output_text == final.output_text
    # A stream that its client leaves goes on at the other replica behind its last event.
    stream = client(url).responses.create(
        model=MODEL, input="[[tokens=60 rate=100]] go", temperature=0, background=True, stream=True)
    first = [next(stream) for _ in range(9)]
    stream.close()
    id, last = first[0].response.id, first[-1].sequence_number
    rest = list(other(url).responses.retrieve(id, stream=True, starting_after=last))
    assert [e.sequence_number for e in first + rest] == list(range(len(first + rest)))
    text = "".join(e.delta for e in first + rest if e.type == "response.output_text.delta")
    assert text == final.output_text


def cancel_and_delete(url: str) -> None:
    response = client(url).responses.create(
        model=MODEL, input="[[tokens=2000 rate=20]] go", background=True)
    assert other(url).responses.cancel(response.id).status == "cancelled"
    assert client(url).responses.retrieve(response.id).status == "cancelled"
    other(url).responses.delete(response.id)
    try:
        client(url).responses.retrieve(response.id)
    except openai.NotFoundError as error:
        assert error.code == "response_not_found", repr(error)
        return
    raise AssertionError("not deleted")


def conversation(url: str) -> None:
    first = client(url).responses.create(model=MODEL, input="[[tokens=5]] one")
    second = other(url).responses.create(
        model=MODEL, input=[{"role": "user", "content": "[[tokens=5]] two"}],
        previous_response_id=first.id)
    assert second.output_text and second.previous_response_id == first.id
    items = client(url).responses.input_items.list(second.id).data
    assert [item.content[0].text for item in items] == ["[[tokens=5]] two"], items
    # A client may also carry the items itself.
    messages: list[Any] = [{"role": "user", "content": "[[tokens=5]] one"}, *first.output,
                           {"role": "user", "content": "[[tokens=5]] two"}]
    assert client(url).responses.create(model=MODEL, input=messages).output_text


def conversations(url: str) -> None:
    here, there = client(url), other(url)
    created = here.conversations.create(
        metadata={"topic": "demo"}, items=[{"type": "message", "role": "user", "content": "Hello!"}])
    assert created.object == "conversation" and created.metadata == {"topic": "demo"}, created
    assert there.conversations.retrieve(created.id).to_dict() == created.to_dict()
    changed = there.conversations.update(created.id, metadata={"topic": "more"})
    assert changed.metadata == {"topic": "more"}
    first = here.responses.create(model=MODEL, input="[[tokens=5]] one", conversation=created.id)
    assert first.output_text and first.conversation and first.conversation.id == created.id
    events = list(there.responses.create(
        model=MODEL, input="[[tokens=40 rate=200]] two", conversation={"id": created.id}, stream=True))
    second = events[-1].response
    assert second.status == "completed", second
    rest = list(here.responses.retrieve(second.id, stream=True, starting_after=3))
    assert [event.to_dict() for event in rest] == [event.to_dict() for event in events[4:]]
    assert there.responses.retrieve(first.id).to_dict() == first.to_dict()
    background = here.responses.create(
        model=MODEL, input="[[tokens=5]] three", conversation=created.id, background=True)
    assert ended(there, background.id).status == "completed"
    added = there.conversations.items.create(
        created.id, items=[{"role": "user", "content": "by the way"}])
    assert len(added.data) == 1 and added.data[0].type == "message", added
    items = list(there.conversations.items.list(created.id, order="asc", limit=3))
    texts = [item.content[0].text for item in items]
    assert texts[:2] == ["Hello!", "[[tokens=5]] one"] and texts[2] == first.output_text, texts
    assert len(items) == 8 and texts[-1] == "by the way", texts
    assert [item.id for item in here.conversations.items.list(created.id)] == [
        item.id for item in reversed(items)]
    again = here.conversations.items.retrieve(items[2].id, conversation_id=created.id)
    assert again.to_dict() == items[2].to_dict()
    here.responses.delete(first.id)
    for gone in [lambda: there.responses.retrieve(first.id),
                 lambda: there.conversations.retrieve("conv_" + "1" * 32)]:
        try:
            gone()
        except openai.NotFoundError:
            continue
        raise AssertionError("not a 404")
    deleted = there.conversations.delete(created.id)
    assert deleted.deleted and deleted.object == "conversation.deleted", deleted
    try:
        here.responses.create(model=MODEL, input="x", conversation=created.id)
    except openai.NotFoundError as error:
        assert error.code == "conversation_not_found", repr(error)
        return
    raise AssertionError("not deleted")


def tools_in_conversation(url: str) -> None:
    tool: Any = {"type": "function", "name": "weather", "strict": False,
                 "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    id = client(url).conversations.create().id
    reply = client(url).responses.create(
        model=MODEL, tools=[tool], input="[[call=weather]] and [[call=weather]]", conversation=id)
    outputs: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
                    for call in reply.output if call.type == "function_call"]
    assert len(outputs) == 2, reply
    answered = other(url).responses.create(
        model=MODEL, tools=[tool], input=outputs, conversation=id)
    assert answered.output_text
    kinds = [item.type for item in client(url).conversations.items.list(id, order="asc")]
    assert kinds == ["message", "function_call", "function_call", "function_call_output",
                     "function_call_output", "message"], kinds


class City(BaseModel):
    name: str
    people: int


def json_schema(url: str) -> None:
    parsed = client(url).responses.parse(model=MODEL, input="a city", text_format=City)
    city = parsed.output_parsed
    assert city and (city.name, city.people) == ("word", 7), parsed


def tools(url: str) -> None:
    tool: Any = {"type": "function", "name": "weather", "strict": False,
                 "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    messages: list[Any] = [{"role": "user", "content": "[[call=weather]] how is it?"}]
    create: Any = client(url).responses.create
    reply = create(model=MODEL, tools=[tool], input=messages)
    call = reply.output[0]
    assert call.type == "function_call" and call.name == "weather", reply
    assert json.loads(call.arguments) == {"city": "word"}
    events = list(create(model=MODEL, tools=[tool], input=messages, stream=True))
    assert "response.function_call_arguments.done" in [event.type for event in events]
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    carried = create(model=MODEL, tools=[tool], input=[*messages, *reply.output, output])
    assert carried.output_text
    chained: Any = other(url).responses.create(
        model=MODEL, tools=[tool], input=[output], previous_response_id=reply.id)
    assert chained.output_text


class Weather(BaseModel):
    """The weather of a city."""

    city: str


def strict_tools(url: str) -> None:
    def ask(text: str, **asked: Any) -> Any:
        tools: Any = [openai.pydantic_function_tool(Weather)]
        return client(url).responses.parse(model=MODEL, input=text, tools=tools, **asked)

    call = "[[call=Weather]]"
    for parallel, count in [(True, 2), (False, 1)]:
        response = ask(f"{call} and {call}", parallel_tool_calls=parallel)
        given = [item.parsed_arguments for item in response.output]
        assert given == [Weather(city="word")] * count, response
        assert response.parallel_tool_calls == parallel and response.tools[0].strict is True
    failed = ask("[[call=Weather wrong]]", background=True)
    failed = ended(other(url), failed.id)
    assert failed.status == "failed" and not failed.output, failed
    assert failed.error.code == "server_error" and failed.error.type == "tool_call_invalid"


def carried(url: str) -> None:
    """The items of a helper's response are sent again as they came, and the next question is answered."""
    tools: Any = [openai.pydantic_function_tool(Weather)]
    for text, asked in [("[[tokens=5]] hi", {}), ("a city", {"text_format": City}),
                        ("[[call=Weather]] hi", {"tools": tools})]:
        first: Any = {"model": MODEL, "input": text, **asked}
        responses = client(url).responses
        with responses.stream(**first) as stream:
            stream.until_done()
            replies = [responses.parse(**first), stream.get_final_response()]
        for reply in replies:
            calls = [item for item in reply.output if item.type == "function_call"]
            assert len(calls) == len(asked.get("tools", [])), reply
            items: list[Any] = [{"role": "user", "content": text}, *reply.output]
            items += [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
                      for call in calls]
            items.append({"role": "user", "content": "[[tokens=5]] and then?"})
            assert other(url).responses.create(model=MODEL, input=items).output_text


def images(url: str) -> None:
    digest = hashlib.sha256(base64.b64decode(PIXEL)).hexdigest()
    shown: Any = [{"role": "user", "content": [
        {"type": "input_text", "text": "[[images]] what is it?"},
        {"type": "input_image", "detail": "auto", "image_url": f"data:image/png;base64,{PIXEL}"}]}]
    create: Any = client(url).responses.create
    text = create(model="vision", input=shown).output_text
    assert text == f"1 images: {digest}", text
    events = create(model="vision", input=shown, stream=True)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == text, deltas


def raises(kind: type[openai.APIStatusError], code: str, param: str | None,
           call: Callable[[], object]) -> openai.APIStatusError:
    try:
        call()
    except openai.APIStatusError as error:
        assert type(error) is kind, repr(error)
        assert (error.code, error.param) == (code, param), repr(error)
        return error
    raise AssertionError(f"no {kind.__name__}")


def errors(url: str) -> None:
    def ask(key: str = "not-needed", **changed: Any) -> Callable[[], object]:
        asked: Any = {"model": MODEL, "input": "hi", **changed}
        return lambda: client(url, key).responses.create(**asked)

    for changed, kind, code, param in [
        ({"model": "no"}, openai.NotFoundError, "model_not_found", "model"),
        ({"conversation": "c"}, openai.BadRequestError, "invalid_value", "conversation"),
        ({"previous_response_id": "resp_0"}, openai.BadRequestError,
         "previous_response_not_found", "previous_response_id"),
        ({"input": "a b c d " * 3_000}, openai.BadRequestError, "context_length_exceeded", "input"),
    ]:
        for stream in [False, True]:
            raises(kind, code, param, ask(**changed, stream=stream))
    for stream in [False, True]:
        raises(openai.AuthenticationError, "invalid_api_key", None,
               ask(key="sk-jarvis-wrong", stream=stream))


def rate_limit(url: str) -> None:
    def ask() -> object:
        return client(url, TOKEN).responses.create(model=MODEL, input="[[tokens=1]] hi")

    if url == URLS[0]:
        ask(), ask()
    error = raises(openai.RateLimitError, "rate_limit_exceeded", None, ask)
    assert int(error.response.headers["retry-after"]) > 0


CHECKS = [whole, streamed, helper, asynchronous, background, cancel_and_delete, conversation,
          conversations, tools_in_conversation, json_schema, tools, strict_tools, carried, images,
          errors, rate_limit]

TOKEN, *URLS = sys.argv[2:]
run(CHECKS, URLS)
