"""What an OpenAPI document cannot say about the API."""

import uuid

import schemathesis


def _is_completion(body):
    limits = [body.get("max_tokens"), body.get("max_completion_tokens")]
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    messages = messages if isinstance(messages, list) else []
    results = [it for it in messages if isinstance(it, dict) and it.get("role") == "tool"]
    return (
        (body.get("stream") is True or body.get("stream_options") is None)
        and (None in limits or limits[0] == limits[1])
        and not (isinstance(last, dict) and last.get("role") == "assistant")
        and not results
    )


@schemathesis.hook
def filter_body(context, body):
    """A schema counts characters, and `stop` is bounded in bytes. Nor can it say what one field of a
    completion means for another, or one message for the next."""
    if context.operation.path.startswith("/v1/") and isinstance(body, dict):
        if not _is_completion(body):
            return False
    stop = body.get("stop") if isinstance(body, dict) else None
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
