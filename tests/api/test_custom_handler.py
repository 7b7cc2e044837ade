"""`/invocations` with a custom handler: a real socket, hooks in a thread, and everything the front does around them."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serving.api import handler_client
from serving.api.app import create_app
from serving.api.handler_client import HandlerFile
from serving.config import (
    HANDLER_FILE,
    HANDLER_SOCKET,
    HandlerHooks,
    HttpConfig,
    LimitsConfig,
    ServerConfig,
    Stage,
)
from serving.handler.hooks import HookContext
from serving.handler.process import HandlerProcess
from serving.handler.script import Hook
from serving.handler.wire import HookName
from tests.api.fake_engine import FakeEngine, FakeText
from tests.unit.test_metrics import parse

LIMITS = LimitsConfig(max_concurrent_requests=2, payload_limit_bytes=50_000)
CSV = {"content_type": "text/csv"}


def from_csv(data: str, content_type: str) -> dict[str, object]:
    prompt, tokens = data.split(",")
    return {"inputs": prompt, "parameters": {"max_new_tokens": int(tokens), "return_full_text": False}}


def to_text(prediction: Any, accept: str) -> object:
    return prediction[0]["generated_text"], "text/plain; charset=utf-8"


class Handler:
    """The handler's end, as its process does it, but for the limits that end a process."""

    def __init__(self, folder: Path, **hooks: Callable[..., object]) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(folder / HANDLER_SOCKET))
        self.listener.listen(8)
        (folder / HANDLER_FILE).write_bytes(msgspec.json.encode(HandlerHooks(names=tuple(hooks))))
        found: dict[HookName, Hook] = {
            name: Hook(name, hooks[name], name == "input_fn" and hooks[name].__code__.co_argcount == 3)
            for name in ("input_fn", "output_fn")
            if name in hooks
        }
        self._stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
        self._process = HandlerProcess(
            found,
            model_dir=folder,
            timeout_s=30.0,
            max_bytes=LIMITS.payload_limit_bytes,
            stderr=self._stderr,
        )
        self.refuses = threading.Event()
        """Set: connections are closed as soon as they are taken."""
        self._thread = threading.Thread(target=self._serve)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join()
        self.listener.close()
        self._stderr.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                if not self.refuses.is_set():
                    self._process.answer(connection)


class Front:
    def __init__(self, folder: Path, *, http: HttpConfig, **hooks: Callable[..., object]) -> None:
        self.engine = FakeEngine()
        text = FakeText()
        config = ServerConfig(http=http, limits=LIMITS)
        self.handler = Handler(folder, **hooks)
        self.app = create_app(
            self.engine,
            lambda: text,
            config,
            lambda: Stage(stage="ready"),
            handler=HandlerFile(folder, config),
        )

    def post(self, data: object, content_type: str = "application/json", **headers: str) -> Any:
        body = data if isinstance(data, bytes | str) else json.dumps(data)
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        return self.app.test_client().post(
            "/invocations", data=body, content_type=content_type, headers=named
        )

    def samples(self, name: str) -> dict[str, float]:
        _, samples = parse(self.app.test_client().get("/metrics").data)
        return {labels["hook"]: value for labels, value in samples.get(name, [])}


NewFront = Callable[..., Front]


@pytest.fixture
def new_front(tmp_path: Path) -> Iterator[NewFront]:
    fronts: list[Front] = []

    def make(
        *, http: HttpConfig | None = None, started: bool = True, **hooks: Callable[..., object]
    ) -> Front:
        front = Front(tmp_path, http=http or HttpConfig(), **hooks)
        fronts.append(front)
        if started:
            front.handler.start()
        return front

    yield make
    for front in fronts:
        front.handler.close()


def test_a_row_of_csv_becomes_a_request_and_its_answer_text(new_front: NewFront) -> None:
    front = new_front(input_fn=from_csv, output_fn=to_text)
    response = front.post("Hello,5", "text/csv")
    assert response.status_code == 200, response.data
    assert response.content_type == "text/plain; charset=utf-8"
    (request,) = front.engine.requests
    assert request.params.max_new_tokens == 5 and bytes(request.prompt_token_ids[-5:]) == b"Hello"
    assert response.headers["content-length"] == str(len(response.data))
    assert front.samples("textgen_handler_duration_count") == {"input_fn": 1, "output_fn": 1}


