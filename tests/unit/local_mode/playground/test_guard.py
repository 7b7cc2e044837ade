"""Who may use the emulator through a browser: its own pages under names that cannot be somebody else's."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from local_mode.playground import BrowserGuard


async def done(request: Request) -> Response:
    return PlainTextResponse("done")


def emulator(host: str = "127.0.0.1") -> TestClient:
    paths = ("/", "/healthz", "/playground/endpoints", "/endpoints/e/invocations")
    return TestClient(
        Starlette(
            routes=[Route(path, done, methods=["GET", "POST"]) for path in paths],
            middleware=[Middleware(BrowserGuard, host=host)],
        )
    )


@pytest.mark.parametrize("path", ["/", "/endpoints/e/invocations"])
@pytest.mark.parametrize("host", ["127.0.0.1:8090", "sagemaker.internal:8090", "LOCALHOST"])
def test_programs_send_no_origin_and_call_it_what_they_like(path: str, host: str) -> None:
    assert emulator().post(path, headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8090", "[::1]:8090", "localhost:8090", "LocalHost", "192.168.1.7:8090"]
)
@pytest.mark.parametrize("path", ["/", "/playground/endpoints"])
def test_pages_open_by_address_and_as_localhost(path: str, host: str) -> None:
    assert emulator().get(path, headers={"host": host}).status_code == 200
    own = {"host": host, "origin": f"http://{host}"}
    assert emulator().post(path, headers=own).status_code == 200


def test_the_name_that_it_listens_on_is_good() -> None:
    named = {"host": "Workstation:8090", "origin": "http://workstation:8090"}
    assert emulator("workstation").post("/", headers=named).status_code == 200
    assert emulator().post("/", headers=named).status_code == 403


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://127.0.0.1:3000", "http://localhost:8090", "null", "", "file://"]
)
@pytest.mark.parametrize("path", ["/", "/endpoints/e/invocations", "/playground/endpoints"])
def test_pages_of_other_origins_are_refused(path: str, origin: str) -> None:
    answer = emulator().post(path, headers={"host": "127.0.0.1:8090", "origin": origin})
    assert answer.status_code == 403
    assert answer.json()["__type"] == "AccessDeniedException"
    assert f"The page at {origin} may not" in answer.json()["message"]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:8090",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "[",
        "1.2.3.4@evil.example",
    ],
)
def test_a_name_that_points_here_is_refused_in_a_browser(host: str) -> None:
    """DNS rebinding: to the browser, page and emulator are one site, so Origin and Host agree."""
    for path in ("/", "/playground/endpoints"):
        assert emulator().get(path, headers={"host": host}).status_code == 403
    rebound = emulator().post("/", headers={"host": host, "origin": f"http://{host}"})
    assert rebound.status_code == 403
    assert "--host" in rebound.json()["message"] or "may not use" in rebound.json()["message"]


def test_probes_may_use_any_name() -> None:
    assert emulator().get("/healthz", headers={"host": "emulator:8090"}).status_code == 200
