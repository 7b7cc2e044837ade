"""The numbers that the page draws, from what containers show to Prometheus."""

from __future__ import annotations

import pytest

from local_mode.playground.gauges import reduced

PAGE = """\
# HELP textgen_kv_blocks KV blocks in all
# TYPE textgen_kv_blocks gauge
textgen_kv_blocks 200.0
textgen_kv_blocks_free 150.0
tgi_batch_total_tokens 800.0
tgi_batch_max_total_tokens 3200.0
textgen_sequences_running 3.0
textgen_sequences_waiting 1.0
textgen_generated_tokens 1.234e+03
textgen_http_requests{route="/generate",status="200"} 7.0
"""


def test_one_container() -> None:
    gauges = reduced([PAGE])
    assert gauges["kv_use"] == pytest.approx(0.25)
    assert gauges["kv_tokens"] == 800
    assert gauges["kv_tokens_max"] == 3200
    assert (gauges["running"], gauges["waiting"], gauges["generated_tokens"]) == (3, 1, 1234)
    assert gauges["preemptions"] is None


def test_several_are_added_and_the_share_is_of_all_blocks() -> None:
    empty = PAGE.replace("blocks_free 150", "blocks_free 200").replace("running 3", "running 0")
    gauges = reduced([PAGE, empty, "up 1\n"])
    assert gauges["running"] == 3
    assert gauges["kv_use"] == pytest.approx(0.125)


@pytest.mark.parametrize("pages", [[], [""], ["<html>not metrics</html>"], ["http_requests 3\n"]])
def test_what_nobody_shows_is_not_zero(pages: list[str]) -> None:
    assert set(reduced(pages).values()) == {None}


def test_a_cache_of_no_blocks_is_no_division() -> None:
    assert reduced(["textgen_kv_blocks 0\ntextgen_kv_blocks_free 0\n"])["kv_use"] is None
