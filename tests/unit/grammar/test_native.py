"""Constraints by llguidance's C interface are what its Python matchers are, alone and computed ahead by a thread."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from llguidance import LLMatcher

from serving.grammar.compiler import GrammarCompiler
from serving.grammar.native import Constraint
from serving.grammar.row_matchers import RowMatchers
from serving.kernels.cpu.native import library
from serving.sampling_params import Grammar
from serving.text.tokenizer import Tokenizer
from tests.unit.grammar.attacks import lark, regex, schema
from tests.unit.grammar.conftest import EOS, VOCAB_SIZE

NUM_WORDS = (VOCAB_SIZE + 31) // 32
RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2, "maxLength": 12},
        "kind": {"enum": ["fox", "owl", "mouse"]},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "kind", "tags", "age"],
    "additionalProperties": False,
}
GRAMMARS = {
    "a record": schema(RECORD),
    "nested": schema(
        {"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"}
    ),
    "forced text": regex("The quick brown fox é jumps( over the lazy dog)?"),
    "any text": regex("(?s:.*)"),
    "special tokens": lark('start: TEXT <|assistant|> "x"\nTEXT: /[a-z]*/\n'),
    "letters": regex("[a-zA-Zßµ]{3,20}"),
}


@pytest.fixture(scope="module")
def native(tokenizer: Tokenizer) -> GrammarCompiler:
    kernels = library.load()
    assert kernels is not None, "the suite needs a C compiler: the thread for masks would go untested"
    return GrammarCompiler(
        tokenizer.vocabulary,
        lambda text: tokenizer.encode(text, add_special_tokens=False),
        vocab_size=VOCAB_SIZE,
        eos_token_ids=EOS,
        kernels=kernels,
    )


def _mask(matcher: LLMatcher | Constraint) -> npt.NDArray[np.int32]:
    bits = np.full(NUM_WORDS, 0x55555555, dtype=np.int32)
    matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
    return bits


def _constraint(native: GrammarCompiler, grammar: Grammar) -> Constraint:
    compiled = native.compile(grammar)
    assert compiled.native is not None
    return compiled.native.deep_copy()


def _choice(bits: npt.NDArray[np.int32], rng: random.Random) -> int:
    permitted = np.nonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))[0]
    return int(rng.choice(permitted.tolist()))


@pytest.mark.parametrize("name", GRAMMARS)
def test_constraints_permit_what_matchers_permit(
    compiler: GrammarCompiler, native: GrammarCompiler, name: str, full: bool
) -> None:
    for seed in range(100 if full else 4):
        rng = random.Random(seed)
        expected = compiler.compile(GRAMMARS[name]).new_matcher()
        found = _constraint(native, GRAMMARS[name])
        for _ in range(60):
            bits = _mask(expected)
            assert (_mask(found) == bits).all()
            token_id = _choice(bits, rng)
            assert expected.consume_token(token_id) and found.consume_token(token_id)
            if token_id in EOS:
                break
        assert (_mask(found) == _mask(expected)).all()


def test_a_constraint_reads_its_output_again(compiler: GrammarCompiler, native: GrammarCompiler) -> None:
    rng = random.Random(7)
    expected = compiler.compile(GRAMMARS["a record"]).new_matcher()
    written: list[int] = []
    for _ in range(12):
        written.append(_choice(_mask(expected), rng))
        expected.consume_token(written[-1])
    resumed = _constraint(native, GRAMMARS["a record"])
    assert resumed.consume_tokens(written)
    assert (_mask(resumed) == _mask(expected)).all()
    assert (_mask(resumed) == _mask(expected)).all(), "twice the same"


def test_a_constraint_that_fails_stays_in_it(native: GrammarCompiler) -> None:
    matcher = _constraint(native, regex("[0-9]"))
    assert not matcher.consume_tokens([500, 501])
    assert matcher.is_error() and matcher.get_error() and matcher.is_stopped()
    assert _mask(matcher)[0] == sum(1 << token_id for token_id in EOS)


def test_masks_ahead_are_those_of_rows_that_come_go_fail_and_resume(
    compiler: GrammarCompiler, native: GrammarCompiler, full: bool
) -> None:
    for seed in range(50 if full else 3):
        _drive(random.Random(seed), compiler, native)


def _drive(rng: random.Random, compiler: GrammarCompiler, native: GrammarCompiler) -> None:
    """Two sets of rows with the same grammars and tokens, one computed ahead, for a while."""
    expected, found = RowMatchers(VOCAB_SIZE, beside=False), RowMatchers(VOCAB_SIZE, beside=False)
    running: dict[int, tuple[str, list[int]]] = {}
    compiled = {name: (compiler.compile(GRAMMARS[name]), native.compile(GRAMMARS[name])) for name in GRAMMARS}
    num_ahead = 0
    for step in range(60):
        for row in [row for row in running if rng.random() < 0.06]:
            name, written = running[row]
            expected.release(row)
            found.release(row)
            if rng.random() < 0.3:
                del running[row]
            else:  # preempted
                expected.begin(row, compiled[name][0], written)
                found.begin(row, compiled[name][1], written)
        while len(running) < 3 or (rng.random() < 0.1 and len(running) < 8):
            row = next(number for number in range(20) if number not in running)
            name = rng.choice(list(GRAMMARS))
            running[row] = (name, [])
            expected.begin(row, compiled[name][0], [])
            found.begin(row, compiled[name][1], [])
        rows = sorted(running) if rng.random() < 0.9 else sorted(running)[1:]
        num_ahead += found._ahead is not None and found._ahead.begun
        masks, ahead = expected.start(rows), found.start(rows)
        assert masks is not None and ahead is not None
        reference, result = masks(), ahead()
        assert result.rows == reference.rows and result.failures.keys() == reference.failures.keys()
        assert (result.bits == reference.bits).all()
        token_ids = [_choice(mask, rng) for mask in reference.bits]
        if step % 20 == 19:
            token_ids[0] = 400
        free = [30] if step % 10 > 6 else []  # a row without a grammar comes and goes
        expected.note(rows, token_ids)
        found.note([*free, *rows], [400 for _ in free] + token_ids)
        for row, token_id in zip(rows, token_ids, strict=True):
            running[row][1].append(token_id)
            if token_id in EOS or row in reference.failures:
                expected.release(row)
                found.release(row)
                del running[row]
    assert num_ahead > 5, "most steps are computed ahead"
    expected.close()
    found.close()


def test_a_text_that_nothing_completes_fails_as_with_a_matcher(native: GrammarCompiler) -> None:
    """A constraint alone would end it as if it were complete: `{"$ref": "#"}` begins that way."""
    compiled = native.compile(regex("a?"))
    dead = native._native
    assert dead is not None
    source = LLMatcher.grammar_from_json_schema('{"$ref": "#"}')
    never = LLMatcher(native._json_tokenizer, source, log_level=0)
    broken = replace(compiled, prototype=never, native=dead.compile("llguidance", source))
    rows = RowMatchers(VOCAB_SIZE, beside=False)
    rows.begin(0, broken, [])
    masks = rows.start([0])
    assert masks is not None and masks().failures == {0: "nothing matches it"}
    rows.close()


def test_a_source_that_c_cannot_hold_is_compiled_all_the_same(native: GrammarCompiler) -> None:
    compiled = native.compile(lark('start: "a"\n// \0 \n'))
    assert compiled.native is None
