"""From the source of a grammar to something that starts matchers quickly. The only file that knows llguidance's limits.

Knows the vocabulary, neither requests nor tensors. What each limit is for, and what was measured, is in
docs/structured-output.md.
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from serving import logs
from serving.errors import InvalidRequest
from serving.grammar.native import Constraint, ConstraintCompiler, Unavailable
from serving.sampling_params import Grammar
from serving.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

JSON_OPTIONS: JsonCompileOptions = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": True,
    # At most one space where JSON allows any: as TGI has it, and no model can go on in white space for ever.
    "whitespace_pattern": "[ ]?",
    "coerce_one_of": False,
    "lenient": False,
}
_LIMITS = LLParserLimits(
    max_items_in_row=1000,
    initial_lexer_fuel=500_000,
    step_lexer_fuel=100_000,
    step_max_items=20_000,
    max_lexer_states=50_000,
    max_grammar_size=250_000,
    verbose_errors=False,
)
_ENTRY_BYTES = 256 * 1024
_BYTES_PER_SOURCE_BYTE = 24
_MAX_MESSAGE_CHARS = 300
_MAX_FORCED_TEXTS = 4096
_MAX_FORCED_CHARS = 256
_QUICK_S = 0.02
"""What took longer to compile is not compiled a second time, for its masks to be computed ahead."""

logger = logging.getLogger(__name__)


@dataclass(slots=True, frozen=True, eq=False, weakref_slot=True)
class CompiledGrammar:
    """A grammar ready for use. `num_bytes` is what keeping it costs, the automaton that grows with use included. `native` is
    the same for threads without the interpreter, where that can be had."""

    grammar: Grammar
    prototype: LLMatcher
    num_bytes: int
    native: Constraint | None = None

    def new_matcher(self) -> LLMatcher:
        """A matcher at the beginning of the text. Takes microseconds."""
        return self.prototype.deep_copy()


class GrammarCompiler:
    """Compiles for one vocabulary. Any thread may compile; the work happens without the GIL."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        encode: Callable[[str], list[int]],
        *,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        kernels: ctypes.CDLL | None = None,
    ) -> None:
        """`encode` tokenizes plain text without special tokens; `vocab_size` is the model's and may be larger than the
        tokenizer's: the ids between are never permitted. Without `eos_token_ids` every grammar is refused. With `kernels`,
        the compiled ones, masks can be computed ahead."""
        self._eos_token_ids = list(eos_token_ids)
        self._tokenizer: LLTokenizer | None = None
        self._native: ConstraintCompiler | None = None
        if self._eos_token_ids:
            tokens = _TokenTable(vocabulary, encode, vocab_size=vocab_size, eos_token_id=eos_token_ids[0])
            # It asks for the attributes of a wrapper, not for the class.
            self._tokenizer = LLTokenizer(cast(TokenizerWrapper, tokens), eos_token=self._eos_token_ids)
            # The same tokens, sorted for the strings of JSON: masks inside of them take about an eighth less time.
            self._json_tokenizer = self._tokenizer.with_slices(LLTokenizer.json_slices())
            if kernels is not None:
                self._native = _native_compiler(kernels, tokens, eos_token_ids)

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """`grammar` has passed `check_source`. Raises `InvalidRequest(field="grammar")` for what is malformed, not
        supported, unsatisfiable or too large."""
        if self._tokenizer is None:
            raise InvalidRequest(
                "`grammar` is refused: this model names no end-of-sequence token to end with", field="grammar"
            )
        tokenizer = self._json_tokenizer if grammar.kind == "json_schema" else self._tokenizer
        source = _llguidance_source(grammar)
        started_s = time.thread_time()
        matcher = LLMatcher(tokenizer, source, log_level=0, limits=_LIMITS)
        # The first mask finds what can never begin, such as a schema that refers to nothing but itself.
        trial = matcher.deep_copy()
        if not trial.is_error():
            trial.compute_bitmask()
        if trial.is_error():
            raise InvalidRequest(f"`grammar` is refused: {readable(trial.get_error())}", field="grammar")
        native = None
        if self._native is not None and "\0" not in source and time.thread_time() - started_s < _QUICK_S:
            native = self._native.compile("lark" if grammar.kind == "lark" else "llguidance", source)
        forms = 1 if native is None else 2
        return CompiledGrammar(
            grammar=grammar,
            prototype=matcher,
            num_bytes=forms * (_ENTRY_BYTES + _BYTES_PER_SOURCE_BYTE * len(grammar.source)),
            native=native,
        )


