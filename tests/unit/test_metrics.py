"""The Prometheus page against a table written from TGI's documentation: names, types, labels and buckets, byte for byte."""

from __future__ import annotations

import math
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from serving.api.access import FIELDS
from serving.batch import NewRow, ScheduledBatch, ScheduledRow
from serving.buckets import DURATION_S, BucketCounts
from serving.engine.step_metrics import StepMetrics
from serving.messages import EngineStats, SequenceOutput
from serving.metrics import ServerMetrics
from serving.sampling_params import SamplingParams

MAX_INPUT, MAX_TOTAL = 200, 256

# name -> type, label names. What TGI declares and never sets has no documented type; it is a gauge here.
TGI: dict[str, tuple[str, tuple[str, ...]]] = {
    "tgi_request_count": ("counter", ()),
    "tgi_request_success": ("counter", ()),
    "tgi_request_failure": ("counter", ("err",)),
    "tgi_request_duration": ("histogram", ()),
    "tgi_request_validation_duration": ("histogram", ()),
    "tgi_request_queue_duration": ("histogram", ()),
    "tgi_request_inference_duration": ("histogram", ()),
    "tgi_request_mean_time_per_token_duration": ("histogram", ()),
    "tgi_request_generated_tokens": ("histogram", ()),
    "tgi_request_input_length": ("histogram", ()),
    "tgi_request_max_new_tokens": ("histogram", ()),
    "tgi_request_skipped_tokens": ("summary", ()),
    "tgi_queue_size": ("gauge", ()),
    "tgi_batch_current_size": ("gauge", ()),
    "tgi_batch_current_max_tokens": ("gauge", ()),
    "tgi_batch_next_size": ("histogram", ()),
    "tgi_batch_concat": ("counter", ("reason",)),
    "tgi_batch_inference_count": ("counter", ("method",)),
    "tgi_batch_inference_success": ("counter", ("method",)),
    "tgi_batch_inference_failure": ("counter", ("method",)),
    "tgi_batch_inference_duration": ("histogram", ("method",)),
    "tgi_batch_forward_duration": ("histogram", ("method",)),
    "tgi_batch_decode_duration": ("histogram", ("method",)),
    "tgi_batch_filter_duration": ("histogram", ("method",)),
    "tgi_batch_concat_duration": ("histogram", ("method",)),
    "tgi_batch_max_total_tokens": ("gauge", ()),
    "tgi_batch_total_tokens": ("gauge", ()),
}
NEVER_OBSERVED = {"tgi_batch_filter_duration"}
LABEL_VALUES = {
    "err": {"overloaded", "validation", "generation", "incomplete", "dropped", "template"},
    "method": {"prefill", "decode"},
    "reason": {"backpressure", "chunking", "wait_exceeded"},
}
QUANTILES = ["0", "0.5", "0.9", "0.95", "0.99", "0.999", "1"]
LINE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")


def steps(upper: int) -> list[float]:
    return [upper * k / 100 for k in range(1, 101)]


def batch(*num_tokens: int, num_new: int = 0) -> ScheduledBatch:
    new = NewRow(
        row=0,
        token_ids=[1],
        num_prompt_tokens=1,
        num_computed_tokens=0,
        block_tables=[[]],
        params=SamplingParams(),
        seed=0,
    )
    rows = [ScheduledRow(row=i, num_tokens=n, samples=True) for i, n in enumerate(num_tokens)]
    return ScheduledBatch(step=1, rows=rows, new_rows=[new] * num_new)


def outputs(*sizes: int) -> list[SequenceOutput]:
    return [SequenceOutput(request_id="a-1", token_ids=[1] * size) for size in sizes]


def step(
    metrics: StepMetrics, planned: ScheduledBatch, made: list[SequenceOutput], at_s: float = 10.0
) -> None:
    begun = metrics.begin(planned, at_s, at_s + 0.001)
    metrics.end(
        begun,
        made,
        num_tokens=sum(len(output.token_ids) for output in made),
        forward_s=0.02,
        executed_s=at_s + 0.03,
        ended_s=at_s + 0.05,
    )


def engine_stats() -> EngineStats:
    metrics = StepMetrics()
    step(metrics, batch(5, 7, num_new=2), outputs(1, 1))
    step(metrics, batch(1, 1, 9, num_new=1), outputs(1, 1, 1))
    step(metrics, batch(1, 1, 1), outputs(1, 3, 1))
    counters = {name: 0 for name in EngineStats.__struct_fields__ if name.startswith("num_")}
    queue_s = BucketCounts(DURATION_S)
    queue_s.observe(0.01)
    stats = EngineStats(
        **{**counters, "num_blocks": 64, "num_free_blocks": 48, "num_running": 3, "num_waiting": 1},
        forward_s=0.06,
        step=metrics.stats(running_max_tokens=90, capacity_tokens=1024, max_sequences=8),
    )
    return msgspec.json.decode(msgspec.json.encode(stats), type=EngineStats)


