"""Grammars, masks and the sampler's further fields on the GPU: the same choices as on the CPU, and valid output."""

from __future__ import annotations

import json
from collections.abc import Iterator

import jsonschema
import pytest
import torch

from serving import LLM, SamplingParams
from serving.kernels import reference
from serving.sampling_params import Grammar, Watermark

pytestmark = pytest.mark.gpu

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
GRAMMAR = Grammar(kind="json_schema", source=json.dumps(PERSON))
WAYS = [
    SamplingParams(temperature=0.0, max_new_tokens=60, grammar=GRAMMAR),
    SamplingParams(seed=3, max_new_tokens=60, grammar=GRAMMAR, raw_logprobs=True, top_n_tokens=2),
    SamplingParams(seed=4, max_new_tokens=20, min_p=0.1, min_new_tokens=15),
    SamplingParams(temperature=0.0, max_new_tokens=20, logit_bias=((300, 4.0), (301, -100.0))),
    SamplingParams(seed=5, max_new_tokens=20, watermark=Watermark()),
]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", device="cuda", dtype="float32", max_batch_total_tokens=32_768) as llm:
        yield llm


@pytest.mark.parametrize("vocab", [70, 2048, 128_000])
def test_masks(vocab: int) -> None:
    bits = torch.randint(-(2**31), 2**31, (3, 2048 // 32), dtype=torch.int32)
    logits = torch.randn(5, vocab)
    on_gpu = logits.cuda()
    reference.mask_tokens(logits, bits, [0, 2, 4])
    reference.mask_tokens(on_gpu, bits, [0, 2, 4])
    assert torch.equal(on_gpu.cpu(), logits)


def test_every_field_chooses_as_on_the_cpu(llm: LLM) -> None:
    prompts = ["Describe Pip as JSON: "] * len(WAYS)
    with LLM("demo", device="cpu", dtype="float32") as on_cpu:
        expected = on_cpu.generate(prompts, WAYS, progress=False)
    for output, wanted in zip(llm.generate(prompts, WAYS, progress=False), expected, strict=True):
        assert output.token_ids == wanted.token_ids
        assert output.logprobs == pytest.approx(wanted.logprobs, abs=1e-3)


def test_output_is_valid_in_a_batch_with_free_text(llm: LLM) -> None:
    params = [
        SamplingParams(seed=seed, max_new_tokens=60, grammar=GRAMMAR if seed % 2 else None)
        for seed in range(64)
    ]
    for seed, output in enumerate(llm.generate(["JSON: "] * len(params), params, progress=False)):
        if seed % 2 and output.finish_reason != "length":
            jsonschema.validate(json.loads(output.text), PERSON)
