"""The door of the OpenAI routes: which fields a body may have, whose model it asks for, and what every answer is labelled
with. Knows no route's meaning.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from serving.api.adapters import require_no_adapter
from serving.api.call import Call
from serving.api.error_styles import printable
from serving.api.generation import Generation
from serving.api.json_body import convert, unknown_fields
from serving.api.schema.openai_answers import PromptTokensDetails, Usage
from serving.api.schema.openai_sampling import SamplingFields
from serving.api.schema.parity import REFUSED
from serving.api.strict_json import JsonValue
from serving.config import ModelConfig
from serving.errors import InvalidRequest, NotFound
from serving.messages import EngineReady
from serving.version import VERSION

_BASE_MODEL = ("", "tgi", "dummy")  # huggingface_hub says "dummy" to an address without a model's name

_Fields = TypeVar("_Fields", bound=msgspec.Struct)


@dataclass(slots=True, frozen=True)
class Label:
    """What all chunks of one answer have in common."""

    id: str
    created: int
    model: str
    system_fingerprint: str


def read_fields(call: Call, schema: type[_Fields], api: str) -> _Fields:
    """The body as `schema`. A field that is null counts as absent.

    Raises `InvalidRequest` for a field that is known and not honoured, with the reason, and for one that nobody knows;
    `NotFound` for an adapter.
    """
    given: dict[str, JsonValue] = {name: value for name, value in call.body.items() if value is not None}
    require_no_adapter(given)
    for name in given:
        reason = REFUSED[api].get(name)
        if reason is not None:
            raise InvalidRequest(f"`{name}` is not supported: {reason}", field=name)
    unknown = unknown_fields(given, schema)
    if unknown:
        raise InvalidRequest(f"`{printable(unknown[0])}` is not a parameter of this route", field=unknown[0])
    return convert(given, schema)


def model_names(ready: EngineReady, config: ModelConfig) -> list[str]:
    """The served model's id, and its further names."""
    return list(dict.fromkeys((ready.model_id, *config.served_names)))


def label(call: Call, fields: SamplingFields, *, prefix: str, any_model: bool) -> Label:
    """Raises `NotFound` when the request asks for a model that is not served, unless `any_model`."""
    ready = call.serving.engine
    asked = fields.model or ""
    if (
        asked not in _BASE_MODEL
        and not any_model
        and asked not in model_names(ready, call.shared.config.model)
    ):
        raise NotFound(f"the model {printable(asked)!r} does not exist, see /v1/models", field="model")
    return Label(
        id=f"{prefix}{uuid.uuid4().hex}",
        created=int(time.time()),
        model=asked or ready.model_id,
        system_fingerprint=fingerprint(ready),
    )


def fingerprint(ready: EngineReady) -> str:
    """Changes with software, model, revision and type of numbers: what decides a seeded answer."""
    facts = msgspec.json.encode([VERSION, ready.model_id, ready.revision, ready.dtype])
    return f"fp_{hashlib.sha256(facts).hexdigest()[:12]}"


def usage_of(generation: Generation, *, num_hidden_tokens: int = 0) -> Usage:
    """`num_hidden_tokens` were generated and are not part of the answer."""
    num_completion_tokens = generation.num_generated_tokens - num_hidden_tokens
    return Usage(
        prompt_tokens=generation.num_prompt_tokens,
        completion_tokens=num_completion_tokens,
        total_tokens=generation.num_prompt_tokens + num_completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=generation.num_cached_tokens),
    )
