"""What a grammar costs: output tokens per second of the demo model with and without a JSON schema, side by side.

`python -m benchmarks.grammar` alternates the two, so that a busy machine disturbs both, and prints the medians. Both
sides generate equally many tokens: the schema asks for a list of strings that is longer than the output.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence

from serving import LLM, SamplingParams
from serving.sampling_params import Grammar

TARGET_PERCENT = 5.0
_SCHEMA = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 20, "maxLength": 40},
            "age": {"type": "integer"},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    grammar = Grammar(kind="json_schema", source=json.dumps(_SCHEMA))
    rates: dict[str, list[float]] = {"free": [], "schema": []}
    with LLM("demo", device=options.device, num_threads=options.threads) as llm:
        for turn in range(options.turns + 1):
            for name, constraint in (("free", None), ("schema", grammar)):
                rate = _rate(llm, options, constraint)
                if turn > 0:  # the first turn compiles and fills caches
                    rates[name].append(rate)
    costs = [100 * (1 - schema / free) for free, schema in zip(rates["free"], rates["schema"], strict=True)]
    cost = statistics.median(costs)
    for name, values in rates.items():
        print(f"{name:8} {statistics.median(values):9.0f} output tokens/s (median of {len(values)})")
    print(
        f"a JSON schema costs {cost:.1f} % at {options.requests} concurrent requests (target {TARGET_PERCENT:g} %)"
    )
    return 0 if cost <= TARGET_PERCENT else 1


def _rate(llm: LLM, options: argparse.Namespace, grammar: Grammar | None) -> float:
    params = [
        # Under this schema no text can end within its tokens.
        SamplingParams(max_new_tokens=options.tokens, ignore_eos=grammar is None, seed=seed, grammar=grammar)
        for seed in range(options.requests)
    ]
    started_s = time.perf_counter()
    outputs = llm.generate(["Once upon a time"] * options.requests, params, progress=False)
    elapsed_s = time.perf_counter() - started_s
    num_tokens = sum(len(output.token_ids) for output in outputs)
    if num_tokens != options.requests * options.tokens:
        raise RuntimeError(f"generated {num_tokens} tokens, expected {options.requests * options.tokens}")
    return num_tokens / elapsed_s


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grammar", description=__doc__)
    parser.add_argument("--requests", type=int, default=16, help="concurrent requests")
    parser.add_argument("--tokens", type=int, default=128, help="output tokens per request")
    parser.add_argument("--turns", type=int, default=7, help="measurements of each side")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; absent: all cores")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
