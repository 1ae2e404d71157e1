"""The fields of the requests that OpenAI's own package for Python can send.

Usage: sdk.py: prints one JSON object: the names of the fields, by the kind of the request.
"""

from __future__ import annotations

import json
from typing import Any, get_args, get_type_hints

from openai.types.chat.completion_create_params import CompletionCreateParams
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.responses.response_create_params import ResponseCreateParams


def fields(params: Any) -> list[str]:
    return sorted({name for each in get_args(params) or [params] for name in get_type_hints(each)})


print(json.dumps({"A chat completion": fields(CompletionCreateParams),
                  "A response": fields(ResponseCreateParams),
                  "Embeddings": fields(EmbeddingCreateParams)}))
