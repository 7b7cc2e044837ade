"""Structured output of the demo model: whatever the schema and however it is generated, what ends by itself is valid."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from datetime import date

import jsonschema
import msgspec
import pytest

from serving import LLM, SamplingParams
from serving.errors import InvalidRequest
from serving.sampling_params import Grammar
from tests.integration.schemas import SchemaMaker

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


FORMATS = jsonschema.FormatChecker(("ipv4", "email"))


@FORMATS.checks("date", raises=ValueError)
def _is_date(value: object) -> bool:
    """RFC 3339 has a year 0000, a leap year, which Python has not."""
    if not isinstance(value, str):
        return True
    year = "2000" if value.startswith("0000") else value[:4]
    return len(value) == 10 and bool(date.fromisoformat(year + value[4:]))


def _schema(value: object) -> Grammar:
    return Grammar(kind="json_schema", source=json.dumps(value))


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", device="cpu", num_threads=1) as llm:
        yield llm


@pytest.fixture(scope="module")
def narrow() -> Iterator[LLM]:
    """Room for few tokens: prompts come in chunks, and sequences push each other out."""
    with LLM(
        "demo", device="cpu", num_threads=1, max_batch_total_tokens=320, max_batch_prefill_tokens=16
    ) as llm:
        yield llm


def _check(llm: LLM, schemas: Sequence[object], params: Sequence[SamplingParams]) -> int:
    """Generates with each schema under its parameters; returns how many texts ended by themselves."""
    requests = [msgspec.structs.replace(p, grammar=_schema(s)) for s, p in zip(schemas, params, strict=True)]
    outputs = llm.generate(["The answer as JSON: "] * len(requests), requests, progress=False)
    num_ended = 0
    for schema, output in zip(schemas, outputs, strict=True):
        for sequence in output.sequences:
            if sequence.finish_reason == "length":
                continue
            assert sequence.finish_reason == "eos_token"
            value = json.loads(sequence.text)
            jsonschema.validate(value, schema, format_checker=FORMATS)
            num_ended += 1
    return num_ended


def test_what_ends_by_itself_is_valid(llm: LLM, full: bool) -> None:
    count = 500 if full else 25
    schemas = [SchemaMaker(seed).make() for seed in range(count)]
    variants = (
        SamplingParams(temperature=0.0, max_new_tokens=200),
        SamplingParams(temperature=1.0, max_new_tokens=200, ignore_eos=True),
        SamplingParams(temperature=1.3, top_p=0.95, max_new_tokens=200, n=2, top_n_tokens=3),
        SamplingParams(temperature=0.8, min_p=0.02, max_new_tokens=200, min_new_tokens=30),
    )
    params = [msgspec.structs.replace(variants[i % 4], seed=i) for i in range(count)]
    num_sequences = sum(one.n for one in params)
    assert _check(llm, schemas, params) > num_sequences // 2


def test_valid_across_chunks_and_preemption_and_the_same_as_alone(narrow: LLM, llm: LLM, full: bool) -> None:
    count = 60 if full else 12
    schemas = [SchemaMaker(1000 + seed).make() for seed in range(count)]
    params = [SamplingParams(seed=seed, max_new_tokens=100) for seed in range(count)]
    before = narrow.stats().num_preemptions
    assert _check(narrow, schemas, params) > count // 4
    assert narrow.stats().num_preemptions > before, (
        "nothing was preempted: the cache is too large for this test"
    )
    requests = [msgspec.structs.replace(p, grammar=_schema(s)) for s, p in zip(schemas, params, strict=True)]
    prompts = ["Some rather long words before the answer as JSON, so that they come in chunks: "] * count
    tight = narrow.generate(prompts, requests, progress=False)
    wide = llm.generate(prompts, requests, progress=False)
    assert [output.token_ids for output in tight] == [output.token_ids for output in wide]


def test_sequences_of_one_request_have_matchers_of_their_own(llm: LLM) -> None:
    output = llm.generate("JSON: ", SamplingParams(seed=5, n=6, max_new_tokens=60, grammar=_schema(PERSON)))[
        0
    ]
    texts = {sequence.text for sequence in output.sequences}
    assert len(texts) > 1
    for sequence in output.sequences:
        jsonschema.validate(json.loads(sequence.text), PERSON)


def test_regexes_and_lark_grammars(llm: LLM) -> None:
    grammar = Grammar(kind="regex", source=r"(yes|no), [0-9]{3}\.")
    for seed in range(5):
        text = llm.generate("Answer: ", SamplingParams(seed=seed, max_new_tokens=30, grammar=grammar))[0].text
        assert re.fullmatch(grammar.source, text)
    free_text_first = Grammar(
        kind="lark", source='start: TEXT "!" NUMBER\nTEXT: /[a-z ]{5,20}/\nNUMBER: /[0-9]{2}/\n'
    )
    text = llm.generate("Say: ", SamplingParams(seed=1, max_new_tokens=40, grammar=free_text_first))[0].text
    assert re.fullmatch(r"[a-z ]{5,20}![0-9]{2}", text)


def test_a_stop_string_ends_constrained_text_too(llm: LLM) -> None:
    params = SamplingParams(seed=2, max_new_tokens=80, stop=('"age',), grammar=_schema(PERSON))
    output = llm.generate("JSON: ", params)[0]
    assert output.finish_reason == "stop_sequence" and output.text.endswith('"age')


def test_top_tokens_are_permitted_ones_and_raw_logprobs_are_not_masked(llm: LLM) -> None:
    grammar = Grammar(kind="regex", source="[0-9]{4}")
    params = SamplingParams(temperature=0.0, max_new_tokens=8, top_n_tokens=4, grammar=grammar)
    masked = llm.generate("The year ", params)[0]
    digits = llm.text.vocabulary.token_bytes
    for tops in masked.top_tokens[:-1]:
        assert all(digits[top.id].isdigit() for top in tops)
    raw = llm.generate("The year ", msgspec.structs.replace(params, raw_logprobs=True))[0]
    assert raw.token_ids == masked.token_ids
    assert sum(raw.logprobs) < sum(masked.logprobs)


def test_neighbours_without_a_grammar_are_not_touched(llm: LLM) -> None:
    free = SamplingParams(temperature=0.0, max_new_tokens=30)
    alone = llm.generate("Once upon a time", free)[0].token_ids
    mixed = llm.generate(["JSON: ", "Once upon a time"], [
        SamplingParams(seed=1, max_new_tokens=40, grammar=_schema(PERSON)), free,
    ])  # fmt: skip
    assert mixed[1].token_ids == alone


def test_a_grammar_that_gives_up_on_the_way_ends_only_its_own_sequence(llm: LLM) -> None:
    bomb = Grammar(kind="regex", source="(\\w{1,500}){1,500}z")
    free = SamplingParams(temperature=0.0, max_new_tokens=60)
    alone = llm.generate("Once upon a time", free)[0].token_ids
    core = llm._core
    before = core.stats().num_failed
    with pytest.raises(Exception, match="grammar is too complex"):
        llm.generate(
            ["Once upon a time", "x"],
            [free, SamplingParams(seed=3, temperature=1.5, max_new_tokens=200, grammar=bomb)],
        )
    assert core.stats().num_failed == before + 1
    assert llm.generate("Once upon a time", free)[0].token_ids == alone


def test_what_cannot_be_enforced_is_refused_by_name(llm: LLM) -> None:
    for keyword, value in (
        ("uniqueItems", True),
        ("not", {}),
        ("if", {}),
        ("contains", {}),
        ("nullable", True),
    ):
        with pytest.raises(InvalidRequest, match=keyword) as caught:
            llm.generate("x", SamplingParams(seed=1, grammar=_schema({"type": "array", keyword: value})))
        assert caught.value.field == "grammar"


def test_prompt_top_tokens_come_with_prompt_logprobs(llm: LLM, narrow: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_new_tokens=3, top_n_tokens=2, prompt_logprobs=True)
    prompt = "Once upon a time there was a little fox who lived in the wood and liked honey very much indeed"
    for engine in (llm, narrow):
        output = engine.generate(prompt, params)[0]
        tops, logprobs = output.prompt_top_tokens, output.prompt_logprobs
        assert tops is not None and logprobs is not None
        assert len(tops) == len(output.prompt_token_ids) == len(logprobs) and tops[0] == []
        for token_id, logprob, top in zip(output.prompt_token_ids[1:], logprobs[1:], tops[1:], strict=True):
            assert len(top) >= 2 and logprob is not None and top[0].logprob >= logprob - 1e-6
            assert all(t.logprob == pytest.approx(logprob, abs=1e-5) for t in top if t.id == token_id)