def _native_compiler(
    kernels: ctypes.CDLL, tokens: _TokenTable, eos_token_ids: Sequence[int]
) -> ConstraintCompiler | None:
    try:
        return ConstraintCompiler(
            kernels,
            tokens.tokens,
            tokens.special_token_ids,
            tokens,
            eos_token_ids=eos_token_ids,
            limits=_LIMITS,
        )
    except Unavailable as reason:
        logs.event(logger, logging.INFO, "grammar masks are not computed ahead", reason=str(reason))
        return None


def readable(error: str) -> str:
    """llguidance's message without its dumps of state, on one line."""
    if error.startswith("panic"):
        return "the grammar compiler gave up on it"
    if "NoExtension" in error:
        return "nothing matches it"
    text = " ".join(error.replace("<non-verbose/>", "").split())
    return text if len(text) <= _MAX_MESSAGE_CHARS else f"{text[:_MAX_MESSAGE_CHARS]}…"


def _llguidance_source(grammar: Grammar) -> str:
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.source)
    if grammar.kind == "lark":
        return LLMatcher.grammar_from_lark(grammar.source)
    try:
        return LLMatcher.grammar_from_json_schema(grammar.source, overrides=JSON_OPTIONS)
    except ValueError as error:
        raise InvalidRequest(f"`grammar` is refused: {readable(str(error))}", field="grammar") from error


class _TokenTable:
    """The vocabulary as llguidance's `TokenizerWrapper` shows it."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(
        self,
        vocabulary: Vocabulary,
        encode: Callable[[str], list[int]],
        *,
        vocab_size: int,
        eos_token_id: int,
    ) -> None:
        known = min(len(vocabulary), vocab_size)
        tokens = [*vocabulary.token_bytes[:known], *([b""] * (vocab_size - known))]
        special = {i: text for i, text in vocabulary.special_text.items() if i < vocab_size}
        for token_id, text in special.items():
            tokens[token_id] = text.encode()
        self.eos_token_id = eos_token_id
        self.special_token_ids = sorted(special)
        self.tokens = tokens
        self._encode = encode
        self._forced: dict[str, list[int]] = {}  # every row and step asks for the same few
        self._ids = {piece: i for i, piece in enumerate(tokens) if piece and i not in special}
        self._longest = max(map(len, self._ids), default=1)

    def __call__(self, text: str) -> list[int]:
        """Tokens of forced text. Exact to the byte: a tokenizer that adds or changes something is not followed."""
        if (known := self._forced.get(text)) is not None:
            return known
        ids = self._encode(text)
        wanted = text.encode()
        exact = all(i < len(self.tokens) and i not in self.special_token_ids for i in ids)
        if not exact or b"".join(self.tokens[i] for i in ids) != wanted:
            ids = self._longest_matches(wanted)
        if len(self._forced) >= _MAX_FORCED_TEXTS:
            self._forced.clear()
        if len(text) <= _MAX_FORCED_CHARS:
            self._forced[text] = ids
        return ids

    def _longest_matches(self, text: bytes) -> list[int]:
        ids, position = [], 0
        while position < len(text):
            for length in range(min(self._longest, len(text) - position), 0, -1):
                if (token_id := self._ids.get(text[position : position + length])) is not None:
                    ids.append(token_id)
                    position += length
                    break
            else:
                return ids
        return ids
