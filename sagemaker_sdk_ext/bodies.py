"""Request bodies of the two APIs, and the answers to them. Pure functions; knows no AWS SDK."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sagemaker_sdk_ext.decoder import error_of
from sagemaker_sdk_ext.errors import ConfigurationError, GenerationError

JSON = "application/json"
Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Generated:
    """An answer. `raw` is the body as the server sent it; counts and reason are None where the server did not say."""

    text: str
    raw: Any
    finish_reason: str | None = None
    num_generated_tokens: int | None = None
    reasoning: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    deadline_reached: bool = False
    """The server's time for one answer was over: the text is what it had by then."""

    def __str__(self) -> str:
        return self.text


def native_body(prompt: str, parameters: Mapping[str, Any], *, stream: bool) -> dict[str, Any]:
    """`inputs` and `parameters`. The prompt is not repeated in the answer unless asked for."""
    if not isinstance(prompt, str) or not prompt:
        raise ConfigurationError(f"prompt = {prompt!r} must be a text of at least one character")
    body: dict[str, Any] = {"inputs": prompt, "parameters": {"return_full_text": False, **parameters}}
    return body | ({"stream": True} if stream else {})


def chat_body(messages: Sequence[Message], parameters: Mapping[str, Any], *, stream: bool) -> dict[str, Any]:
    """A chat completion; the parameters are OpenAI's."""
    if isinstance(messages, str | Mapping) or not messages:
        raise ConfigurationError(
            f"messages = {messages!r} must be a list such as [{{'role': 'user', 'content': 'Hello'}}]"
        )
    return {"messages": [dict(message) for message in messages], **parameters} | (
        {"stream": True} if stream else {}
    )


def encode(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def read_answer(data: bytes, custom_attributes: str | None = None) -> Generated:
    """An answer in one piece, of either API. Raises `GenerationError` for an error body or what is no answer."""
    try:
        value = json.loads(data)
    except ValueError as error:
        raise GenerationError(f"the answer is not JSON: {data[:120]!r}", error_type="bad_answer") from error
    first = value[0] if isinstance(value, list) and len(value) == 1 else value
    if isinstance(first, dict) and first.get("error") is not None:
        raise error_of(first)
    at_deadline = "deadline" in (custom_attributes or "")
    if isinstance(first, dict) and isinstance(first.get("generated_text"), str):
        details = first.get("details") or {}
        return Generated(
            first["generated_text"],
            value,
            finish_reason=details.get("finish_reason"),
            num_generated_tokens=details.get("generated_tokens"),
            deadline_reached=at_deadline,
        )
    if isinstance(first, dict) and first.get("choices"):
        choice = first["choices"][0]
        message = choice.get("message") or {}
        return Generated(
            choice.get("text") or message.get("content") or "",
            value,
            finish_reason=choice.get("finish_reason"),
            num_generated_tokens=(first.get("usage") or {}).get("completion_tokens"),
            reasoning=message.get("reasoning_content") or "",
            tool_calls=tuple(message.get("tool_calls") or ()),
            deadline_reached=at_deadline,
        )
    raise GenerationError(f"the answer has no generated text: {data[:120]!r}", error_type="bad_answer")
