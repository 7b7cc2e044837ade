"""A real server with a key: who gets in, and that the key is in no log, command line or environment of a child."""

from __future__ import annotations

import psutil

from tests.e2e.conftest import serving, tree
from tests.e2e.native_calls import ask, generate

KEY = "sk-canary-4b1d"


def test_the_key_opens_the_door_and_shows_nowhere(server_environment: dict[str, str]) -> None:
    with serving(server_environment, API_KEY=KEY, API_KEY_EXEMPT="invocations", LOG_LEVEL="debug") as server:
        body = {"inputs": "Once", "parameters": {"max_new_tokens": 2}}
        assert ask(server, "GET", "/ping").status == 200
        assert ask(server, "POST", "/generate", body, Authorization=f"bearer {KEY}").status == 200
        assert generate(server, "/invocations").status == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
            refused = ask(server, "POST", "/generate", body, **headers)
            assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert refused.json["error_type"] == "unauthorized"
        large = ask(server, "POST", "/generate", b" " * 300_000)
        assert (large.status, large.headers["connection"]) == (401, "close")
        for path in ("/nothing", "/docs", "/info", "//info", "/v1//models"):
            assert ask(server, "GET", path).status == 401, path
        preflight = {"Origin": "https://app.example", "Access_Control_Request_Method": "POST"}
        for path in ("/generate", "/v1/chat/completions"):
            answer = ask(server, "OPTIONS", path, **preflight)
            assert (answer.status, answer.headers["access-control-allow-origin"]) == (204, "*")
        for pid in tree(server):
            process = psutil.Process(pid)
            assert KEY not in " ".join(process.cmdline())
            if pid != server.pid:
                assert KEY not in str(process.environ())
    assert "http.api_key" in server.log
    assert KEY not in server.log
