"""Stateful sessions on `/invocations`: bodies with `requestType` open and close them, a header makes a call a turn of one.

Header names and the form of `Expires` are SageMaker's hosting contract, bodies and statuses what its model servers agree
on. The session itself lives in the engine, so every worker knows it.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from flask import Response, request

from serving.api.call import Call
from serving.api.context import ApiContext
from serving.api.error_handlers import use_style
from serving.api.error_styles import OPENAI, printable
from serving.errors import InvalidRequest, Overloaded, RequestError, SessionMissing, SessionRefused
from serving.messages import SessionOpened

REQUEST_TYPE = "requestType"
SESSION_HEADER = "X-Amzn-SageMaker-Session-Id"
NEW_HEADER = "X-Amzn-SageMaker-New-Session-Id"
CLOSED_HEADER = "X-Amzn-SageMaker-Closed-Session-Id"
NEW_SESSION = "NEW_SESSION"
CLOSE = "CLOSE"

_ID = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*")
_MAX_ID_CHARS = 256
_COMMAND_TIMEOUT_S = 30.0
"""The engine answers between two steps."""
_SHOWN_HASH_CHARS = 12


def manage(call: Call) -> Response:
    """Answer a body with `requestType`. Raises `InvalidRequest`, `SessionRefused`, `SessionMissing` or `Overloaded`."""
    use_style(OPENAI)
    call.record.api = "sessions"
    _require_enabled(call.shared)
    asked = call.body[REQUEST_TYPE]
    for name in call.body:
        if name != REQUEST_TYPE:
            raise InvalidRequest(
                f"`{printable(name)}` is not permitted next to `{REQUEST_TYPE}`: a session is opened or closed by a call of "
                "its own",
                field=name,
            )
    if asked == NEW_SESSION:
        return _open(call)
    if asked == CLOSE:
        return _close(call)
    raise InvalidRequest(f"`{REQUEST_TYPE}` must be {NEW_SESSION} or {CLOSE}", field=REQUEST_TYPE)


def answer_in_session(call: Call, answer: Callable[[Call], Response]) -> Response:
    """`answer`, in the session that the header names if it names one; a new one for `NEW_SESSION`, told in the headers."""
    named = request.headers.get(SESSION_HEADER)
    if not named:
        return answer(call)
    turn = _Turn(call, named)
    call.enter_session = turn.enter
    with ExitStack() as stack:
        stack.callback(turn.abandon)
        response = answer(call)
        stack.pop_all()
    if turn.opened is not None:
        response.headers.update(_opened_headers(turn.opened))
    return response


class _Turn:
    """The session of one call. It is entered once the body has been checked, so that a body nobody can answer opens
    nothing."""

    def __init__(self, call: Call, named: str) -> None:
        self.opened: SessionOpened | None = None
        self._call = call
        self._named = named

    def enter(self) -> str:
        """The session's id. Raises `SessionRefused` or `Overloaded`."""
        call = self._call
        _require_enabled(call.shared)
        if self._named == NEW_SESSION:
            with _patience():
                self.opened = self.opened or call.shared.engine.open_session(_COMMAND_TIMEOUT_S)
            session_id = self.opened.session_id
        else:
            session_id = _checked(self._named)
        call.record.session = shown(session_id)
        return session_id

    def abandon(self) -> None:
        """The call has failed: nobody learns of the session it opened."""
        opened, self.opened = self.opened, None
        if opened is not None:
            with suppress(RequestError, TimeoutError):
                self._call.shared.engine.close_session(opened.session_id, _COMMAND_TIMEOUT_S)


def shown(session_id: str) -> str:
    """A session's name in the log: whoever knows the id itself may use the session."""
    return hashlib.sha256(session_id.encode()).hexdigest()[:_SHOWN_HASH_CHARS]


def _open(call: Call) -> Response:
    with _patience():
        opened = call.shared.engine.open_session(_COMMAND_TIMEOUT_S)
    call.record.session = shown(opened.session_id)
    response = Response(f"Session {opened.session_id} created", content_type="text/plain; charset=utf-8")
    response.headers.update(_opened_headers(opened))
    return response


def _close(call: Call) -> Response:
    named = request.headers.get(SESSION_HEADER)
    if not named:
        raise SessionMissing(
            f"invalid session_id: the header {SESSION_HEADER} must name the session to close"
        )
    session_id = _checked(named)
    call.record.session = shown(session_id)
    with _patience():
        call.shared.engine.close_session(session_id, _COMMAND_TIMEOUT_S)
    response = Response(f"Session {session_id} closed", content_type="text/plain; charset=utf-8")
    response.headers[CLOSED_HEADER] = session_id
    return response


def _opened_headers(opened: SessionOpened) -> dict[str, str]:
    """Both spellings: the platform reads one, clients of older model servers the other."""
    expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(opened.expires_at_s))
    value = f"{opened.session_id}; Expires={expires}"
    return {NEW_HEADER: value, SESSION_HEADER: value}


@contextmanager
def _patience() -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise Overloaded("the engine is too busy to look after sessions", retry_after_s=1.0) from None


def _checked(session_id: str) -> str:
    if len(session_id) > _MAX_ID_CHARS or not _ID.fullmatch(session_id):
        raise SessionRefused("session not found: this is no session id of ours")
    return session_id


def _require_enabled(shared: ApiContext) -> None:
    if not shared.config.sessions.enabled:
        raise SessionRefused(
            "sessions are switched off on this server (SAGEMAKER_ENABLE_STATEFUL_SESSIONS=false): send every request on "
            "its own, without a session id"
        )
