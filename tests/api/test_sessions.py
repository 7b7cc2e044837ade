"""Stateful sessions on `/invocations`, on a fake engine: bodies, headers, statuses, and what the engine and the log get."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any

import pytest
from werkzeug.test import TestResponse

from serving.api.app import create_app
from serving.api.sessions import CLOSED_HEADER, NEW_HEADER, SESSION_HEADER
from serving.config import ServerConfig, SessionConfig, Stage
from serving.errors import GenerationFailed, NotReady, Overloaded
from tests.api.fake_engine import FakeEngine, FakeStream, FakeText, Script

MESSAGES = [{"role": "user", "content": "hi"}]
INFERENCE: list[dict[str, Any]] = [{"inputs": "a"}, {"messages": MESSAGES}, {"prompt": "a"}]
OPENED = "session-1; Expires=2026-01-02T03:04:05Z"


class SessionFront:
    def __init__(self, script: Script | None = None, **settings: Any) -> None:
        self.engine = FakeEngine(script)
        config = ServerConfig(sessions=SessionConfig(**settings))
        text = FakeText()
        app = create_app(self.engine, lambda: text, config, lambda: Stage(stage="ready"))
        self._client = app.test_client()

    def post(self, body: Any, session: str | None = None, status: int = 200) -> TestResponse:
        headers = {} if session is None else {SESSION_HEADER: session}
        response = self._client.post("/invocations", json=body, headers=headers)
        assert response.status_code == status, response.get_data(as_text=True)
        if status >= 400:
            assert len(response.data) < 1024
            assert not {NEW_HEADER, SESSION_HEADER, CLOSED_HEADER} & set(response.headers.keys())
        return response

    def open(self) -> str:
        opened: str = self.post({"requestType": "NEW_SESSION"}).headers[NEW_HEADER]
        return opened.split(";")[0]


@pytest.fixture
def front() -> SessionFront:
    return SessionFront()


def message_of(response: TestResponse) -> str:
    """The text of an error, whichever API's."""
    error = response.json["error"]
    message: str = error if isinstance(error, str) else error["message"]
    return message


@pytest.mark.parametrize("header", [None, "NEW_SESSION", "", "whatever"])
def test_a_session_is_opened_and_told_in_both_spellings(front: SessionFront, header: str | None) -> None:
    response = front.post({"requestType": "NEW_SESSION"}, header)
    assert response.headers[NEW_HEADER] == response.headers[SESSION_HEADER] == OPENED
    assert CLOSED_HEADER not in response.headers
    assert response.content_type == "text/plain; charset=utf-8"
    assert response.get_data(as_text=True) == "Session session-1 created"
    assert front.engine.sessions == ["session-1"] and front.engine.requests == []


def test_a_session_is_closed_once(front: SessionFront) -> None:
    session = front.open()
    response = front.post({"requestType": "CLOSE"}, session)
    assert response.headers[CLOSED_HEADER] == session
    assert NEW_HEADER not in response.headers and SESSION_HEADER not in response.headers
    assert response.get_data(as_text=True) == "Session session-1 closed"
    assert front.engine.sessions == []
    again = front.post({"requestType": "CLOSE"}, session, 400)
    assert "session not found" in message_of(again)


def test_closing_without_naming_the_session(front: SessionFront) -> None:
    front.open()
    for header in (None, ""):
        assert "invalid session_id" in message_of(front.post({"requestType": "CLOSE"}, header, 424))
    assert front.engine.sessions == ["session-1"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"requestType": "NEW_SESSION", "extra-field": "x"}, "extra-field"),
        ({"requestType": "NEW_SESSION", "inputs": "x"}, "inputs"),
        ({"messages": MESSAGES, "requestType": "CLOSE"}, "messages"),
        ({"requestType": "RENEW"}, "requestType"),
        ({"requestType": "new_session"}, "requestType"),
        ({"requestType": None}, "requestType"),
        ({"requestType": ["CLOSE"]}, "requestType"),
        ({"requestType": 1}, "requestType"),
    ],
)
def test_malformed_session_requests_do_nothing(front: SessionFront, body: dict[str, Any], field: str) -> None:
    session = front.open()
    error = front.post(body, session, 400).json["error"]
    assert error["param"] == field and field in error["message"]
    assert front.engine.sessions == [session] and front.engine.requests == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("body", INFERENCE)
def test_a_turn_of_a_session(front: SessionFront, body: dict[str, Any], stream: bool) -> None:
    plain = front.post({**body, "stream": stream}).get_data()
    session = front.open()
    response = front.post({**body, "stream": stream}, session)
    assert response.status_code == 200 and NEW_HEADER not in response.headers
    assert len(response.get_data()) == len(plain)
    assert [request.session_id for request in front.engine.requests] == ["", session]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("body", INFERENCE)
