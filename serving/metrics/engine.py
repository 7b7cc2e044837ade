"""The engine's numbers as families. Without an engine only `textgen_engine_up` says something; TGI's names stay
declared, so that dashboards find them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from serving.buckets import BATCH_SIZE, DURATION_S, TOKENS_PER_STEP
from serving.messages import Bucketed, EngineStats, MethodStats
from serving.metrics.exposition import Family, Kind, Sample, histogram_samples, single, summary_samples


@dataclass(slots=True, frozen=True)
class _Number:
    name: str
    kind: Kind
    help: str
    value: Callable[[EngineStats], float]


@dataclass(slots=True, frozen=True)
class _PerMethod:
    """One sample, or histogram, for each of `prefill` and `decode`."""

    name: str
    kind: Kind
    help: str
    value: Callable[[MethodStats], int | Bucketed]


_NUMBERS = (
    _Number("tgi_queue_size", "gauge", "Sequences that wait", lambda s: s.num_waiting),
    _Number("tgi_batch_current_size", "gauge", "Sequences that run", lambda s: s.num_running),
    _Number(
        "tgi_batch_current_max_tokens",
        "gauge",
        "Tokens that the running sequences may grow to",
        lambda s: s.step.running_max_tokens,
    ),
    _Number(
        "tgi_batch_max_total_tokens",
        "gauge",
        "Tokens that the KV cache holds",
        lambda s: s.step.capacity_tokens,
    ),
    _Number(
        "tgi_batch_total_tokens", "gauge", "Tokens for which KV blocks are in use", lambda s: _used_tokens(s)
    ),
    _Number("textgen_sequences_waiting", "gauge", "Sequences that wait", lambda s: s.num_waiting),
    _Number("textgen_sequences_running", "gauge", "Sequences that run", lambda s: s.num_running),
    _Number("textgen_waiting_tokens", "gauge", "Prompt tokens that wait", lambda s: s.num_waiting_tokens),
    _Number("textgen_kv_blocks", "gauge", "KV blocks in all", lambda s: s.num_blocks),
    _Number(
        "textgen_kv_blocks_free",
        "gauge",
        "KV blocks that are free or evictable",
        lambda s: s.num_free_blocks,
    ),
    _Number("textgen_kv_use", "gauge", "Share of the KV blocks in use, 0 to 1", lambda s: kv_use(s)),
    _Number(
        "textgen_saturation",
        "gauge",
        "The larger of the shares in use of MAX_CONCURRENT_REQUESTS and of the KV blocks, 0 to 1",
        lambda s: saturation(s),
    ),
    _Number("textgen_engine_steps", "counter", "Engine steps", lambda s: s.num_steps),
    _Number("textgen_sequences", "counter", "Sequences admitted", lambda s: s.num_sequences),
    _Number("textgen_sequences_finished", "counter", "Sequences that finished", lambda s: s.num_finished),
    _Number("textgen_sequences_failed", "counter", "Sequences that failed", lambda s: s.num_failed),
    _Number("textgen_sequences_aborted", "counter", "Sequences that were aborted", lambda s: s.num_aborted),
    _Number(
        "textgen_preemptions",
        "counter",
        "Sequences preempted for lack of KV blocks",
        lambda s: s.num_preemptions,
    ),
    _Number(
        "textgen_prompt_tokens",
        "counter",
        "Prompt tokens of admitted requests",
        lambda s: s.num_prompt_tokens,
    ),
    _Number("textgen_generated_tokens", "counter", "Tokens generated", lambda s: s.num_generated_tokens),
    _Number(
        "textgen_cached_tokens",
        "counter",
        "Prompt tokens found in the prefix cache",
        lambda s: s.num_cached_tokens,
    ),
    _Number(
        "textgen_grammars_waiting",
        "gauge",
        "Grammars that wait to be compiled",
        lambda s: s.grammar.num_waiting,
    ),
    _Number(
        "textgen_grammars_refused",
        "counter",
        "Grammars refused by the engine: wrong, too costly, or too many at once",
        lambda s: s.grammar.num_refused,
    ),
    _Number(
        "textgen_grammar_cache_bytes",
        "gauge",
        "Bytes that compiled grammars count in the cache",
        lambda s: s.grammar.cache_bytes,
    ),
    _Number("textgen_sessions", "gauge", "Stateful sessions that are open", lambda s: s.session.num_open),
    _Number(
        "textgen_session_pinned_blocks",
        "gauge",
        "KV blocks that sessions keep for their next turns",
        lambda s: s.session.num_pinned_blocks,
    ),
    _Number(
        "textgen_session_pinned_tokens",
        "gauge",
        "Tokens that sessions keep for their next turns",
        lambda s: s.session.num_pinned_tokens,
    ),
    _Number(
        "textgen_session_pins_given_up",
        "counter",
        "Sessions that lost what they kept, for room or quota",
        lambda s: s.session.num_pins_given_up,
    ),
    _Number("textgen_forward_seconds", "counter", "Seconds spent in forward passes", lambda s: s.forward_s),
)

_PER_METHOD = (
    _PerMethod("tgi_batch_inference_count", "counter", "Steps that began", lambda m: m.num_started),
    _PerMethod("tgi_batch_inference_success", "counter", "Steps that succeeded", lambda m: m.num_done),
    _PerMethod(
        "tgi_batch_inference_failure",
        "counter",
        "Steps that failed; the engine does not survive one",
        lambda m: m.num_started - m.num_done,
    ),
    _PerMethod(
        "tgi_batch_inference_duration",
        "histogram",
        "Whole step, planning included, seconds",
        lambda m: m.step_s,
    ),
    _PerMethod("tgi_batch_forward_duration", "histogram", "Forward pass, seconds", lambda m: m.forward_s),
    _PerMethod(
        "tgi_batch_decode_duration",
        "histogram",
        "Taking in what a step produced, seconds",
        lambda m: m.update_s,
    ),
    _PerMethod(
        "tgi_batch_filter_duration",
        "histogram",
        "Never observed: sequences that ended leave the batch inside tgi_batch_decode_duration",
        lambda _: Bucketed(),
    ),
)


def saturation(stats: EngineStats) -> float:
    """How full the server is, for autoscaling."""
    active = stats.num_running + stats.num_waiting
    concurrency = active / stats.step.max_sequences if stats.step.max_sequences else 0.0
    return min(1.0, max(concurrency, kv_use(stats)))


def engine_families(stats: EngineStats | None) -> Iterator[Family]:
    yield single(
        "textgen_engine_up", "gauge", "1 when the engine answered for this page", float(stats is not None)
    )
    for number in _NUMBERS:
        samples = [] if stats is None else [Sample(float(number.value(stats)))]
        yield Family(number.name, number.kind, number.help, samples)
    methods = {} if stats is None else stats.step.methods
    for row in _PER_METHOD:
        per_method = [
            sample for name, each in methods.items() for sample in _method_samples(name, row.value(each))
        ]
        yield Family(row.name, row.kind, row.help, per_method)
    yield from _batch_families(stats or _NOTHING)
    yield _grammar_family(stats or _NOTHING)


def _batch_families(stats: EngineStats) -> Iterator[Family]:
    step = stats.step
    num_joined = sum(step.join_s.counts)
    yield Family(
        "tgi_batch_next_size",
        "histogram",
        "Sequences that began in one step",
        list(histogram_samples(step.next_size.counts, step.next_size.total, BATCH_SIZE)),
    )
    yield Family(
        "tgi_batch_concat",
        "counter",
        "Steps in which sequences joined running ones",
        [Sample(num_joined, {"reason": "chunking"})] if num_joined else [],
    )
    yield Family(
        "tgi_batch_concat_duration",
        "histogram",
        "Planning of the steps in which sequences joined running ones, seconds",
        list(histogram_samples(step.join_s.counts, step.join_s.total, DURATION_S, {"method": "decode"})),
    )
    yield Family(
        "tgi_request_skipped_tokens",
        "summary",
        "Tokens per sequence and step beyond the first",
        list(summary_samples(step.extra_tokens.counts, step.extra_tokens.total, TOKENS_PER_STEP)),
    )
    yield Family(
        "textgen_queue_duration",
        "histogram",
        "Arrival in the engine to first scheduled, seconds; counted when a request is scheduled",
        list(histogram_samples(stats.queue_s.counts, stats.queue_s.total, DURATION_S)),
    )


def _grammar_family(stats: EngineStats) -> Family:
    compile_s = stats.grammar.compile_s
    return Family(
        "textgen_grammar_compile_duration",
        "histogram",
        "A grammar that is not in the cache was asked for, to compiled or refused, seconds",
        list(histogram_samples(compile_s.counts, compile_s.total, DURATION_S)),
    )


def _method_samples(method: str, value: int | Bucketed) -> Iterator[Sample]:
    labels = {"method": method}
    if isinstance(value, Bucketed):
        yield from histogram_samples(value.counts, value.total, DURATION_S, labels)
    else:
        yield Sample(value, labels)


def kv_use(stats: EngineStats) -> float:
    """Share of the KV blocks in use, 0 to 1."""
    return 1.0 - stats.num_free_blocks / stats.num_blocks if stats.num_blocks else 0.0


def _used_tokens(stats: EngineStats) -> int:
    if not stats.num_blocks:
        return 0
    tokens_per_block = stats.step.capacity_tokens // stats.num_blocks
    return (stats.num_blocks - stats.num_free_blocks) * tokens_per_block


_NOTHING = EngineStats(
    num_steps=0,
    num_waiting=0,
    num_running=0,
    num_waiting_tokens=0,
    num_free_blocks=0,
    num_blocks=0,
    num_sequences=0,
    num_finished=0,
    num_failed=0,
    num_aborted=0,
    num_preemptions=0,
    num_prompt_tokens=0,
    num_generated_tokens=0,
    num_cached_tokens=0,
    forward_s=0.0,
)
