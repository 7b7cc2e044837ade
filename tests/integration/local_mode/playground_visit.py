"""A visit to the playground: an emulator, the endpoint that its page creates, and what a visitor does there."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import local_mode
from local_mode.server_process import ServerProcess
from tests.integration.local_mode import browser
from tests.integration.local_mode.browser import Page

_NO_BROWSER = "no Chromium here: apt-get install -y chromium, then `make test-browser`"
SHOWN = "[...document.querySelectorAll('.answer')].at(-1)"
"""The last answer, in the page."""
_EXPECTED = ("400 (Bad Request)", "424 (Failed Dependency)", "http://rebound.test")


@dataclass(frozen=True, slots=True)
class Visit:
    page: Page
    local: local_mode.LocalSession
    url: str
    empty: str
    """What was to be read before there was an endpoint."""

    def ask(self, prompt: str, **parameters: object) -> None:
        """Type a prompt and send it with Enter; parameters that are not given are empty."""
        self.page.evaluate(
            f"(() => {{ const given = {json.dumps(parameters)};"
            " for (const field of document.getElementById('parameters').elements)"
            "   field.value = given[field.name] ?? ''; })()"
        )
        self.page.evaluate("document.getElementById('draft').value = ''")
        self.page.click("#draft")
        self.page.write(prompt)
        self.page.wait_for("!document.getElementById('send').disabled")
        count = self.page.evaluate("document.querySelectorAll('.answer').length")
        self.page.press("Enter", 13, "\r")
        self.page.wait_for(f"document.querySelectorAll('.answer').length > {count}")

    def answer(self, prompt: str, **parameters: object) -> str:
        """The text of the complete answer."""
        self.ask(prompt, **parameters)
        self.complete()
        text: str = self.page.evaluate(f"{SHOWN}.querySelector('.text').textContent")
        return text

    def complete(self) -> None:
        self.page.wait_for("!document.querySelector('[aria-busy=true]')")

    def figures(self) -> str:
        text: str = self.page.evaluate(f"{SHOWN}.querySelector('.figures').textContent")
        return text

    def chart(self, title: str) -> str:
        label = f"document.querySelector('.chart svg[aria-label^={json.dumps(title)}]').getAttribute('aria-label')"
        text: str = self.page.evaluate(label)
        return text

    def mode(self, name: str) -> None:
        self.page.click(f"label:has(input[name=mode][value={name}])")
        self.page.click("#clear")

    def running(self) -> float:
        """Sequences in the engine, as the container shows them."""
        told = "fetch('/playground/endpoints/demo/metrics').then((answer) => answer.json())"
        number: float = self.page.evaluate(told)["running"]
        return number


@contextmanager
def visiting(folder: Path) -> Iterator[Visit]:
    """With the endpoint that the page's own button creates. At the end the page must not have complained of anything but
    answers that tests asked for, nor have asked anybody else.

    Without Chromium this skips, and fails with REQUIRE_BROWSER=1.
    """
    if browser.find() is None:
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail(_NO_BROWSER)
        pytest.skip(_NO_BROWSER)
    command = [
        sys.executable,
        "-m",
        "serving.cli",
        "local",
        "up",
        "--port",
        "0",
        "--state-dir",
        str(folder / "state"),
    ]
    with ServerProcess({**os.environ, "PYTHONUNBUFFERED": "1"}, command=command) as server:
        url = server.wait_log(r"Playground, for a browser:\s+(\S+)", limit_s=60)[1]
        with browser.chromium(folder) as page:
            page.look()
            page.open(url)
            page.wait_for("!document.getElementById('no-endpoints').hidden")
            empty = page.evaluate("document.body.innerText")
            page.click("#create-demo")
            page.wait_for("document.querySelector('.status.InService')", limit_s=60)
            yield Visit(page, local_mode.session(state_dir=folder / "state"), url, empty)
            unexpected = [
                text for text in page.complaints() if not any(status in text for status in _EXPECTED)
            ]
            assert not unexpected, unexpected
            foreign = [
                address for address in page.requested() if not address.startswith((url, "http://rebound"))
            ]
            assert not foreign, foreign
