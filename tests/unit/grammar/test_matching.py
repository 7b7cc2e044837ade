"""Which tokens are permitted: white space, special tokens, unused ids, several rows at once."""

from __future__ import annotations

import json

import numpy as np
import pytest

from serving.errors import InvalidRequest
from serving.grammar.compiler import GrammarCompiler
from serving.grammar.row_matchers import RowMasks, RowMatchers
from serving.grammar.source import check_source
from serving.sampling_params import Grammar
from serving.text.tokenizer import Tokenizer
from tests.unit.grammar.attacks import lark, regex, schema
from tests.unit.grammar.conftest import EOS, VOCAB_SIZE


def _accepts(compiler: GrammarCompiler, tokenizer: Tokenizer, grammar: Grammar, text: str) -> bool:
    matcher = compiler.compile(grammar).new_matcher()
    ids = tokenizer.encode(text, add_special_tokens=False)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ('{"a":1}', True), ('{ "a" : 1 }', True), ('{"a": 1, "b": [true]}', True), ('{"a":  1}', False),
        ('{\n"a": 1}', False), (' {"a":1}', False), ('{"a":1} ', False), ('{"a":01}', False), ('{"b":[]}', False),
    ],
)  # fmt: skip
def test_white_space_in_json_is_at_most_one_space(
    compiler: GrammarCompiler, tokenizer: Tokenizer, text: str, accepted: bool
) -> None:
    properties = {"a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "boolean"}}}
    grammar = schema({"type": "object", "properties": properties, "required": ["a"]})
    assert _accepts(compiler, tokenizer, grammar, text) is accepted


def _permitted(masks: RowMasks, index: int) -> set[int]:
    bits = np.unpackbits(masks.bits[index].view(np.uint8), bitorder="little")
    return set(np.nonzero(bits)[0].tolist())


@pytest.mark.parametrize("beside", [True, False])
def test_rows_are_masked_by_their_own_grammar_and_resume_where_they_were(
    compiler: GrammarCompiler, tokenizer: Tokenizer, beside: bool
) -> None:
    rows = RowMatchers(VOCAB_SIZE, beside=beside)
    assert rows.start([1, 2]) is None
    digits = compiler.compile(regex("[0-9]{2}"))
    rows.begin(3, digits, [])
    rows.begin(5, digits, tokenizer.encode("42", add_special_tokens=False))
    start = rows.start([5, 4, 3])
    assert start is not None
    masks = start()
    assert masks.rows == [5, 3] and not masks.failures
    assert _permitted(masks, 0) == set(EOS)
    spelled = {tokenizer.vocabulary.token_bytes[i] for i in _permitted(masks, 1)}
    assert {b"0", b"9"} <= spelled and all(piece.isdigit() and len(piece) <= 2 for piece in spelled)
    rows.release(5)
    rows.release(3)
    assert rows.start([3, 5]) is None
    rows.close()


def test_a_matcher_that_fails_permits_everything_and_says_why(compiler: GrammarCompiler) -> None:
    rows = RowMatchers(VOCAB_SIZE, beside=False)
    rows.begin(0, compiler.compile(regex("[0-9]")), [500, 501, 502])
    start = rows.start([0])
    assert start is not None
    masks = start()
    assert set(masks.failures) == {0} and masks.failures[0]
    assert len(_permitted(masks, 0)) >= VOCAB_SIZE


def test_ids_that_are_no_tokens_and_special_ones_are_not_free_text(compiler: GrammarCompiler) -> None:
    rows = RowMatchers(VOCAB_SIZE, beside=False)
    rows.begin(0, compiler.compile(regex("(?s:.*)")), [])
    rows.begin(1, compiler.compile(lark('start: TEXT <|assistant|> "x"\nTEXT: /[a-z]*/\n')), [])
    start = rows.start([0, 1])
    assert start is not None
    masks = start()
    free, triggered = _permitted(masks, 0), _permitted(masks, 1)
    assert max(free) < 2048 and {0, 2, 3, 4, 5}.isdisjoint(free) and set(EOS) <= free
    assert 5 in triggered and 4 not in triggered


@pytest.mark.parametrize(
    "keyword", ["not", "if", "uniqueItems", "contains", "propertyNames", "dependentRequired", "minLenght"]
)
def test_keywords_that_cannot_be_enforced_are_named(compiler: GrammarCompiler, keyword: str) -> None:
    hidden = {"type": "object", "properties": {keyword: {"items": {"anyOf": [{keyword: 1}]}}}}
    with pytest.raises(InvalidRequest, match=keyword):
        check_source(schema(hidden))
    check_source(schema({"type": "object", "properties": {keyword: {"enum": [{keyword: 1}]}}}))
    compiler.compile(schema({"type": "object", "properties": {keyword: {"enum": [{keyword: 1}]}}}))


def test_keywords_that_describe_are_taken(compiler: GrammarCompiler) -> None:
    described = {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "T", "description": "d", "default": {},
        "examples": [{}], "deprecated": False, "x-order": 1, "type": "object", "properties": {},
    }  # fmt: skip
    assert json.loads(compiler.compile(schema(described)).grammar.source) == described
