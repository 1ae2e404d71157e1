"""The rules of the API that an OpenAPI document cannot express."""

import collections
import itertools
import json
import os
import uuid

import schemathesis
from schemathesis import GenerationMode

# Things of the caller that exist.
THINGS = json.loads(os.environ["THINGS"])
_cases = collections.defaultdict(itertools.count)


def _with_things(case):
    """Names things that exist in every second request of an operation, and in the others things that do not:
    schemathesis itself may name some of another kind, as it reads them in replies."""
    number = next(_cases[case.method, case.path])
    is_real = number % 2 == 0
    names = case.path_parameters or {}
    query = case.query or {}
    of_body = case.body if isinstance(case.body, dict) else {}
    for name in names:
        of_kind = THINGS.get(name)
        if not of_kind:
            continue
        if not is_real:
            names[name] = _never(of_kind[0])
        elif case.method != "DELETE":
            names[name] = of_kind[0]
        elif len(of_kind) > 1:
            # The first one stays.
            names[name] = of_kind.pop()
        else:
            names[name] = _never(of_kind[0])
    if "generation_id" in query and "session_id" in names:
        query["generation_id"] = THINGS["generation"]
    # No item and no event has such an id, and a response that has ended has no such number.
    for name in ["after", "cursor", "starting_after"]:
        query.pop(name, None)
    if "session_id" in of_body:
        of_body["session_id"] = THINGS["session_id"][0] if is_real else str(uuid.uuid4())
    if "message_id" in of_body and "session_id" in names:
        of_body["message_id"] = THINGS["question" if case.path.endswith("/edit") else "answer"]
    if case.path == "/v1/responses" and of_body:
        # A turn of a conversation, or one that goes on with a response, or neither.
        if number % 3 == 1:
            of_body["previous_response_id"] = THINGS["response_id"][0]
        elif number % 3 == 2:
            of_body["conversation"] = THINGS["conversation_id"][0]


def _never(thing):
    """Returns an id of the same form that nothing has."""
    start, separator, _ = thing.rpartition("_")
    return start + separator + uuid.uuid4().hex if separator else str(uuid.uuid4())


def _consistent(body):
    """Returns a completion in which no field contradicts another, and no message the next."""
    body = dict(body)
    if body.get("stream") is not True:
        body.pop("stream_options", None)
    if body.get("max_completion_tokens") is not None:
        body.pop("max_tokens", None)
    # A result names a call of an earlier message, and the last message is there to be answered.
    messages = [message for message in body["messages"] if message["role"] != "tool"][:999]
    if not messages or messages[-1]["role"] == "assistant":
        messages.append({"role": "user", "content": "hi"})
    return {**body, "messages": messages}


def _consistent_response(body):
    """Returns a response's request in which no field contradicts another, and no item the next."""
    left_out = ["previous_response_id", "conversation"]
    body = {name: value for name, value in body.items() if name not in left_out}
    if body.get("stream") is not True:
        body.pop("stream_options", None)
    if body.get("background") is True:
        body.pop("store", None)
    if isinstance(body.get("input"), list):
        # An output names a call of an earlier item, and the last item is there to be answered.
        items = [item for item in body["input"] if item.get("type") != "function_call_output"][:999]
        # At most 128 calls stand in a row.
        calls = [item for item in items if item.get("type") == "function_call"]
        items = [item for item in items if item not in calls] + calls[:128]
        for item in items:
            if item.get("role") == "user" and isinstance(item["content"], list):
                parts = [part for part in item["content"] if part["type"] == "input_text"]
                item["content"] = parts or "hi"
        body["input"] = [*items, {"role": "user", "content": "hi"}]
    return body


def _without_results(body):
    """Returns items without outputs, which name a call of an earlier item."""
    items = [item for item in body.get("items") or [] if item.get("type") != "function_call_output"]
    for item in items:
        if item.get("type") == "function_call":
            # The schema counts no bytes.
            item["call_id"] = item["call_id"][:64]
    return {**body, "items": items or [{"role": "user", "content": "hi"}]}


def _with_checked_schemas(body):
    """Returns a request whose strict functions have no schema: the service checks some keywords only."""
    for tool in body.get("tools") or []:
        function = tool.get("function", tool)
        if isinstance(function, dict) and function.get("parameters"):
            function.pop("strict", None)
    return body


def _without_images(body):
    """Returns a request without images: the models of the test take none."""
    body = {name: value for name, value in body.items() if name != "images"}
    for message in body.get("messages") or []:
        message.pop("images", None)
        if isinstance(message.get("content"), list):
            parts = [part for part in message["content"] if part["type"] == "text"]
            message["content"] = parts or "hi"
    return body


@schemathesis.hook
def map_case(context, case):
    """A schema cannot say what one field of a completion means for another."""
    is_valid = case.meta is not None and case.meta.generation.mode == GenerationMode.POSITIVE
    if is_valid and isinstance(case.body, dict):
        case.body = _with_checked_schemas(_without_images(case.body))
        if case.path == "/api/v1/chat" and case.body.get("role") == "tool":
            # There is no call whose result it could be.
            case.body["role"] = "user"
    if is_valid and case.path == "/v1/chat/completions" and isinstance(case.body, dict):
        case.body = _consistent(case.body)
    if is_valid and case.path == "/v1/embeddings" and isinstance(case.body, dict):
        if case.body.get("dimensions") is not None:
            # No vector of the model is longer.
            case.body["dimensions"] = min(case.body["dimensions"], 8)
    if is_valid and case.path == "/v1/responses" and isinstance(case.body, dict):
        case.body = _consistent_response(case.body)
    adds_items = ["/v1/conversations", "/v1/conversations/{conversation_id}/items"]
    if is_valid and case.path in adds_items and isinstance(case.body, dict):
        case.body = _without_results(case.body)
    if is_valid and case.path == "/v1/responses/{response_id}" and case.query:
        if "starting_after" in case.query:
            case.query["stream"] = "true"
    if is_valid:
        _with_things(case)
    if is_valid and case.path == "/api/chat" and isinstance(case.body, dict):
        messages = (case.body.get("messages") or [])[:999]
        if messages and messages[-1]["role"] == "assistant":
            messages.append({"role": "user", "content": "hi"})
        case.body = {**case.body, "messages": messages}
    return case


@schemathesis.hook
def filter_body(context, body):
    """A schema counts characters, and `stop` is bounded in bytes."""
    body = body if isinstance(body, dict) else {}
    options = body.get("options")
    stop = body.get("stop") or (options.get("stop") if isinstance(options, dict) else None)
    texts = stop if isinstance(stop, list) else [stop]
    return not any(isinstance(text, str) and not text.isascii() and len(text) > 64 for text in texts)


@schemathesis.hook
def filter_case(context, case):
    """The events of a session have no end; those of one generation have."""
    return not case.path.endswith("/events") or "generation_id" in (case.query or {})


@schemathesis.hook
def filter_headers(context, headers):
    """A signed-in caller may send other idempotency keys than UUIDs, which the schema allows."""
    key = (headers or {}).get("Idempotency-Key")
    try:
        return key is None or bool(uuid.UUID(key))
    except ValueError:
        return False


@schemathesis.hook
def before_call(context, case, kwargs):
    """An idempotency key belongs to one request."""
    key = (case.headers or {}).get("Idempotency-Key")
    try:
        uuid.UUID(key)
    except (TypeError, ValueError):
        return
    case.headers["Idempotency-Key"] = str(uuid.uuid4())
