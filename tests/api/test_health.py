"""Readiness in all its forms, /info, /metrics, unknown routes."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import msgspec
import pytest

from serving.api.app import create_app
from serving.api.readiness import StageFile
from serving.config import ServerConfig, Stage
from serving.errors import NotReady
from serving.version import VERSION
from tests.api.conftest import Front
from tests.api.fake_engine import READY, FakeEngine, FakeText

HEALTH = ("/ping", "/health", "/")


@pytest.mark.parametrize("path", HEALTH)
def test_ready(front: Front, path: str) -> None:
    response = front.client.get(path)
    assert (response.status_code, response.data) == (200, b"")


@pytest.mark.parametrize("path", HEALTH)
@pytest.mark.parametrize("stage", ["starting", "downloading", "loading", "warm-up", "draining", "failed"])
def test_not_ready(front: Front, path: str, stage: str) -> None:
    front.stage = Stage(stage=stage, detail="43 %")
    response = front.client.get(path)
    assert response.status_code == 503
    assert response.json == {
        "error": "unhealthy",
        "error_type": "healthcheck",
        "stage": stage,
        "detail": "43 %",
    }


def test_an_unhealthy_engine_shows_why(front: Front) -> None:
    front.engine.health = (False, "the engine has not answered for 21 s")
    response = front.client.get("/ping")
    assert response.status_code == 503
    assert response.json["detail"] == "the engine has not answered for 21 s"
    assert front.client.post("/generate", json={"inputs": "a"}).status_code == 503


def test_a_worker_without_its_engine_is_not_ready(front: Front) -> None:
    front.engine.ready = None
    assert front.client.get("/ping").json["stage"] == "connecting"
    assert front.client.get("/info").status_code == 503


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/", "/invocations"])
def test_work_is_refused_with_the_stage(front: Front, path: str) -> None:
    front.stage = Stage(stage="loading", detail="3/8")
    response = front.client.post(path, json={"inputs": "a"})
    assert response.status_code == 503
    assert response.json == {
        "error": "the server is not ready: loading 3/8",
        "error_type": "healthcheck",
        "request_id": response.headers["x-request-id"],
    }
    assert front.client.get("/info").json["error_type"] == "healthcheck"


def test_draining_refuses_work_and_closes(front: Front) -> None:
    front.stage = Stage(stage="draining")
    response = front.client.post("/generate", json={"inputs": "a"})
    assert (response.status_code, response.json["error_type"]) == (503, "draining")
    assert response.headers["connection"] == "close"


def test_ping_costs_well_under_a_millisecond(front: Front) -> None:
    front.client.get("/ping")
    began = time.thread_time()
    for _ in range(50):
        front.client.get("/ping")
    # The test client's own work is in it, and is the larger part.
    assert (time.thread_time() - began) / 50 < 0.005


def test_stage_file(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    stage = StageFile(path)
    assert stage().stage == "starting"
    for published in (Stage(stage="loading", detail="3/8"), Stage(stage="ready"), Stage(stage="draining")):
        temporary = tmp_path / "new"
        temporary.write_bytes(msgspec.json.encode(published))
        temporary.replace(path)
        assert stage() == published
        assert stage() is stage()


def test_info(front: Front) -> None:
    assert front.client.get("/info").json == {
        "model_id": "demo",
        "model_sha": "abc123",
        "model_pipeline_tag": "text-generation",
        "model_dtype": "float32",
        "model_device_type": "cpu",
        "max_concurrent_requests": 128,
        "max_best_of": 2,
        "max_stop_sequences": 4,
        "max_input_tokens": 200,
        "max_total_tokens": 256,
        "validation_workers": 1,
        "max_client_batch_size": 32,
        "router": "text-generation-router",
        "version": VERSION,
        "sha": None,
        "docker_label": None,
    }


def test_metrics(front: Front) -> None:
    front.client.post("/generate", json={"inputs": "hello"})
    front.error({"inputs": ""})
    page = front.client.get("/metrics")
    assert page.content_type.startswith("text/plain; version=0.0.4")
    lines = page.get_data(as_text=True).splitlines()
    for line in (
        "# TYPE tgi_request_count counter",
        "tgi_request_count 2.0",
        "tgi_request_success 1.0",
        'tgi_request_failure{err="validation"} 1.0',
        "# TYPE tgi_request_duration histogram",
        'tgi_request_duration_bucket{le="0.00015000000000000001"} 0.0',
        "tgi_request_duration_count 1.0",
        "tgi_request_input_length_sum 5.0",
        'tgi_request_input_length_bucket{le="200.0"} 1.0',
        "tgi_request_generated_tokens_sum 5.0",
        'tgi_request_generated_tokens_bucket{le="256.0"} 1.0',
        "tgi_request_max_new_tokens_sum 251.0",
        "tgi_queue_size 1.0",
        "tgi_batch_current_size 1.0",
        "textgen_kv_blocks 64.0",
        "textgen_cached_tokens 7.0",
        "textgen_engine_up 1.0",
    ):
        assert line in lines, line
    assert len([line for line in lines if line.startswith("tgi_request_duration_bucket")]) == 36
    assert not [line for line in lines if "_total " in line or "_created" in line]


def test_metrics_without_an_engine(front: Front) -> None:
    for error in (NotReady("starting"), TimeoutError()):
        front.engine.stats_error = error
        page = front.client.get("/metrics").get_data(as_text=True)
        assert "textgen_engine_up 0.0" in page
        assert "\ntextgen_kv_blocks " not in page


@pytest.mark.parametrize("path", ["/nothing", "/ping/", "/v2/../etc", "/%00", "/é", "/" + "x" * 3000])
def test_unknown_routes(front: Front, path: str) -> None:
    response = front.client.get(path)
    assert response.status_code == 404
    assert response.content_type == "application/json"
    assert response.json["error_type"] == "not_found"
    assert len(response.data) < 1024


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/generate"), ("DELETE", "/ping"), ("PUT", "/"), ("GET", "/invocations")]
)
def test_wrong_methods(front: Front, method: str, path: str) -> None:
    response = front.client.open(path, method=method)
    assert response.status_code == 405
    assert response.json["error_type"] == "method_not_allowed"
    assert response.headers["allow"]


def test_a_request_waits_for_a_worker_that_has_just_started() -> None:
    engine, text = FakeEngine(ready=None), FakeText()
    app = create_app(engine, lambda: text, ServerConfig(), lambda: Stage(stage="ready"), connect_wait_s=30.0)
    asked = threading.Event()
    answers = []

    def ask() -> None:
        asked.set()
        answers.append(app.test_client().post("/generate", json={"inputs": "a"}).status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    asked.wait()
    assert app.test_client().get("/ping").status_code == 503
    engine.ready = READY
    thread.join(30.0)
    assert answers == [200]
