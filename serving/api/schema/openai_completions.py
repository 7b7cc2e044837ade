"""Body of `POST /v1/completions` as types, and its prompts. Knows nothing of HTTP.

Source of the shapes: OpenAI's API reference and the types of its client (`openai.types.completion_create_params`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta

from serving.api.schema.generate import Limits
from serving.api.schema.openai_formats import check_formats
from serving.api.schema.openai_sampling import SamplingFields, check_sampling, check_token_id, doc, refuse
from serving.errors import ContextTooLong, InvalidRequest

DEFAULT_MAX_TOKENS = 16
MAX_LOGPROBS = 5

_PROMPT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        {"type": "array", "items": {"type": "integer"}, "minItems": 1},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}, "minItems": 1},
    ]
}


class CompletionRequest(SamplingFields, kw_only=True):
    prompt: Annotated[
        str | list[Any],
        Meta(
            description="text, several texts, token ids, or several lists of token ids",
            extra_json_schema=_PROMPT_SCHEMA,
        ),
    ]
    echo: Annotated[bool | None, doc("begin the text with the prompt")] = None
    logprobs: Annotated[
        int | None,
        Meta(
            description="log-probabilities of the tokens and of so many likeliest ones",
            extra_json_schema={"minimum": 0, "maximum": MAX_LOGPROBS},
        ),
    ] = None
    best_of: Annotated[int | None, doc("only the value of `n`")] = None
    response_format: Annotated[dict[str, Any] | None, doc("as on /v1/chat/completions")] = None

    @property
    def shows_only_prompt(self) -> bool:
        return self.max_tokens == 0


@dataclass(slots=True, frozen=True)
class Prompt:
    """One of the prompts. `text` is what the client sent; None for token ids."""

    text: str | None
    token_ids: list[int]


def check_completion(fields: CompletionRequest, limits: Limits) -> None:
    """Raises `InvalidRequest` naming the first wrong field."""
    check_sampling(fields, limits)
    if fields.logprobs is not None and not 0 <= fields.logprobs <= MAX_LOGPROBS:
        refuse("logprobs", fields.logprobs, f"must be from 0 to {MAX_LOGPROBS}")
    if fields.best_of is not None and fields.best_of != (fields.n or 1):
        refuse("best_of", fields.best_of, f"must be the value of `n`, {fields.n or 1}, or left out")
    if fields.shows_only_prompt and not fields.echo:
        refuse("max_tokens", 0, "must be at least 1, or 0 together with `echo: true`")
    if fields.shows_only_prompt and fields.min_tokens:
        refuse("min_tokens", fields.min_tokens, "must be at most `max_tokens`, which is 0")
    check_formats(fields, fields.response_format, limits)


def read_prompts(
    prompt: str | list[Any], limits: Limits, tokenize: Callable[[str], list[int]]
) -> list[Prompt]:
    """One to `max_client_batch_size` prompts, every token id checked. Raises `InvalidRequest`."""
    if isinstance(prompt, str):
        return [_of_text("prompt", prompt, limits, tokenize)]
    if not prompt:
        raise InvalidRequest("`prompt` is an empty list, must have at least one entry", field="prompt")
    if _is_token_id(prompt[0]):
        return [Prompt(None, _checked_ids("prompt", prompt, limits))]
    most = limits.max_client_batch_size
    if len(prompt) > most:
        refuse("prompt", f"a list of {len(prompt)}", f"must have at most {most} prompts")
    if isinstance(prompt[0], str):
        for i, each in enumerate(prompt):
            if not isinstance(each, str):
                refuse(f"prompt[{i}]", each, "must be a string like the first entry")
        return [_of_text(f"prompt[{i}]", each, limits, tokenize) for i, each in enumerate(prompt)]
    for i, each in enumerate(prompt):
        if not isinstance(each, list):
            refuse(f"prompt[{i}]", each, "must be a string, a token id or a list of token ids")
    return [Prompt(None, _checked_ids(f"prompt[{i}]", each, limits)) for i, each in enumerate(prompt)]


def _of_text(field: str, text: str, limits: Limits, tokenize: Callable[[str], list[int]]) -> Prompt:
    if not text:
        raise InvalidRequest(f"`{field}` is empty, must have at least one character", field=field)
    least_tokens = len(text) // limits.longest_token_bytes if limits.longest_token_bytes else 0
    if least_tokens > limits.max_input_tokens:
        raise _too_long(field, f"more than {least_tokens}", limits)
    return Prompt(text, tokenize(text))


def _checked_ids(field: str, ids: list[Any], limits: Limits) -> list[int]:
    if not ids:
        raise InvalidRequest(f"`{field}` has no tokens, must have at least one", field=field)
    if len(ids) > limits.max_input_tokens:
        raise _too_long(field, str(len(ids)), limits)
    for i, token_id in enumerate(ids):
        if not _is_token_id(token_id):
            refuse(f"{field}[{i}]", token_id, "must be a token id")
        check_token_id(f"{field}[{i}]", token_id, limits)
    return ids


def _is_token_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _too_long(field: str, num_tokens: str, limits: Limits) -> ContextTooLong:
    return ContextTooLong(
        f"This model's maximum context length is {limits.max_total_tokens} tokens, of which the prompt may have "
        f"{limits.max_input_tokens}. However, `{field}` has {num_tokens} tokens",
        field=field,
    )