def test_other_routes_and_other_media_types_know_no_handler(new_front: NewFront) -> None:
    front = new_front(output_fn=to_text)
    assert front.app.test_client().post("/generate", json={"inputs": "a"}).json.keys() == {"generated_text"}
    assert front.post("a,5", "text/csv").status_code == 415


def test_the_accept_header_names_the_type(new_front: NewFront) -> None:
    front = new_front(output_fn=lambda prediction, accept: accept)
    assert front.post({"inputs": "a"}, accept="text/csv, */*;q=0.1").content_type == "text/csv"
    for accept in ("", "*/*"):
        response = front.post({"inputs": "a"}, accept=accept)
        assert (response.data, response.content_type) == (b"application/json", "application/json")
    assert front.post({"inputs": "a"}, accept="text/*").content_type == "application/json"


@pytest.mark.parametrize("content_type", ["", "text", "a/b\r\nx: y", "a/b; c", "ü/ü"])
def test_a_content_type_that_is_none(new_front: NewFront, content_type: str) -> None:
    front = new_front(output_fn=lambda prediction, accept: ("x", content_type))
    response = front.post({"inputs": "a"})
    assert response.status_code == (500 if content_type else 200)
    assert front.samples("textgen_handler_failures") == {}


def test_an_open_stream_is_refused_with_output_fn_only(new_front: NewFront) -> None:
    body = {"inputs": "a", "stream": True}
    response = new_front(input_fn=lambda data, kind: data).post(body)
    assert response.status_code == 200 and response.content_type == "text/event-stream"


def test_a_stream_cannot_pass_output_fn(new_front: NewFront) -> None:
    front = new_front(output_fn=to_text)
    response = front.post({"inputs": "a", "stream": True})
    assert (response.status_code, response.json["error_type"]) == (422, "validation")
    assert "output_fn" in response.json["error"] and not front.engine.requests


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("no json", "not valid JSON"),
        ("[1]", "must return a JSON object"),
        ("", "empty"),
        ('{"a":1,"a":2}', ""),
    ],
)
def test_what_input_fn_returns_is_the_servers_fault(new_front: NewFront, returned: str, message: str) -> None:
    response = new_front(input_fn=lambda data, kind: returned).post({"inputs": "a"})
    assert (response.status_code, response.json["error_type"]) == (500, "handler")
    assert message in response.json["error"] and len(response.data) < 1024


def test_a_hook_that_fails_and_one_that_refuses(new_front: NewFront) -> None:
    class TooLong(Exception):
        status_code = 413

    def hook(data: str, kind: str) -> object:
        raise TooLong("not so long") if "long" in data else LookupError("index 3")

    front = new_front(input_fn=hook)
    response = front.post("x", "text/plain")
    assert (response.status_code, response.json["error_type"]) == (500, "handler")
    assert response.json["error"] == "input_fn of the custom handler failed: LookupError: index 3"
    response = front.post("long", "text/plain")
    assert (response.status_code, response.json["error_type"]) == (400, "handler_refused")
    assert response.json["error"] == "not so long"
    assert front.samples("textgen_handler_failures") == {"input_fn": 1}


def test_the_engines_errors_do_not_pass_output_fn(new_front: NewFront) -> None:
    front = new_front(output_fn=to_text)
    response = front.post({"inputs": ""})
    assert response.status_code == 422 and response.content_type == "application/json"
    assert front.samples("textgen_handler_duration_count") == {}


def test_openai_bodies_have_openai_errors(new_front: NewFront) -> None:
    def hook(data: str, kind: str) -> object:
        return {"messages": []}

    assert new_front(input_fn=hook).post("x", "text/plain").json["error"]["type"] == "invalid_request_error"


def test_every_line_of_json_lines_has_hooks(new_front: NewFront) -> None:
    seen = []

    def hook(data: str, kind: str) -> object:
        seen.append((data, kind))
        return {"inputs": data}

    front = new_front(input_fn=hook, output_fn=lambda prediction, accept: '"a"\n')
    response = front.post('"one"\n"two"\n', "application/jsonlines")
    assert (response.status_code, response.data) == (200, b'"a"\n"a"\n')
    assert sorted(seen) == [('"one"', "application/json"), ('"two"', "application/json")]


