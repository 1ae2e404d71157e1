"""LiteLLM over both APIs, used as its users do, against two replicas.

Usage: sdk.py URL URL: runs every check at each replica in turn, and prints one JSON object a line:
{"check": its name}.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

# It would fetch its list of prices from the network.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm  # noqa: E402

# Its hints after an error are no lines of JSON.
litellm.suppress_debug_info = True


def question(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def openai(url: str, **asked: Any) -> Any:
    return litellm.completion(model="openai/tinyllama", api_base=f"{url}/v1", api_key="not-needed",
                              max_retries=0, **asked)


def ollama(url: str, **asked: Any) -> Any:
    return litellm.completion(model="ollama_chat/tinyllama", api_base=url, **asked)


def answers(ask: Any, url: str) -> None:
    asked = question("[[tokens=20 rate=40]] go")
    reply = ask(url, messages=asked, temperature=0)
    assert reply.choices[0].finish_reason == "stop" and reply.usage.completion_tokens == 20, reply
    parts = list(ask(url, messages=asked, temperature=0, stream=True))
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == reply.choices[0].message.content and len(parts) > 3, (text, reply)


def openai_chat(url: str) -> None:
    answers(openai, url)


def openai_tools(url: str) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    weather = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    messages = question("[[call=weather]] how is it?")
    reply = openai(url, messages=messages, tools=[weather]).choices[0]
    (call,) = reply.message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "word"}, reply
    messages += [reply.message.model_dump(exclude_none=True),
                 {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    assert openai(url, messages=messages, tools=[weather]).choices[0].message.content


def openai_embeddings(url: str) -> None:
    reply = litellm.embedding(model="openai/tinyllama", input=["one", "two"], api_base=f"{url}/v1",
                              api_key="not-needed", encoding_format="float")
    assert len(reply.data) == 2 and reply.usage.prompt_tokens > 0, reply


def ollama_chat(url: str) -> None:
    answers(ollama, url)


def ollama_embeddings(url: str) -> None:
    reply = litellm.embedding(model="ollama/tinyllama", input=["one", "two"], api_base=url)
    assert len(reply.data) == 2, reply


def errors(url: str) -> None:
    try:
        litellm.completion(model="openai/nope", api_base=f"{url}/v1", api_key="not-needed",
                           max_retries=0, messages=question("hi"))
    except litellm.NotFoundError as error:
        assert error.status_code == 404, error
        return
    raise AssertionError("no NotFoundError")


CHECKS = [openai_chat, openai_tools, openai_embeddings, ollama_chat, ollama_embeddings, errors]
for check in CHECKS:
    for replica in sys.argv[1:]:
        check(replica)
    print(json.dumps({"check": check.__name__}), flush=True)
