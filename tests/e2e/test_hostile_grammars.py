"""Hostile grammars over HTTP against a real server: each is answered in time, and nobody else notices.

What they cost in time between tokens is measured by `python -m benchmarks.neighbours`.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.hostile_grammars import Attack, attacks
from benchmarks.neighbours import post
from local_mode.server_process import ServerProcess
from tests.e2e.conftest import metric, pid_of, serving
from tests.e2e.native_calls import ask, generate

# S-16 and R-30 of the reliability requirements: an answer in 3 s.
MAX_S = 3.0
CLIENTS = 4


@pytest.fixture(scope="module")
def server(server_environment: dict[str, str], demo_model_dir: Path) -> Iterator[ServerProcess]:
    with serving(server_environment, MODEL_ID=str(demo_model_dir)) as server:
        yield server


def _hostile(count: int) -> list[Attack]:
    """`count` attacks spread over all kinds."""
    return list(attacks(36 if count < 36 else count))[:: 1 if count >= 36 else 2]


def test_attacks_are_answered_in_time_and_neighbours_get_the_same_text(
    server: ServerProcess, full: bool
) -> None:
    alone = generate(server, max_new_tokens=60)
    assert alone.status == 200
    engine = pid_of(server, "engine")
    waiting: queue.SimpleQueue[Attack | None] = queue.SimpleQueue()
    for attack in [*_hostile(100 if full else 18), *([None] * CLIENTS)]:
        waiting.put(attack)
    replies: list[tuple[Attack, int, float, str]] = []

    def attacker() -> None:
        while (attack := waiting.get()) is not None:
            replies.append((attack, *post(server.port, attack.path, attack.body)))

    threads = [threading.Thread(target=attacker) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    beside = []
    while any(thread.is_alive() for thread in threads):
        beside.append((server.ping()[0], generate(server, max_new_tokens=60).json))
    for thread in threads:
        thread.join()
    assert len(replies) == (100 if full else 18)
    assert beside
    for ping, answer in beside:
        assert ping == 200
        assert answer == alone.json
    for attack, status, took_s, error in replies:
        assert status == 200 or 400 <= status < 500, (attack.name, status)
        assert (status == 200) == (error == ""), attack.name
        assert took_s < MAX_S, (attack.name, took_s)
    assert {400, 422} & {status for _, status, _, _ in replies}
    assert pid_of(server, "engine") == engine


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ({"type": "regex", "value": "(" * 30_000 + "a" + ")" * 30_000}, "characters"),
        ({"type": "json", "value": {"$ref": "#"}}, "nothing matches"),
        ({"type": "json", "value": {"enum": [f"v{i}" for i in range(50_000)]}}, "bytes"),
        ({"type": "json", "value": {"multipleOf": 999_983}}, "multipleOf"),
        ({"type": "json", "value": {"type": "array", "minItems": 10**9}}, "minItems"),
    ],
)
def test_a_refusal_says_why_and_is_counted(
    server: ServerProcess, grammar: dict[str, object], reason: str
) -> None:
    before = metric(server, "textgen_grammars_refused")
    answer = generate(server, grammar=grammar)
    assert answer.status == 422
    assert "parameters.grammar" in answer.json["error"] and reason in answer.json["error"]
    assert len(answer.body) < 1024
    assert metric(server, "textgen_grammars_refused") == before + 1


def test_what_compiles_is_counted_once_and_kept(server: ServerProcess) -> None:
    grammar = {"type": "regex", "value": "(yes|no) and (yes|no), counted once"}
    before = metric(server, "textgen_grammar_compile_duration_count")
    texts = [generate(server, grammar=grammar, max_new_tokens=40).json["generated_text"] for _ in range(3)]
    assert len(set(texts)) == 1 and texts[0].endswith("counted once")
    assert metric(server, "textgen_grammar_compile_duration_count") == before + 1
    assert metric(server, "textgen_grammar_cache_bytes") > 0
    assert metric(server, "textgen_grammars_waiting") == 0


def test_a_forced_tool_call_with_a_hostile_schema_is_refused_by_the_field_that_asked(
    server: ServerProcess,
) -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 999_983}}}
    body = {
        "messages": [{"role": "user", "content": "Hello"}],
        "tools": [{"type": "function", "function": {"name": "look_up", "parameters": parameters}}],
        "tool_choice": "required",
        "max_tokens": 1,
    }
    answer = ask(server, "POST", "/v1/chat/completions", json.dumps(body).encode())
    assert answer.status == 400
    assert "multipleOf" in answer.json["error"]["message"] and "tools" in answer.json["error"]["message"]
