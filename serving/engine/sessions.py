"""The open sessions of one engine: their ids, when they end, how many there may be. Knows no clock (times are passed in)
and no text; what a session keeps in the KV cache is `SessionPins`' business.

All sessions live equally long, so the first one opened is the first to expire.
"""

from __future__ import annotations

import secrets

from serving.engine.session_pins import SessionPins
from serving.errors import Overloaded, SessionRefused

_ID_BYTES = 16
_MAX_RETRY_AFTER_S = 60.0


class SessionTable:
    def __init__(self, pins: SessionPins, *, ttl_s: float, max_sessions: int) -> None:
        self.ttl_s = ttl_s
        self._pins = pins
        self._max_sessions = max_sessions
        self._expiry_s: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._expiry_s)

    def open(self, now_s: float) -> str:
        """A new session that lives until `now_s + ttl_s`: its id, which nobody can guess. Raises `Overloaded` when too many
        are open."""
        if len(self._expiry_s) >= self._max_sessions:
            left_s = self.seconds_to_expiry(now_s) or 0.0
            raise Overloaded(
                f"{self._max_sessions} sessions are open, and no more are permitted (MAX_SESSIONS): close one",
                retry_after_s=min(max(1.0, left_s), _MAX_RETRY_AFTER_S),
            )
        session_id = secrets.token_hex(_ID_BYTES)
        self._expiry_s[session_id] = now_s + self.ttl_s
        self._pins.open(session_id)
        return session_id

    def require(self, session_id: str) -> None:
        """Raises `SessionRefused` for a session that is not open."""
        if session_id not in self._expiry_s:
            raise SessionRefused("session not found: it has expired, was closed, or never was")

    def use(self, session_id: str) -> None:
        """`require`, and a sign of life."""
        self.require(session_id)
        self._pins.touch(session_id)

    def close(self, session_id: str) -> None:
        """Raises `SessionRefused` for a session that is not open. Its running requests go on."""
        self.require(session_id)
        del self._expiry_s[session_id]
        self._pins.close(session_id)

    def expire(self, now_s: float) -> None:
        """End what has lived its time."""
        expired = []
        for session_id, expiry_s in self._expiry_s.items():
            if expiry_s > now_s:
                break
            expired.append(session_id)
        for session_id in expired:
            self.close(session_id)

    def seconds_to_expiry(self, now_s: float) -> float | None:
        """Until the next session ends; None without sessions."""
        first = next(iter(self._expiry_s.values()), None)
        return None if first is None else max(0.0, first - now_s)
