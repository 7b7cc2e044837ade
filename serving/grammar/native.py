"""llguidance by its C interface, which its extension module exports beside Python's: constraints that threads without the
interpreter can use. Knows tokens and sources; neither rows nor tensors.

The twin is `llguidance.LLMatcher`; other than it, a constraint does not tell a text that is complete from one that nothing
completes. The interface is that of `llguidance.h`; what its structures look like is compared with known values before use.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import llguidance._lib
from llguidance import LLParserLimits, LLTokenizer

_POINTER, _SIZE, _UINT32, _UINT64 = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_uint64
_MESSAGE_BYTES = 512
_SPECIAL = b"\xff"
"""The first byte of a token that text never stands for."""

_TOKENIZE = ctypes.CFUNCTYPE(
    _SIZE, _POINTER, ctypes.POINTER(ctypes.c_uint8), _SIZE, ctypes.POINTER(_UINT32), _SIZE
)


class Unavailable(Exception):
    """Why this cannot be used here, in words."""


class _Tokenizer(ctypes.Structure):
    """LlgTokenizerInitV2."""

    _fields_ = [
        ("struct_size", _SIZE),
        *((name, _UINT32) for name in ("vocab_size", "tok_eos")),
        *((name, _POINTER) for name in ("token_lens", "token_bytes", "tokenizer_json")),
        ("tokenize_assumes_string", ctypes.c_bool),
        ("tokenize_fn", _POINTER),
        ("use_approximate_greedy_tokenize_fn", ctypes.c_bool),
        *((name, _POINTER) for name in ("tokenize_user_data", "slices", "tok_eos_extra")),
        ("tok_eos_extra_count", _UINT32),
    ]


class _Limits(ctypes.Structure):
    """LlgParserLimits."""

    _fields_ = [
        ("max_items_in_row", _SIZE),
        *((name, _UINT64) for name in ("initial_lexer_fuel", "step_lexer_fuel")),
        *((name, _SIZE) for name in ("step_max_items", "max_lexer_states", "max_grammar_size")),
        *((name, ctypes.c_bool) for name in ("precompute_large_lexemes", "verbose_errors")),
    ]


class _Options(ctypes.Structure):
    """LlgConstraintInit."""

    _fields_ = [
        ("tokenizer", _POINTER),
        *((name, _UINT32) for name in ("log_buffer_level", "log_stderr_level")),
        *((name, ctypes.c_bool) for name in ("ff_tokens_ok", "backtrack_ok")),
        ("limits", _Limits),
    ]


class _MaskResult(ctypes.Structure):
    """LlgMaskResult."""

    _fields_ = [("mask", _POINTER), ("temperature", ctypes.c_float), ("is_stop", ctypes.c_bool)]


class _CommitResult(ctypes.Structure):
    """LlgCommitResult."""

    _fields_ = [("tokens", _POINTER), ("num_tokens", _UINT32), ("is_stop", ctypes.c_bool)]


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llg_constraint_init_set_defaults": (None, [_POINTER, _POINTER]),
    "llg_new_tokenizer_v2": (_POINTER, [_POINTER, ctypes.c_char_p, _SIZE]),
    "llg_free_tokenizer": (None, [_POINTER]),
    "llg_new_constraint_any": (_POINTER, [_POINTER, ctypes.c_char_p, ctypes.c_char_p]),
    "llg_clone_constraint": (_POINTER, [_POINTER]),
    "llg_free_constraint": (None, [_POINTER]),
    "llg_get_error": (ctypes.c_char_p, [_POINTER]),
    "llg_compute_mask": (ctypes.c_int32, [_POINTER, _POINTER]),
    "llg_commit_token": (ctypes.c_int32, [_POINTER, _UINT32, _POINTER]),
    "llg_is_stopped": (ctypes.c_bool, [_POINTER]),
}
# The defaults of the limits that this module was written for; other values mean another layout.
_DEFAULTS = (2000, 1_000_000, 200_000, 50_000, 250_000, 500_000, True, True)


def open_interface() -> ctypes.CDLL:
    """Raises `Unavailable` where the installed llguidance has another interface than this module knows."""
    library = ctypes.CDLL(llguidance._lib.__file__)
    for name, (result, arguments) in _SIGNATURES.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise Unavailable(f"llguidance has no {name}") from error
        function.restype, function.argtypes = result, arguments
    # What comes behind the structure, if it has grown, must not be written over.
    room = ctypes.create_string_buffer(4 * ctypes.sizeof(_Options))
    library.llg_constraint_init_set_defaults(room, None)
    limits = _Options.from_buffer(room).limits
    values = tuple(getattr(limits, name) for name, *_ in _Limits._fields_)
    if values != _DEFAULTS or any(room.raw[ctypes.sizeof(_Options) :]):
        raise Unavailable(f"llguidance's limits are {values}, expected {_DEFAULTS}")
    return library


class Constraint:
    """What one sequence may go on with; the methods that `LLMatcher` has under these names. One thread at a time."""

    __slots__ = ("address", "compiler")

    def __init__(self, compiler: ConstraintCompiler, address: int) -> None:
        self.compiler = compiler  # the tokenizer lives as long
        self.address = address

    def __del__(self) -> None:
        self.compiler.interface.llg_free_constraint(self.address)

    def deep_copy(self) -> Constraint:
        return Constraint(self.compiler, self.compiler.interface.llg_clone_constraint(self.address))

    def is_error(self) -> bool:
        return self.compiler.interface.llg_get_error(self.address) is not None

    def get_error(self) -> str:
        error: bytes | None = self.compiler.interface.llg_get_error(self.address)
        return "" if error is None else error.decode("utf-8", "replace")

    def consume_token(self, token_id: int) -> bool:
        """A token of the last mask."""
        if self.is_stopped():
            return not self.is_error()
        result = _CommitResult()
        status: int = self.compiler.interface.llg_commit_token(self.address, token_id, ctypes.byref(result))
        return status == 0

    def consume_tokens(self, token_ids: list[int]) -> bool:
        """Tokens that were sampled elsewhere, with the masks of another constraint."""
        result = _MaskResult()
        for token_id in token_ids:
            if not self.is_stopped():  # a token is taken after a mask only
                self.compiler.interface.llg_compute_mask(self.address, ctypes.byref(result))
            if not self.consume_token(token_id):
                return False
        return True

    def unsafe_compute_mask_ptr(self, address: int, num_bytes: int) -> None:
        """Write the mask to memory; after an error, one that permits the end alone."""
        result = _MaskResult()
        there = False
        if not self.is_stopped():
            status: int = self.compiler.interface.llg_compute_mask(self.address, ctypes.byref(result))
            there = status == 0 and not result.is_stop and result.mask is not None
        ctypes.memmove(address, result.mask if there else self.compiler.when_stopped, num_bytes)

    def is_stopped(self) -> bool:
        """Does it permit the end alone, because it is complete, nothing goes on from here, or there was an error?"""
        return bool(self.compiler.interface.llg_is_stopped(self.address))


class ConstraintCompiler:
    """Compiles for one vocabulary. Any thread may compile."""

    _tokenizer: int | None = None
    _forced: int | None = None

    def __init__(
        self,
        kernels: ctypes.CDLL,
        tokens: Sequence[bytes],
        special_ids: Sequence[int],
        tokenize: Callable[[str], list[int]],
        *,
        eos_token_ids: Sequence[int],
        limits: LLParserLimits,
    ) -> None:
        """`kernels` is the library with masks.c in it. Raises `Unavailable`."""
        self.interface = open_interface()
        self.kernels = kernels
        self.num_words = (len(tokens) + 31) // 32
        stopped = (_UINT32 * self.num_words)()
        for token_id in eos_token_ids:
            stopped[token_id // 32] |= 1 << token_id % 32
        self.when_stopped = ctypes.addressof(stopped)
        self._kept: list[object] = [stopped]
        self._options = _Options()
        self._ask = _TOKENIZE(_asking(tokenize))
        self._make_tokenizer(tokens, special_ids, eos_token_ids)
        self.interface.llg_constraint_init_set_defaults(ctypes.byref(self._options), self._tokenizer)
        self._options.log_stderr_level = 0
        for name, *_ in _Limits._fields_:
            setattr(self._options.limits, name, getattr(limits, name))

    def __del__(self) -> None:
        if self._tokenizer is not None:
            self.interface.llg_free_tokenizer(self._tokenizer)
        if self._forced is not None:
            self.kernels.forced_texts_free(self._forced)

    def compile(self, kind: str, source: str) -> Constraint:
        """`kind` as `llg_new_constraint_any` has it; `source` without NUL. An error shows
        in the constraint."""
        address = self.interface.llg_new_constraint_any(
            ctypes.byref(self._options), kind.encode(), source.encode()
        )
        return Constraint(self, address)

    def _make_tokenizer(
        self, tokens: Sequence[bytes], special_ids: Sequence[int], eos_token_ids: Sequence[int]
    ) -> None:
        spelled = list(tokens)
        for token_id in special_ids:
            spelled[token_id] = _SPECIAL + spelled[token_id]
        lengths = (_UINT32 * len(spelled))(*map(len, spelled))
        text = ctypes.create_string_buffer(b"".join(spelled))
        slices = LLTokenizer.json_slices()
        sliced = (ctypes.c_char_p * (len(slices) + 1))(*(item.encode() for item in slices), None)
        others = (_UINT32 * len(eos_token_ids[1:]))(*eos_token_ids[1:])
        self.kernels.forced_texts_new.restype = _POINTER
        self.kernels.forced_texts_new.argtypes = [_TOKENIZE]
        self.kernels.forced_texts_free.argtypes = [_POINTER]
        self.kernels.forced_texts_free.restype = None
        self._forced = self.kernels.forced_texts_new(self._ask)
        setting = _Tokenizer(
            struct_size=ctypes.sizeof(_Tokenizer),
            vocab_size=len(spelled),
            tok_eos=eos_token_ids[0],
            token_lens=ctypes.addressof(lengths),
            token_bytes=ctypes.addressof(text),
            tokenize_assumes_string=True,
            tokenize_fn=ctypes.cast(self.kernels.forced_tokens, _POINTER),
            tokenize_user_data=self._forced,
            slices=ctypes.addressof(sliced),
            tok_eos_extra=ctypes.addressof(others) if len(others) else None,
            tok_eos_extra_count=len(others),
        )
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        self._tokenizer = self.interface.llg_new_tokenizer_v2(ctypes.byref(setting), message, _MESSAGE_BYTES)
        if self._tokenizer is None:
            raise Unavailable(f"llguidance does not take the vocabulary: {message.value.decode()}")


def _asking(tokenize: Callable[[str], list[int]]) -> Callable[..., int]:
    """`tokenize` as llguidance's `LlgTokenizeFn`."""

    def ask(user: int | None, text: Any, length: int, tokens: Any, room: int) -> int:
        ids = tokenize(ctypes.string_at(text, length).decode())
        for index, token_id in enumerate(ids[:room]):
            tokens[index] = token_id
        return len(ids)

    return ask
