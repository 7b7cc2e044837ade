"""A headless Chromium, driven with the DevTools protocol over a pair of pipes. Knows nothing of the page under test."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # the sandbox refuses to run as root, which tests in containers do
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-breakpad",
    "--disable-sync",
    "--host-resolver-rules=MAP rebound.test 127.0.0.1 , MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--remote-debugging-pipe",
    "--window-size=1400,900",
)
_FREE_FDS = 10
"""Above those that Chromium wants its pipes at, 3 and 4."""


class BrowserFailed(AssertionError):
    """It ended, did not answer in time, or an expression threw. The message says which."""


def find() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """One page, blank. `profile` is a folder for whatever it writes."""
    to_child, send = _pipe()
    receive, from_child = _pipe()

    def place_pipes() -> None:
        os.dup2(to_child, 3)
        os.dup2(from_child, 4)

    log = (profile / "chromium.log").open("wb")
    process = subprocess.Popen(
        [find() or NAMES[0], *_OPTIONS, f"--user-data-dir={profile / 'user'}", "about:blank"],
        preexec_fn=place_pipes,
        pass_fds=(3, 4),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env={**os.environ, "HOME": str(profile), "XDG_CONFIG_HOME": str(profile)},
    )
    os.close(to_child)
    os.close(from_child)
    wire = _Wire(send, receive)
    try:
        yield Page(wire)
        wire.call("Browser.close")
        process.wait(10)
    finally:
        process.kill()
        process.wait()
        os.close(send)
        os.close(receive)
        log.close()


def _pipe() -> tuple[int, int]:
    low = os.pipe()
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FREE_FDS) for fd in low]
    for fd in low:
        os.close(fd)
    return high[0], high[1]


class _Wire:
    """JSON messages that end with a zero byte."""

    def __init__(self, send: int, receive: int) -> None:
        self._send = send
        self._receive = receive
        self._rest = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def call(
        self, method: str, /, *, session: str | None = None, limit_s: float = 30.0, **params: Any
    ) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        deadline_s = time.monotonic() + limit_s
        while (reply := self._message(method, deadline_s)).get("id") != self._number:
            self.events.append(reply)
        if "error" in reply:
            raise BrowserFailed(f"{method}: {reply['error']}")
        result: dict[str, Any] = reply["result"]
        return result

    def _message(self, method: str, deadline_s: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._receive], [], [], max(0.0, deadline_s - time.monotonic()))
            if not ready:
                raise BrowserFailed(f"{method}: no answer in time")
            chunk = os.read(self._receive, 1 << 16)
            if not chunk:
                raise BrowserFailed(
                    f"{method}: the browser has ended; is its log in the profile's folder of help?"
                )
            self._rest += chunk
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message


class Page:
    def __init__(self, wire: _Wire) -> None:
        self._wire = wire
        targets = wire.call("Target.getTargets")["targetInfos"]
        target = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = wire.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)
        self.wait_for(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    def evaluate(self, expression: str, *, limit_s: float = 30.0) -> Any:
        """Its value, that of a promise once it is there."""
        answer = self._call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
            limit_s=limit_s,
        )
        if "exceptionDetails" in answer:
            thrown = answer["exceptionDetails"]
            raise BrowserFailed(f"{expression}: {thrown.get('exception', {}).get('description', thrown)}")
        return answer["result"].get("value")

    def wait_for(self, expression: str, *, limit_s: float = 30.0) -> Any:
        """The first true value of an expression without `await`."""
        deadline_s = time.monotonic() + limit_s
        while time.monotonic() < deadline_s:
            # Until a moment has passed, so that a page that is left meanwhile can be asked again.
            value = self.evaluate(
                "new Promise((resolve) => { const end = performance.now() + 500; const look = () => {"
                f" const value = ({expression});"
                " if (value || performance.now() > end) resolve(value instanceof Node || value);"
                " else setTimeout(look, 20); }; look(); })"
            )
            if value:
                return value
        raise BrowserFailed(
            f"not within {limit_s:g} s: {expression}\n{self.evaluate('document.body.innerText')[:1500]}"
        )

    def click(self, selector: str) -> None:
        """With the mouse, at its middle: what lies above it gets the click."""
        place = self.evaluate(
            f"(() => {{ const node = document.querySelector({json.dumps(selector)});"
            " node.scrollIntoView({block: 'nearest'});"
            " const box = node.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call(
                "Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1
            )

    def write(self, text: str) -> None:
        """Into what has the focus."""
        self._call("Input.insertText", text=text)

    def press(self, key: str, code: int, text: str = "") -> None:
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self._call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self._call("Input.dispatchKeyEvent", type="keyUp", **common)

    def look(self, *, width: int = 1400, height: int = 900, dark: bool = False) -> None:
        """Give it a size and a colour scheme."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        shot = self._call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions nobody caught, and requests to other origins, so far."""
        self.evaluate("0")  # what has happened before has been told then
        return [text for event in self._wire.events for text in _complaint(event)]

    def requested(self) -> list[str]:
        return [
            event["params"]["request"]["url"]
            for event in self._wire.events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def _call(self, method: str, /, **params: Any) -> dict[str, Any]:
        return self._wire.call(method, session=self._session, **params)


def _complaint(event: dict[str, Any]) -> Iterator[str]:
    params = event.get("params", {})
    if event["method"] == "Runtime.exceptionThrown":
        yield json.dumps(params["exceptionDetails"])
    if event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
        yield json.dumps(params["args"])
    if event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
        yield f"{params['entry']['text']} {params['entry'].get('url', '')}"
