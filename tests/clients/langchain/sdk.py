"""LangChain over both APIs, used as its users do, against two replicas.

Usage: sdk.py URL URL: runs every check at each replica in turn, and prints one JSON object a line:
{"check": its name}.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import openai as openai_package
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_ollama import ChatOllama, OllamaEmbeddings
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

MODEL = "tinyllama"


def openai(url: str) -> Any:
    return ChatOpenAI(model=MODEL, base_url=f"{url}/v1", api_key="not-needed", temperature=0,
                      max_retries=0, stream_usage=True)


def ollama(url: str) -> Any:
    return ChatOllama(model=MODEL, base_url=url, temperature=0)


class City(BaseModel):
    name: str
    people: int


def weather(city: str) -> str:
    """Tells the weather of a city."""
    return f"[[tokens=5]] rain in {city}"


def answers(chat: Any) -> None:
    asked = [SystemMessage("be brief"), HumanMessage("[[tokens=5]] one"), AIMessage("a"),
             HumanMessage("[[tokens=20 rate=40]] two")]
    reply = chat.invoke(asked)
    assert reply.content and reply.usage_metadata["output_tokens"] == 20, reply
    whole = None
    for number, part in enumerate(chat.stream(asked), 1):
        whole = part if whole is None else whole + part
    assert whole.content == reply.content and number > 3, (number, whole)
    assert whole.usage_metadata["output_tokens"] == 20, whole.usage_metadata


def calls(chat: Any) -> None:
    asking: list[Any] = [HumanMessage("[[call=weather]] how is it?")]
    bound = chat.bind_tools([weather])
    reply = bound.invoke(asking)
    (call,) = reply.tool_calls
    assert call["name"] == "weather" and call["args"] == {"city": "word"}, reply
    result = ToolMessage(weather(**call["args"]), tool_call_id=call["id"])
    assert bound.invoke([*asking, reply, result]).content


def structured(chat: Any) -> None:
    city = chat.with_structured_output(City, method="json_schema").invoke("a city")
    assert (city.name, city.people) == ("word", 7), city


def embeds(embeddings: Any) -> None:
    one, two = embeddings.embed_documents(["one", "two"])
    assert len(one) == len(two) > 0 and one != two
    close = [abs(a - b) < 1e-6 for a, b in zip(embeddings.embed_query("one"), one, strict=True)]
    assert all(close)


def openai_chat(url: str) -> None:
    answers(openai(url))


def openai_tools(url: str) -> None:
    calls(openai(url))


def refused(param: str, call: Any) -> None:
    try:
        call()
    except openai_package.BadRequestError as error:
        assert error.param == param, repr(error)
        return
    raise AssertionError(f"not refused: {param}")


def openai_choices(url: str) -> None:
    """Checks how the package sends its user's choices about tools and authors."""
    chat = openai(url)
    strict = chat.bind_tools([weather], strict=True)
    assert strict.invoke("[[call=weather]] how is it?").tool_calls[0]["args"] == {"city": "word"}
    try:
        strict.invoke("[[call=weather wrong]] how is it?")
    except openai_package.InternalServerError as error:
        assert (error.status_code, error.code) == (502, "tool_call_invalid"), repr(error)
    else:
        raise AssertionError("a wrong call was delivered")
    twice = "[[call=weather]] and [[call=weather]]"
    for parallel, count in [(True, 2), (False, 1)]:
        bound = chat.bind_tools([weather], parallel_tool_calls=parallel)
        assert len(bound.invoke(twice).tool_calls) == count
    refused("tool_choice", lambda: chat.bind_tools([weather], tool_choice="any").invoke("hi"))
    called = chat.with_structured_output(City, method="function_calling")
    refused("tool_choice", lambda: called.invoke("a city"))
    refused("messages[0].name", lambda: chat.invoke([HumanMessage("hi", name="ada")]))


def openai_structured(url: str) -> None:
    structured(openai(url))


def openai_embeddings(url: str) -> None:
    # It would send the tokens of OpenAI's own models otherwise.
    embeds(OpenAIEmbeddings(model=MODEL, base_url=f"{url}/v1", api_key="not-needed",
                            check_embedding_ctx_length=False))


def ollama_chat(url: str) -> None:
    answers(ollama(url))


def ollama_tools(url: str) -> None:
    calls(ollama(url))


def ollama_structured(url: str) -> None:
    structured(ollama(url))


def ollama_embeddings(url: str) -> None:
    embeds(OllamaEmbeddings(model=MODEL, base_url=url))


CHECKS = [openai_chat, openai_tools, openai_choices, openai_structured, openai_embeddings,
          ollama_chat, ollama_tools, ollama_structured, ollama_embeddings]
for check in CHECKS:
    for replica in sys.argv[1:]:
        check(replica)
    print(json.dumps({"check": check.__name__}), flush=True)
