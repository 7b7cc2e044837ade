"""`python -m serving.api.parity > docs/api-parity.md`: which request field does what on which route, from the schema types,
and the deliberate differences to the servers whose APIs these are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec

from serving.api.parity_differences import OPENAI, TGI, Difference
from serving.api.schema import native_parity, parity
from serving.api.schema.native import NativeParameters, NativeRequest, NativeStreamableRequest
from serving.api.schema.native_grammar import JsonSchemaGrammar, NamedSchema
from serving.api.schema.openai_chat import ChatCompletionRequest
from serving.api.schema.openai_completions import CompletionRequest
from serving.api.schema.responses_request import ResponsesRequest
from serving.api.schema.tokenize import TokenizeRequest

HONOURED = "yes"
REFUSED = "refused"
WITHOUT_EFFECT = "no effect"
UNKNOWN = "·"

_HEAD = """\
# API parity

<!-- Made by `python -m serving.api.parity > docs/api-parity.md`; do not edit. -->

The native routes follow Text Generation Inference 3.3, the `/v1` routes follow OpenAI. `/invocations` takes the bodies of
`/`, `/v1/chat/completions` and `/v1/completions`, told apart by the first of the keys `inputs`, `messages`, `prompt`, and
treats their fields as those routes do.

## Parameters

`yes`: honoured. `refused`: known and refused by name, the reason is below. `no effect`: accepted, and changes nothing.
`·`: not a field of this route: ignored and named in `x-ignored-parameters` on the native routes (422 with
`UNKNOWN_PARAMETERS=refuse`), refused with 400 on `/v1`. A null counts as absent on `/v1`.
"""


@dataclass(frozen=True, slots=True)
class Route:
    """A column of the matrix."""

    title: str
    fields: tuple[str, ...]
    refused: Mapping[str, str]
    without_effect: Mapping[str, str]

    def status(self, field: str) -> str:
        if field in self.without_effect:
            return WITHOUT_EFFECT
        if field in self.refused:
            return REFUSED
        return HONOURED if field in self.fields else UNKNOWN


def routes() -> tuple[Route, ...]:
    return (
        _native("`/generate`", "generate", NativeRequest),
        _native("`/generate_stream`", "generate_stream", NativeRequest),
        _native("`/`", "compatible", NativeStreamableRequest),
        Route(
            "`/tokenize`",
            TokenizeRequest.__struct_encode_fields__,
            native_parity.REFUSED["tokenize"],
            native_parity.WITHOUT_EFFECT["tokenize"],
        ),
        _v1("chat", "`/v1/chat/` `completions`, `/chat_tokenize`", ChatCompletionRequest),
        _v1("completions", "`/v1/` `completions`", CompletionRequest),
        _v1("responses", "`/v1/` `responses`", ResponsesRequest),
    )


def render() -> str:
    """The whole document."""
    every = routes()
    native, v1 = every[:4], every[4:]
    return "".join(
        [
            _HEAD,
            "\n### TGI's routes\n\n",
            *_matrix(native),
            "\n### OpenAI's routes\n\n",
            *_matrix(v1),
            "\n### Reasons\n\n",
            "| Field | Route | | Reason |\n| --- | --- | --- | --- |\n",
            *_reasons(every),
            "\n## Deliberate differences to Text Generation Inference\n\n",
            *_differences("TGI", TGI),
            "\n## Deliberate differences to OpenAI\n\n",
            *_differences("OpenAI", OPENAI),
        ]
    )


def _native(title: str, name: str, body: type[msgspec.Struct]) -> Route:
    fields = (
        *(field for field in body.__struct_encode_fields__ if field != "parameters"),
        *(f"parameters.{field}" for field in NativeParameters.__struct_encode_fields__),
        "parameters.grammar.type",
        *(f"parameters.grammar.{field}" for field in JsonSchemaGrammar.__struct_encode_fields__),
        *(f"parameters.grammar.value.{field}" for field in NamedSchema.__struct_encode_fields__),
    )
    return Route(title, fields, native_parity.REFUSED[name], native_parity.WITHOUT_EFFECT[name])


def _v1(api: str, title: str, body: type[msgspec.Struct]) -> Route:
    return Route(title, body.__struct_encode_fields__, parity.REFUSED[api], parity.WITHOUT_EFFECT[api])


def _matrix(columns: tuple[Route, ...]) -> Iterator[str]:
    yield f"| Field | {' | '.join(route.title for route in columns)} |\n"
    yield f"| --- |{' --- |' * len(columns)}\n"
    names = dict.fromkeys(
        name for route in columns for name in (*route.fields, *route.refused, *route.without_effect)
    )
    for name in names:
        yield f"| `{name}` | {' | '.join(route.status(name) for route in columns)} |\n"


def _reasons(every: tuple[Route, ...]) -> Iterator[str]:
    for route in every:
        for status, table in ((REFUSED, route.refused), (WITHOUT_EFFECT, route.without_effect)):
            for name, reason in table.items():
                yield f"| `{name}` | {route.title} | {status} | {reason} |\n"


def _differences(other: str, rows: tuple[Difference, ...]) -> Iterator[str]:
    yield f"| Subject | {other} | Here |\n| --- | --- | --- |\n"
    for subject, theirs, ours in rows:
        yield f"| {subject} | {theirs} | {ours} |\n"


if __name__ == "__main__":
    sys.stdout.write(render())
