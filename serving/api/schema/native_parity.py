"""Fields of TGI's requests that a route knows without honouring them, and why; the companion of `parity` for the native
routes. Data only.
"""

from __future__ import annotations

_NO_ADAPTERS = "404: no adapter is loaded, and the base model never answers in an adapter's place"
_NOT_STREAMED = "not while streaming, as in TGI"

REFUSED: dict[str, dict[str, str]] = {
    "generate": {"parameters.adapter_id": _NO_ADAPTERS},
    "generate_stream": {
        "parameters.adapter_id": _NO_ADAPTERS,
        "parameters.best_of": f"above 1 {_NOT_STREAMED}",
        "parameters.decoder_input_details": f"true {_NOT_STREAMED}",
    },
    "compatible": {"parameters.adapter_id": _NO_ADAPTERS},
    "tokenize": {},
}
"""Route -> field -> why a request that sets it is refused."""

WITHOUT_EFFECT: dict[str, dict[str, str]] = {
    "generate": {"parameters.grammar.value.strict": "a schema is always followed to the letter"},
    "generate_stream": {"parameters.grammar.value.strict": "a schema is always followed to the letter"},
    "compatible": {"parameters.grammar.value.strict": "a schema is always followed to the letter"},
    "tokenize": {"parameters": "as in TGI: a text is tokenized as it stands"},
}
"""Route -> field -> why it is accepted although it changes nothing."""