def parse(page: bytes) -> tuple[dict[str, str], dict[str, list[tuple[dict[str, str], float]]]]:
    """Types by family, samples by sample name."""
    types: dict[str, str] = {}
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for line in page.decode().splitlines():
        if line.startswith("# TYPE "):
            name, kind = line.split(" ")[2:]
            assert name not in types, f"{name} is declared twice"
            types[name] = kind
        elif not line.startswith("#"):
            match = LINE.fullmatch(line)
            assert match is not None, line
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
            samples.setdefault(match[1], []).append((labels, float(match[3])))
    return types, samples


def test_first_requests_may_come_together() -> None:
    """Every call binds the limits, and which of several first calls comes first must not matter."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            for _ in range(20):
                metrics, together = ServerMetrics(), threading.Barrier(4)

                def first_call(
                    metrics: ServerMetrics = metrics, together: threading.Barrier = together
                ) -> None:
                    together.wait()
                    metrics.bind_limits(max_input_tokens=MAX_INPUT, max_total_tokens=MAX_TOTAL)

                for call in [threads.submit(first_call) for _ in range(4)]:
                    call.result()
    finally:
        sys.setswitchinterval(interval_s)


@pytest.fixture
def full_page() -> bytes:
    metrics = ServerMetrics()
    metrics.bind_limits(max_input_tokens=MAX_INPUT, max_total_tokens=MAX_TOTAL)
    metrics.request_count.inc()
    metrics.request_success.inc()
    metrics.request_failure.labels(err="validation").inc()
    for histogram in (
        metrics.request_duration,
        metrics.validation_duration,
        metrics.queue_duration,
        metrics.inference_duration,
        metrics.time_per_token,
        metrics.input_length,
        metrics.generated_tokens,
        metrics.max_new_tokens,
    ):
        assert histogram is not None
        histogram.observe(3)
    return metrics.render(engine_stats())


def test_names_and_types_are_tgis(full_page: bytes) -> None:
    types, _ = parse(full_page)
    ours = {name: kind for name, kind in types.items() if name.startswith("tgi_")}
    assert ours == {name: kind for name, (kind, _) in TGI.items()}
    assert all(name.startswith(("tgi_", "textgen_")) for name in types)


@pytest.mark.parametrize("name", sorted(TGI))
def test_samples_carry_tgis_labels(full_page: bytes, name: str) -> None:
    kind, label_names = TGI[name]
    _, samples = parse(full_page)
    suffixes = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("", "_sum", "_count")}.get(
        kind, ("",)
    )
    if name in NEVER_OBSERVED:
        assert not any(name + suffix in samples for suffix in suffixes)
        return
    for suffix in suffixes:
        own = {"_bucket": {"le"}, "": {"quantile"} if kind == "summary" else set()}.get(suffix, set())
        for labels, value in samples[name + suffix]:
            assert set(labels) == {*label_names, *own}
            assert math.isfinite(value)
            for label in label_names:
                assert labels[label] in LABEL_VALUES[label]
    assert name + "_total" not in samples


@pytest.mark.parametrize("name", sorted(n for n, (kind, _) in TGI.items() if kind == "histogram"))
def test_buckets_are_tgis(full_page: bytes, name: str) -> None:
    if name in NEVER_OBSERVED:
        return
    _, samples = parse(full_page)
    series: dict[tuple[tuple[str, str], ...], list[float]] = {}
    for labels, _ in samples[name + "_bucket"]:
        rest = tuple(sorted((k, v) for k, v in labels.items() if k != "le"))
        series.setdefault(rest, []).append(float(labels["le"]))
    if name.endswith("duration"):
        expected = [0.0001 * 1.5**k for k in range(1, 36)]
        assert len(expected) == 35 and 145 < expected[-1] < 146
    elif name == "tgi_batch_next_size":
        expected = [float(size) for size in range(1, 1025)]
    else:
        expected = steps(MAX_INPUT if name == "tgi_request_input_length" else MAX_TOTAL)
    for bounds in series.values():
        assert bounds == [*expected, math.inf]


def test_engine_values(full_page: bytes) -> None:
    _, samples = parse(full_page)
    assert samples["tgi_queue_size"] == [({}, 1)]
    assert samples["tgi_batch_current_size"] == [({}, 3)]
    assert samples["tgi_batch_current_max_tokens"] == [({}, 90)]
    assert samples["tgi_batch_max_total_tokens"] == [({}, 1024)]
    assert samples["tgi_batch_total_tokens"] == [({}, 256)]
    assert samples["tgi_batch_concat"] == [({"reason": "chunking"}, 1)]
    assert samples["tgi_batch_concat_duration_count"] == [({"method": "decode"}, 1)]
    assert samples["tgi_batch_inference_count"] == [({"method": "prefill"}, 2), ({"method": "decode"}, 1)]
    assert samples["tgi_batch_inference_failure"] == [({"method": "prefill"}, 0), ({"method": "decode"}, 0)]
    assert samples["tgi_batch_inference_duration_sum"][1] == ({"method": "decode"}, pytest.approx(0.05))
    assert samples["tgi_batch_forward_duration_sum"][0] == ({"method": "prefill"}, pytest.approx(0.04))
    assert samples["tgi_batch_decode_duration_sum"][1] == ({"method": "decode"}, pytest.approx(0.02))
    assert samples["tgi_batch_next_size_sum"] == [({}, 3)]
    assert samples["tgi_request_skipped_tokens_count"] == [({}, 8)]
    assert samples["tgi_request_skipped_tokens_sum"] == [({}, 2)]
    quantiles = {labels["quantile"]: value for labels, value in samples["tgi_request_skipped_tokens"]}
    assert list(quantiles) == QUANTILES
    assert (quantiles["0"], quantiles["0.5"], quantiles["1"]) == (0, 0, 2)
    assert samples["textgen_kv_use"] == [({}, 0.25)]
    assert samples["textgen_saturation"] == [({}, 0.5)]  # 4 of 8 sequences, a quarter of the blocks
    assert samples["textgen_engine_up"] == [({}, 1)]


def test_saturation_is_the_fuller_of_the_two_and_never_above_one() -> None:
    def saturation(stats: EngineStats) -> float:
        return parse(ServerMetrics().render(stats))[1]["textgen_saturation"][0][1]

    stats = engine_stats()
    assert saturation(msgspec.structs.replace(stats, num_free_blocks=8)) == 0.875
    assert saturation(msgspec.structs.replace(stats, num_waiting=100)) == 1.0


def test_a_failed_step_shows_as_failure() -> None:
    metrics = StepMetrics()
    metrics.begin(batch(1), 1.0, 1.1)
    decode = metrics.stats(running_max_tokens=0, capacity_tokens=0, max_sequences=1).methods["decode"]
    assert decode.num_started - decode.num_done == 1


def test_without_an_engine_tgis_names_stay_declared() -> None:
    types, samples = parse(ServerMetrics().render(None))
    assert set(TGI) <= set(types)
    assert samples["textgen_engine_up"] == [({}, 0)]
    assert "tgi_queue_size" not in samples and "textgen_saturation" not in samples


def test_token_gaps_arrive_bucket_by_bucket() -> None:
    metrics, gaps = ServerMetrics(), BucketCounts(DURATION_S)
    for value in (0.0001, 0.01, 0.01, 0.5, 1000.0):
        gaps.observe(value)
        metrics.first_token_duration.observe(value)
    metrics.observe_token_gaps(gaps)
    metrics.observe_token_gaps(BucketCounts(DURATION_S))
    _, samples = parse(metrics.render(None))
    for suffix in ("_bucket", "_sum", "_count"):
        assert (
            samples["textgen_inter_token_duration" + suffix]
            == samples["textgen_first_token_duration" + suffix]
        )


def test_label_values_are_escaped() -> None:
    metrics = ServerMetrics()
    metrics.http_requests.labels(route='/a"b\\c\nd', method="GET", status="200").inc()
    assert 'route="/a\\"b\\\\c\\nd"' in metrics.render(None).decode()


def test_a_step_costs_less_than_ten_microseconds(full: bool) -> None:
    metrics, planned, made = StepMetrics(), batch(*[1] * 32), outputs(*[1] * 32)
    best_s = math.inf
    for _ in range(50 if full else 15):
        started_s = time.perf_counter()
        for _ in range(100):
            begun = metrics.begin(planned, 1.0, 1.1)
            metrics.end(begun, made, num_tokens=32, forward_s=0.02, executed_s=1.2, ended_s=1.3)
        best_s = min(best_s, (time.perf_counter() - started_s) / 100)
    assert best_s < 10e-6, f"{best_s * 1e6:.1f} µs"


def test_the_documentation_has_every_name() -> None:
    page = (Path(__file__).parents[2] / "docs" / "observability.md").read_text()
    documented = set(re.findall(r"`((?:tgi|textgen)_\w+)`", page))
    types, _ = parse(ServerMetrics().render(None))
    assert documented == set(types)
    assert [name for name in FIELDS if f"`{name}`" not in page] == []
