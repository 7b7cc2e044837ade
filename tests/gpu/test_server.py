"""The container on a GPU: start, stream, stop."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from local_mode.server_process import ServerProcess

pytestmark = pytest.mark.gpu


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    settings = {"DEVICE": "cuda", "HF_MODEL_ID": "demo", "PORT": "0", "CUDA_MEMORY_FRACTION": "0.3"}
    with ServerProcess({**os.environ, **settings}) as server:
        server.wait_ready(limit_s=180)
        yield server


def _stream(port: int, max_new_tokens: int) -> list[dict[str, object]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = {
        "inputs": "Once upon a time",
        "stream": True,
        "parameters": {"max_new_tokens": max_new_tokens, "details": True},
    }
    connection.request("POST", "/invocations", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    events = [json.loads(line[5:]) for line in response if line.startswith(b"data:")]
    connection.close()
    return events


def test_streams_and_stops_cleanly(server: ServerProcess) -> None:
    free_while_serving, _ = torch.cuda.mem_get_info()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: _stream(server.port, 20), range(8)))
    for events in answers:
        tokens = [event["token"] for event in events]
        assert 1 <= len(tokens) <= 20
        assert events[-1]["generated_text"]
    server.terminate()
    assert server.wait(timeout_s=30) == 0
    deadline = time.monotonic() + 10
    while torch.cuda.mem_get_info()[0] <= free_while_serving and time.monotonic() < deadline:
        time.sleep(0.1)
    assert torch.cuda.mem_get_info()[0] > free_while_serving, "the engine's GPU memory was not released"


def test_says_which_device_it_serves_on(server: ServerProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/info")
    info = json.loads(connection.getresponse().read())
    connection.close()
    assert info["model_device_type"] == "cuda"
