"""The fields of the requests that OpenAI's own package for Python can send, at any depth.

Usage: sdk.py: prints a JSON object a line, one for each field of each kind of message, part, item and tool:
the `page` section and the `route` of its request, its `path`, whether it is `required`, its `values`, and a
`request` that has the field, as "$", beside the least that it needs. In a path the brackets of a list have
the type or the role of the item.
"""

from __future__ import annotations

import json
from types import UnionType
from typing import Annotated, Any, Callable, Iterator, Literal, Union, get_args, get_origin, get_type_hints

from openai.types.chat.completion_create_params import CompletionCreateParams
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.responses.response_create_params import ResponseCreateParams
from typing_extensions import NotRequired, Required, is_typeddict

PIXEL = ("data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpf"
         "ZFQAAAAABJRU5ErkJggg==")
# The texts that have to be of a form, by the names of their fields.
TEXTS = {"arguments": "{}", "call_id": "c", "image_url": PIXEL, "model": "vision", "tool_call_id": "c",
         "url": PIXEL}
# The values with which an item is accepted, where the first one of their type is not.
LEAST = {"annotations": [], "status": "completed"}
# The fields that are required by this service only, or that others need.
NEEDED = {"call_id", "content", "image_url", "schema"}

QUESTION = {"role": "user", "content": "[[tokens=1]] hi"}
CALL = {"id": "c", "type": "function", "function": {"name": "x", "arguments": "{}"}}
MESSAGES = [{"role": "assistant", "tool_calls": [CALL]}, QUESTION]
ITEMS = [{"type": "function_call", "call_id": "c", "name": "x", "arguments": "{}"}, QUESTION]
KINDS = (("A chat completion", "/v1/chat/completions", CompletionCreateParams, {"messages": MESSAGES}),
         ("A response", "/v1/responses", ResponseCreateParams, {"input": ITEMS}),
         ("Embeddings", "/v1/embeddings", EmbeddingCreateParams, {"input": "hi"}))

Put = Callable[[Any], Any]


def variants(hint: Any) -> list[Any]:
    """Returns the types that a value may have."""
    if get_origin(hint) in (Annotated, NotRequired, Required):
        return variants(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return [each for part in get_args(hint) for each in variants(part)]
    return [hint]


def item(hint: Any) -> Any:
    """Returns the type of the items of a list; none where it is no list."""
    is_list = get_args(hint) and get_origin(hint) not in (dict, Literal)
    return get_args(hint)[0] if is_list else None


def kind(hints: dict[str, Any]) -> tuple[str, str] | None:
    """Returns the field that distinguishes an object from others in its list, and its value."""
    fixed = [(name, get_args(variants(hints[name])[0])) for name in ("type", "role") if name in hints]
    return next(((name, values[0]) for name, values in fixed if values), None)


def names(params: Any) -> dict[str, Any]:
    """Returns the types of an object's fields, by their names."""
    return get_type_hints(params, include_extras=True)


def least(params: Any, visited: tuple[Any, ...] = ()) -> dict[str, Any]:
    """Returns the least that an object needs."""
    hints = names(params)
    special = NEEDED | {name for name, _ in filter(None, [kind(hints)])}
    needed = [name for name in hints if get_origin(hints[name]) is Required or name in special]
    first = {name: values(name, hints[name], (*visited, params))[0] for name in needed if name != "stream"}
    return first | {name: value for name, value in LEAST.items() if name in first}


def values(name: str, hint: Any, visited: tuple[Any, ...] = ()) -> list[Any]:
    """Returns values of a field: all that its type names, else one of each type."""
    found: list[Any] = []
    for each in variants(hint):
        if get_origin(each) is Literal:
            found += get_args(each)
        elif is_typeddict(each):
            found += [] if each in visited else [least(each, visited)]
        elif item(each):
            found += [[value] for value in values(name, item(each), visited)]
        else:
            found += {str: [TEXTS.get(name, "x")], bool: [False, True], int: [1], float: [1]}.get(each, [])
    return [TEXTS[name]] if name == "model" else found or [{}]


def fields(hint: Any, path: str, put: Put, visited: tuple[Any, ...] = ()) -> Iterator[dict[str, Any]]:
    """Walks the fields of a type, whose value `put` puts into a request."""
    for each in variants(hint):
        if item(each):
            yield from fields(item(each), f"{path}[]", lambda value: put([value]), visited)
        if not is_typeddict(each) or each in visited:
            continue
        label = kind(names(each))
        within = f"{path[:-1]}{label[1]}]" if label and path.endswith("[]") else path
        rest = least(each)
        for name, inner in names(each).items():
            def one(value: Any, name: str = name, rest: dict[str, Any] = rest) -> Any:
                return put(rest | {name: value})

            at = f"{within}.{name}" if within else name
            yield {"path": at, "required": get_origin(inner) is Required, "values": values(name, inner),
                   "request": one("$")}
            yield from fields(inner, at, one, (*visited, each))


def request(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Puts the fields of a request into one that is valid; an item comes before the question."""
    whole = {"model": TEXTS["model"], **base}
    for name, value in given.items():
        if name in base and isinstance(base[name], list) and isinstance(value, list):
            value = [base[name][0], *value, base[name][1]]
        if name == "stream_options":
            whole["stream"] = True
        whole[name] = value
    return whole


seen = set()
for page, route, params, base in KINDS:
    for field in fields(params, "", lambda given, base=base: request(base, given)):
        line = json.dumps({"page": page, "route": route, **field})
        if line not in seen:
            print(line)
        seen.add(line)