def test_a_turn_of_no_session(front: SessionFront, body: dict[str, Any], stream: bool) -> None:
    gone = front.open()
    front.post({"requestType": "CLOSE"}, gone)
    for name in (gone, "nonexistent-session-id"):
        response = front.post({**body, "stream": stream}, name, 400)
        assert "session not found" in message_of(response)
        assert isinstance(response.json["error"], str) == ("inputs" in body), "in the API's own shape"


@pytest.mark.parametrize(
    "name",
    [
        "a-",
        "-a",
        "a b",
        "a/../b",
        "../../etc/passwd",
        "a_b",
        "é",
        "a" * 257,
        "a;Expires=2030-01-01T00:00:00Z",
    ],
)
def test_malformed_ids_reach_nothing(front: SessionFront, name: str) -> None:
    for body in ({"requestType": "CLOSE"}, *INFERENCE):
        assert "session not found" in message_of(front.post(body, name, 400))
    assert front.engine.requests == []


@pytest.mark.parametrize("name", ["a", "a-b", "a--b-0", "0", "a" * 256])
def test_well_formed_ids_are_looked_for(front: SessionFront, name: str) -> None:
    front.engine.sessions.append(name)
    front.post({"inputs": "a"}, name)
    assert front.post({"requestType": "CLOSE"}, name).headers[CLOSED_HEADER] == name


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("body", INFERENCE)
def test_an_ordinary_body_with_new_session_is_the_first_turn_of_one(
    front: SessionFront, body: dict[str, Any], stream: bool
) -> None:
    response = front.post({**body, "stream": stream}, "NEW_SESSION")
    assert response.headers[NEW_HEADER] == response.headers[SESSION_HEADER] == OPENED
    assert [request.session_id for request in front.engine.requests] == ["session-1"]
    assert front.engine.sessions == ["session-1"]


def test_a_first_turn_that_fails_leaves_no_session() -> None:
    def refuse(stream: FakeStream) -> None:
        stream.put(Overloaded("full", retry_after_s=3.0))

    def fail(stream: FakeStream) -> None:
        stream.accept()
        stream.tokens("a")
        stream.put(GenerationFailed("broken"))

    for body in INFERENCE:
        front = SessionFront(refuse)
        for stream in (False, True):
            assert front.post({**body, "stream": stream}, "NEW_SESSION", 429).headers["retry-after"] == "3"
        assert front.engine.sessions == [] and len(front.engine.requests) == 2
        front = SessionFront(fail)
        front.post(body, "NEW_SESSION", 424 if "inputs" in body else 500)
        assert front.engine.sessions == []
    front = SessionFront()
    front.post({"inputs": ""}, "NEW_SESSION", 422)
    front.post({"messages": []}, "NEW_SESSION", 400)
    assert front.engine.sessions == [] and front.engine.requests == []


def test_sessions_that_are_switched_off() -> None:
    front = SessionFront(enabled=False)
    for body in ({"requestType": "NEW_SESSION"}, {"requestType": "CLOSE"}, *INFERENCE):
        for header in ("NEW_SESSION", "abc"):
            assert "switched off" in message_of(front.post(body, header, 400))
    assert front.engine.sessions == [] and front.engine.requests == []
    for body in INFERENCE:
        front.post(body)


def test_an_engine_that_has_no_place_or_no_time(front: SessionFront) -> None:
    front.engine.session_error = Overloaded("2 sessions are open", retry_after_s=41.2)
    for body in ({"requestType": "NEW_SESSION"}, *INFERENCE):
        response = front.post(body, "NEW_SESSION", 429)
        assert response.headers["retry-after"] == "42"
    front.engine.session_error = TimeoutError()
    assert front.post({"requestType": "NEW_SESSION"}, status=429).headers["retry-after"] == "1"
    front.engine.session_error = NotReady("the engine stopped")
    front.post({"requestType": "NEW_SESSION"}, status=503)
    assert front.engine.requests == []


def test_the_session_belongs_to_invocations_alone() -> None:
    engine = FakeEngine()
    app = create_app(engine, FakeText, ServerConfig(), lambda: Stage(stage="ready"))
    response = app.test_client().post("/generate", json={"inputs": "a"}, headers={SESSION_HEADER: "abc"})
    assert response.status_code == 200 and engine.requests[0].session_id == ""


def test_the_log_has_a_hash_of_the_id(front: SessionFront, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    session = front.open()
    front.post({"inputs": "a"}, session)
    front.post({"inputs": "a", "stream": True}, session).get_data()
    front.post({"requestType": "CLOSE"}, session)
    front.post({"inputs": "a"})
    lines = [record for record in caplog.records if record.getMessage() == "request"]
    shown = [vars(record)["session"] for record in lines]
    expected = hashlib.sha256(session.encode()).hexdigest()[:12]
    assert shown == [expected, expected, expected, expected, None]
    assert session not in json.dumps([vars(record) for record in caplog.records], default=str)
