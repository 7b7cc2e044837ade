"""Keeps pages of other sites from using the emulator through a visitor's browser. Programs are none of its business.

A browser names the page that calls in `Origin`, always with POST, so that a foreign one is refused by comparing it with
`Host`. A foreign page whose own name was made to point at this machine (DNS rebinding) has both right; but it needs a
name for that, and the emulator is known by addresses and as localhost.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_PAGES = "/playground"


class BrowserGuard:
    """ASGI middleware. `host` is the name or address that the emulator was told to listen on: that one is good, too."""

    def __init__(self, app: ASGIApp, *, host: str = "localhost") -> None:
        self._app = app
        self._host = host.lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
            return
        document = {"__type": "AccessDeniedException", "message": refusal}
        await JSONResponse(document, status_code=403)(scope, receive, send)

    def _refusal(self, scope: Scope) -> str | None:
        host = _header(scope, b"host")
        origin = _header(scope, b"origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return f"The page at {origin} may not use the emulator at {host}: call it from a program."
        if (origin is not None or _is_page(scope)) and not self._is_own(host):
            return (
                f"'{host}' is a name that anybody could let point here: open the emulator by its address, as localhost, "
                "or give that name to `local up --host`."
            )
        return None

    def _is_own(self, host: str | None) -> bool:
        try:
            name = urlsplit(f"//{host or ''}").hostname or ""
        except ValueError:
            return False
        if name in ("localhost", self._host):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _is_page(scope: Scope) -> bool:
    """Browsers send no Origin when they fetch a page's own parts."""
    path: str = scope["path"]
    return path.startswith(_PAGES) or (path == "/" and scope["method"] != "POST")


def _header(scope: Scope, name: bytes) -> str | None:
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1").lower()
            return text
    return None
