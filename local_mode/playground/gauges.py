"""From the /metrics pages of an endpoint's containers to the few numbers that the page draws. Fetches nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable

_SAMPLE = re.compile(r"^(\w+) (\S+)$", re.MULTILINE)

_SUMMED = {
    "running": "textgen_sequences_running",
    "waiting": "textgen_sequences_waiting",
    "kv_tokens": "tgi_batch_total_tokens",
    "kv_tokens_max": "tgi_batch_max_total_tokens",
    "kv_blocks": "textgen_kv_blocks",
    "kv_blocks_free": "textgen_kv_blocks_free",
    "prompt_tokens": "textgen_prompt_tokens",
    "cached_tokens": "textgen_cached_tokens",
    "generated_tokens": "textgen_generated_tokens",
    "preemptions": "textgen_preemptions",
}
"""Docs: observability.md. The last four are counters."""

Gauges = dict[str, float | None]


def reduced(pages: Iterable[str]) -> Gauges:
    """Sums over containers, by the names above, and `kv_use`, the share of KV blocks in use. What no page has is None:
    a foreign image has other metrics, and one whose engine is silent leaves out its numbers."""
    sums: Gauges = dict.fromkeys(_SUMMED)
    for page in pages:
        found = {name: float(value) for name, value in _SAMPLE.findall(page)}
        for key, name in _SUMMED.items():
            if name in found:
                sums[key] = (sums[key] or 0.0) + found[name]
    blocks, free = sums["kv_blocks"], sums["kv_blocks_free"]
    use = 1.0 - free / blocks if blocks and free is not None else None
    return sums | {"kv_use": use}
