"""Stateful sessions on real servers: what one keeps, seen from every worker, until it ends; and that answers stay equal."""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from local_mode.server_process import ServerProcess
from serving.api.sessions import CLOSED_HEADER, NEW_HEADER, SESSION_HEADER
from tests.e2e.conftest import metric, serving, wait_until
from tests.e2e.native_calls import Answer, ask

CAPACITY = 1024
BLOCK = 16
WORDS = (
    "the",
    "old",
    "miller",
    "walked",
    "by",
    "a",
    "river",
    "and",
    "counted",
    "boats",
    "while",
    "his",
    "daughter",
    "sang",
)


@pytest.fixture(scope="module")
def server(server_environment: dict[str, str]) -> Iterator[ServerProcess]:
    settings = {"API_WORKERS": "2", "MAX_BATCH_TOTAL_TOKENS": str(CAPACITY), "SESSION_KV_FRACTION": "0.5"}
    with serving(server_environment, **settings) as server:
        yield server


@pytest.fixture(scope="module")
def strict_server(server_environment: dict[str, str]) -> Iterator[ServerProcess]:
    settings = {"SAGEMAKER_SESSIONS_EXPIRATION": "2", "MAX_SESSIONS": "2", "SESSION_KV_FRACTION": "0"}
    with serving(server_environment, **settings) as server:
        yield server


def invoke(server: ServerProcess, body: Any, session: str = "", status: int = 200) -> Answer:
    answer = ask(server, "POST", "/invocations", body, **{SESSION_HEADER: session})
    assert answer.status == status, answer.body
    return answer


def open_session(server: ServerProcess) -> str:
    answer = invoke(server, {"requestType": "NEW_SESSION"}, "NEW_SESSION")
    assert answer.headers[NEW_HEADER.lower()] == answer.headers[SESSION_HEADER.lower()]
    found = re.fullmatch(
        r"([0-9a-f]{32}); Expires=(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)", answer.headers[NEW_HEADER.lower()]
    )
    assert found and time.time() - 2 < calendar.timegm(time.strptime(found[2], "%Y-%m-%dT%H:%M:%SZ"))
    return found[1]


def close_session(server: ServerProcess, session: str) -> None:
    assert invoke(server, {"requestType": "CLOSE"}, session).headers[CLOSED_HEADER.lower()] == session


def complete(server: ServerProcess, prompt: str, session: str = "", *, max_tokens: int = 24) -> Any:
    body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0}
    return invoke(server, body, session).json


def cached(answer: Any) -> int:
    tokens: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return tokens


def tale(number: int, num_words: int = 60) -> str:
    """A text that shares no beginning with that of another number."""
    return (
        f"Tale {number}. "
        + " ".join(WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(num_words))
        + "."
    )


def flush(server: ServerProcess, first: int) -> None:
    """More tokens of other texts than the cache holds."""
    seen, number = 0, first
    while seen < CAPACITY:
        seen += complete(server, tale(number, 120), max_tokens=1)["usage"]["total_tokens"]
        number += 1


def test_the_second_turn_finds_the_first_after_other_traffic(server: ServerProcess) -> None:
    session = open_session(server)
    parameters = {"max_new_tokens": 24, "details": True, "decoder_input_details": True}
    history = {}
    for number, name in enumerate((session, "")):
        (first,) = invoke(server, {"inputs": tale(number), "parameters": parameters}, name).json
        tokens = first["details"]["prefill"] + first["details"]["tokens"]
        history[name] = [token["id"] for token in tokens]
    flush(server, 100)
    for name, ids in history.items():
        second = invoke(server, {"prompt": [*ids, 5, 6, 7], "max_tokens": 1}, name).json
        # The last token of an answer has been drawn and never computed.
        assert cached(second) == ((len(ids) - 1) // BLOCK * BLOCK if name == session else 0)
    assert metric(server, "textgen_session_pinned_tokens") >= len(history[session]) - BLOCK
    # Several connections, so that both workers have been asked.
    for _ in range(8):
        complete(server, tale(0), session, max_tokens=1)
    close_session(server, session)
    assert metric(server, "textgen_session_pinned_blocks") == 0
    for body in ({"requestType": "CLOSE"}, {"inputs": "a"}, {"prompt": "a"}, {"inputs": "a", "stream": True}):
        assert b"session not found" in invoke(server, body, session, 400).body


def test_answers_are_the_same_with_and_without_a_session(server: ServerProcess) -> None:
    session = open_session(server)
    text = {name: tale(7) for name in ("", session)}
    for turn in range(4):
        answers = {name: complete(server, text[name], name)["choices"][0]["text"] for name in text}
        assert answers[""] == answers[session]
        text = {name: text[name] + answer + f" Then {turn}" for name, answer in answers.items()}
        flush(server, 200 + 20 * turn)
    parameters = {"max_new_tokens": 12, "do_sample": True, "seed": 5, "details": True}
    body = {"inputs": text[session], "parameters": parameters}
    whole = [invoke(server, body, name).json[0]["details"]["tokens"] for name in (session, "")]
    streams = [invoke(server, {**body, "stream": True}, name).events for name in (session, "")]
    ids = [[token["id"] for token in tokens] for tokens in whole]
    ids += [[event["token"]["id"] for event in events] for events in streams]
    assert len(ids[0]) == 12 and ids == [ids[0]] * 4
    close_session(server, session)


def test_sessions_make_nobody_fail(server: ServerProcess) -> None:
    """Many sessions keep more than there is; a request as large as the cache is served all the same."""
    sessions = [open_session(server) for _ in range(8)]
    for number, session in enumerate(sessions):
        complete(server, tale(300 + number, 100), session)
    assert 0 < metric(server, "textgen_session_pinned_tokens") <= CAPACITY // 2
    given_up = metric(server, "textgen_session_pins_given_up")
    assert given_up > 0
    large = invoke(server, {"prompt": [5] * (CAPACITY - BLOCK), "max_tokens": BLOCK}).json
    assert large["usage"]["total_tokens"] == CAPACITY
    assert metric(server, "textgen_session_pins_given_up") > given_up
    assert metric(server, "textgen_preemptions") == 0
    for number, session in enumerate(sessions):
        complete(server, tale(300 + number, 100), session, max_tokens=1)
        close_session(server, session)
    wait_until(lambda: metric(server, "textgen_kv_use") == 0, limit_s=5, what="all blocks are free")


def test_quota_expiry_and_restart(server: ServerProcess, strict_server: ServerProcess) -> None:
    foreign = open_session(server)
    assert b"session not found" in invoke(strict_server, {"inputs": "a"}, foreign, 400).body
    close_session(server, foreign)
    first = open_session(strict_server)
    first_turn = invoke(strict_server, {"inputs": "a", "parameters": {"max_new_tokens": 1}}, "NEW_SESSION")
    second = first_turn.headers[NEW_HEADER.lower()].split(";")[0]
    refused = ask(strict_server, "POST", "/invocations", {"requestType": "NEW_SESSION"})
    assert refused.status == 429 and 1 <= int(refused.headers["retry-after"]) <= 2
    assert metric(strict_server, "textgen_sessions") == 2
    wait_until(lambda: metric(strict_server, "textgen_sessions") == 0, limit_s=10, what="expiry")
    for session in (first, second):
        for body in ({"inputs": "a"}, {"requestType": "CLOSE"}):
            assert b"session not found" in invoke(strict_server, body, session, 400).body
    close_session(strict_server, open_session(strict_server))
