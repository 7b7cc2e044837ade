"""The playground as part of the emulator, without a browser: it is where the greeting says, and browsers are told apart."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

import httpx
import pytest

import local_mode
from local_mode.server_process import ServerProcess


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, local_mode.LocalSession]]:
    """Its playground's address, and clients."""
    state = tmp_path_factory.mktemp("state")
    command = [sys.executable, "-m", "serving.cli", "local", "up", "--port", "0", "--state-dir", str(state)]
    with ServerProcess({**os.environ, "PYTHONUNBUFFERED": "1"}, command=command) as server:
        url = server.wait_log(r"Playground, for a browser:\s+(\S+)", limit_s=60)[1]
        yield url, local_mode.session(state_dir=state)


def create(url: str, name: str, **headers: str) -> httpx.Response:
    """CreateModel as the page calls it, from JavaScript."""
    image = {"Image": "any", "Environment": {"HF_MODEL_ID": "demo"}}
    members = {
        "ModelName": name,
        "ExecutionRoleArn": "arn:aws:iam::123456789012:role/any",
        "PrimaryContainer": image,
    }
    sent = {"X-Amz-Target": "SageMaker.CreateModel", "Content-Type": "application/x-amz-json-1.1"} | headers
    return httpx.post(url, content=json.dumps(members), headers=sent, trust_env=False)


def test_the_page_is_where_the_greeting_says(emulator: tuple[str, local_mode.LocalSession]) -> None:
    url, local = emulator
    page = httpx.get(url, trust_env=False)
    assert page.status_code == 200
    assert "textgen-endpoint" in page.text
    assert httpx.get(f"{url}playground/app.js", trust_env=False).status_code == 200
    assert httpx.get(f"{url}playground/endpoints", trust_env=False).json() == []
    # The control plane at the same address is what it was.
    assert local.client("sagemaker").list_endpoints()["Endpoints"] == []


def test_its_own_pages_may_create_and_others_may_not(emulator: tuple[str, local_mode.LocalSession]) -> None:
    url, local = emulator
    own = url.rstrip("/")
    rebound = {"Host": "rebound.test", "Origin": "http://rebound.test"}
    assert create(url, "own", Origin=own).status_code == 200
    assert create(url, "program").status_code == 200
    assert create(url, "foreign", Origin="https://evil.example").status_code == 403
    assert create(url, "rebound", **rebound).status_code == 403
    names = [model["ModelName"] for model in local.client("sagemaker").list_models()["Models"]]
    assert sorted(names) == ["own", "program"]
    for path in ("", "playground/endpoints", "playground/app.js"):
        assert httpx.get(f"{url}{path}", headers={"Host": "rebound.test"}, trust_env=False).status_code == 403
    for path in ("endpoints/e/invocations", "endpoints/e/openai/v1/chat/completions"):
        assert httpx.post(f"{url}{path}", headers=rebound, trust_env=False).status_code == 403
    preflight = httpx.options(url, headers={"Origin": "https://evil.example"}, trust_env=False)
    assert preflight.status_code == 403
    assert "access-control-allow-origin" not in preflight.headers