def test_several_lines_for_a_line_are_an_error_of_that_line(new_front: NewFront) -> None:
    front = new_front(output_fn=lambda prediction, accept: "1\n2")
    (line,) = front.post('{"inputs": "a"}\n', "application/jsonlines").data.splitlines()
    assert json.loads(line)["status"] == 500


def test_headers_reach_the_context_but_for_credentials(new_front: NewFront) -> None:
    seen: list[HookContext] = []

    def hook(data: str, kind: str, context: HookContext) -> object:
        seen.append(context)
        return data

    front = new_front(input_fn=hook)
    headers = {"authorization": "Bearer k", "cookie": "a=b", "x_amzn_sagemaker_custom_attributes": "tenant=7"}
    front.post({"inputs": "a"}, **headers)
    (context,) = seen
    assert context.get_request_header(0, "X-Amzn-SageMaker-Custom-Attributes") == "tenant=7"
    assert not {"authorization", "cookie"} & {name.lower() for name in context.headers}
    assert context.get_request_id()


def test_a_handler_that_is_gone_is_a_clear_error(new_front: NewFront) -> None:
    front = new_front(input_fn=from_csv)
    front.handler.refuses.set()
    response = front.post("Hello,5", "text/csv")
    assert (response.status_code, response.json["error_type"]) == (500, "handler")
    assert "ended before it took a call of input_fn" in response.json["error"]


def test_who_has_no_turn_in_time_is_told_to_come_again(
    new_front: NewFront, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler_client, "PATIENCE_S", 0.1)
    front = new_front(input_fn=from_csv, started=False)
    response = front.post("Hello,5", "text/csv")
    assert (response.status_code, response.json["error_type"]) == (429, "overloaded")
    assert response.headers["retry-after"]
    assert front.samples("textgen_handler_failures") == {}


def test_the_deadline_of_the_answer_ends_the_wait(new_front: NewFront) -> None:
    front = new_front(input_fn=from_csv, started=False, http=HttpConfig(unary_deadline_s=0.1))
    response = front.post("Hello,5", "text/csv")
    assert (response.status_code, response.json["error_type"]) == (424, "deadline")


def test_no_more_wait_than_may_run(new_front: NewFront, monkeypatch: pytest.MonkeyPatch) -> None:
    front = new_front(input_fn=from_csv, started=False)
    answers: list[int] = []
    waiting = [
        threading.Thread(target=lambda: answers.append(front.post("Hello,5", "text/csv").status_code))
        for _ in range(LIMITS.max_concurrent_requests)
    ]
    taken = threading.Semaphore(0)

    class Places(threading.BoundedSemaphore):
        def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
            found = super().acquire(blocking, timeout)
            if found:
                taken.release()
            return found

    client = front.app.extensions["serving"].handler()
    monkeypatch.setattr(client, "places", Places(LIMITS.max_concurrent_requests))
    for thread in waiting:
        thread.start()
    assert all(taken.acquire(timeout=10.0) for _ in waiting)
    response = front.post("Hello,5", "text/csv")
    assert response.status_code == 429 and "input_fn" in response.json["error"]
    front.handler.start()
    for thread in waiting:
        thread.join()
    assert answers == [200, 200]


def test_time_in_hooks_is_in_the_log(new_front: NewFront, caplog: pytest.LogCaptureFixture) -> None:
    front = new_front(input_fn=from_csv, output_fn=to_text)
    with caplog.at_level(logging.INFO, "serving.api.access"):
        front.post("Hello,5", "text/csv")
        front.app.test_client().post("/generate", json={"inputs": "a"})
    first, second = (record.__dict__ for record in caplog.records if record.getMessage() == "request")
    assert 0 < first["handler_s"] <= first["total_s"] and second["handler_s"] is None


def test_bodies_over_the_limit_never_reach_a_hook(new_front: NewFront) -> None:
    front = new_front(input_fn=from_csv)
    assert front.post("x" * (LIMITS.payload_limit_bytes + 1), "text/csv").status_code == 413
    assert front.post("x", "text/csv", content_encoding="gzip").status_code == 415
    assert front.samples("textgen_handler_duration_count") == {}
