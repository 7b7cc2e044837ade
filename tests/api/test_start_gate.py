"""The gates for costly work: how many pass, and that nobody who ends in any way keeps a place."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from serving.api import start_gate
from serving.api.schema.tokenize import MAX_CHARS
from serving.api.start_gate import NUM_SPELLING, NUM_STARTING, StartGate
from tests.api.conftest import Front
from tests.api.openai_client import BODIES, OpenAIFront

WAIT_S = 10.0


@pytest.fixture(autouse=True)
def gates_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a gevent worker; elsewhere they are always open."""
    monkeypatch.setattr(start_gate, "cooperative", lambda: True)


def test_few_pass_at_a_time() -> None:
    gate = StartGate(2)
    first = gate.enter()
    gate.enter()
    third, fourth = gevent.spawn(gate.enter), gevent.spawn(gate.enter)
    gevent.sleep(0)
    assert not third.ready()
    first.give_back()
    first.give_back()  # twice is once
    third.get(timeout=WAIT_S)
    gevent.sleep(0)
    assert not fourth.ready()
    fourth.kill()


def test_who_is_killed_while_waiting_takes_no_place() -> None:
    gate = StartGate(1)
    held = gate.enter()
    waiting = gevent.spawn(gate.enter)
    gevent.sleep(0)
    waiting.kill()
    held.give_back()
    gevent.spawn(gate.enter).get(timeout=WAIT_S)


@pytest.mark.parametrize(
    "body", [{"inputs": ""}, {"inputs": 3}, {"inputs": "a"}, {"inputs": "a", "adapter_id": "x"}]
)
def test_every_call_gives_its_place_back(front: Front, body: Any) -> None:
    with gevent.Timeout(WAIT_S):
        for _ in range(NUM_STARTING + 1):
            assert front.client.post("/generate", json=body).status_code in (200, 404, 422)


@pytest.mark.parametrize("fields", [{"n": 0}, {"seed": "x"}, {"model": "other"}, {"stream": True}])
@pytest.mark.parametrize("path", BODIES)
def test_every_call_of_the_openai_routes_does(path: str, fields: dict[str, Any]) -> None:
    client = OpenAIFront().app.test_client()
    with gevent.Timeout(WAIT_S):
        for _ in range(NUM_STARTING + 1):
            client.post(path, json={**BODIES[path], **fields}).close()


def test_long_texts_to_spell_give_theirs_back(front: Front) -> None:
    long = "a" * (32 * 1024)
    chat = {"messages": [{"role": "user", "content": "a" * (MAX_CHARS + 1)}]}
    with gevent.Timeout(WAIT_S):
        for _ in range(NUM_SPELLING + 1):
            assert front.client.post("/tokenize", json={"inputs": long}).status_code == 200
            assert front.client.post("/chat_tokenize", json=chat).status_code == 422
