"""The cases of Open Responses' compliance suite, against two replicas: what comes back is validated by the
types that are generated from its description (PyPI: openresponses-types). They are the seven cases of
`src/lib/compliance-tests.ts` of github.com/openresponses/openresponses at the commit 0cb939cc, and those of
the commit 18e56560 that need no vector store and no search.

Usage: sdk.py URL URL: runs every case at each replica in turn, streamed and not, and prints one JSON object
a line: {"check": its name}.
"""

from __future__ import annotations

import json
import sys
from enum import Enum
from typing import Any, get_args

import httpx
from openresponses_types import types

# A PNG of one pixel.
PIXEL = ("data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpf"
         "ZFQAAAAABJRU5ErkJggg==")
TOOL = {"type": "function", "name": "get_weather", "description": "The weather.", "parameters": {
    "type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}}


def kind_of(event: Any) -> str:
    """Returns the type that events of this class have."""
    kind = event.model_fields["type"].annotation
    is_enum = isinstance(kind, type) and issubclass(kind, Enum)
    return next(iter(kind)).value if is_enum else get_args(kind)[0]


EVENTS = {kind_of(event): event for name, event in vars(types).items()
          if name.endswith("StreamingEvent")}


def without_schema(response: Any) -> Any:
    """Returns a response whose format shows no schema: the description has no type for that but null."""
    form = response["text"]["format"]
    shown = {**form, "schema": None} if form["type"] == "json_schema" else form
    return {**response, "text": {**response["text"], "format": shown}}


def validated(response: Any) -> Any:
    types.ResponseResource.model_validate(without_schema(response))
    return response


def whole(url: str, request: dict[str, Any]) -> Any:
    reply = httpx.post(f"{url}/v1/responses", json=request, timeout=30)
    assert reply.status_code == 200, reply.text
    return validated(reply.json())


def streamed(url: str, request: dict[str, Any]) -> Any:
    reply = httpx.post(f"{url}/v1/responses", json={**request, "stream": True}, timeout=30)
    assert reply.status_code == 200, reply.text
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines()
             if line.startswith("data: ")]
    events = [json.loads(line) for line in lines]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        if "response" in event:
            event = {**event, "response": without_schema(event["response"])}
        EVENTS[event["type"]].model_validate(event)
    return validated(events[-1]["response"])


def message(role: str, content: Any) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": content}


def answers(url: str, input: list[Any], status: str = "completed", kind: str = "message",
            **asked: Any) -> None:
    request = {"model": "tinyllama", "input": input, **asked}
    for ask in [whole, streamed]:
        response = ask(url, request)
        assert response["status"] == status, response
        assert response["output"][0]["type"] == kind, response


def text(url: str) -> None:
    answers(url, [message("user", "Say hello.")])


def system_prompt(url: str) -> None:
    answers(url, [message("system", "Be a pirate."), message("user", "Say hello.")])
    answers(url, [message("user", "Say hello.")], instructions="Be a pirate.", metadata={"a": "b"})


def tool(url: str) -> None:
    asked = [message("user", "[[call=get_weather]] How is it?")]
    for more in [{}, {"strict": True}]:
        answers(url, asked, kind="function_call", tools=[{**TOOL, **more}])
    answers(url, asked, kind="function_call", tools=[TOOL], parallel_tool_calls=False)


def image(url: str) -> None:
    shown = [{"type": "input_text", "text": "What is it?"}, {"type": "input_image", "image_url": PIXEL}]
    answers(url, [message("user", shown)], model="vision")


def conversation(url: str) -> None:
    answers(url, [message("user", "My name is Alice."), message("assistant", "Hello Alice!"),
                  message("user", "What is my name?")])


def chained(url: str) -> None:
    first = whole(url, {"model": "tinyllama", "input": "Remember the word papaya."})
    answers(url, [message("user", "Which word is it?")], previous_response_id=first["id"])


def round_trip(url: str) -> None:
    """The suite makes the model call its tool by `tool_choice`, which is refused here: see below."""
    asked = [message("user", "[[call=get_weather]] How is it?")]
    first = whole(url, {"model": "tinyllama", "input": asked, "tools": [TOOL]})
    (call,) = first["output"]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "64 degrees"}
    answers(url, [output], previous_response_id=first["id"])


def refused(url: str) -> None:
    """Checks the parameters of two cases that this service does not support."""
    file = {"type": "input_file", "filename": "title.pdf",
            "file_data": "data:application/pdf;base64,JVBERi0="}
    chosen = {"type": "function", "name": "get_weather"}
    for param, asked in [
        ("tool_choice", {"input": "How is it?", "tools": [TOOL], "tool_choice": chosen}),
        ("input[0].content[0].type", {"input": [message("user", [file])]}),
    ]:
        for stream in [False, True]:
            request = {"model": "tinyllama", "stream": stream, **asked}
            reply = httpx.post(f"{url}/v1/responses", json=request, timeout=30)
            error = reply.json()["error"]
            got = (reply.status_code, error["param"], error["code"])
            assert got == (400, param, "unsupported_value"), reply.text


def structured(url: str) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    named = {"type": "json_schema", "name": "city", "schema": schema}
    for strict in [True, False, None]:
        answers(url, [message("user", "a city")], text={"format": {**named, "strict": strict}})
    answers(url, [message("user", "a city")], text={"format": {"type": "json_object"}})


def incomplete(url: str) -> None:
    answers(url, [message("user", "[[tokens=20]] x")], status="incomplete", max_output_tokens=3)


def failed(url: str) -> None:
    request = {"model": "tinyllama", "input": "[[call=get_weather wrong]]", "background": True,
               "tools": [{**TOOL, "strict": True}]}
    response = streamed(url, request)
    assert (response["status"], response["output"]) == ("failed", []), response
    other = httpx.get(f"{url}/v1/responses/{response['id']}").json()
    assert validated(other) == response


for check in [text, system_prompt, tool, image, conversation, chained, round_trip, refused, structured,
              incomplete, failed]:
    for replica in sys.argv[1:]:
        check(replica)
    print(json.dumps({"check": check.__name__}), flush=True)
