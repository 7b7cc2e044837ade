"""Handlers in a real server: the documented example, and what scripts may do to a process without harm to the server."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from local_mode.server_process import ServerFailed, ServerProcess
from tests.e2e.conftest import LIMIT_S, Stream, pid_of, serving, story, tree, wait_until

ROOT = Path(__file__).parents[2]
TRUSTED = {"HF_MODEL_TRUST_REMOTE_CODE": "true"}
TIMEOUT_S = 1.0

HOSTILE = """
import ctypes, json, logging, os, pathlib, re, subprocess, sys, time

print("imported by", os.environ.get("HOME"))

def input_fn(data, content_type):
    return globals()[data]() if data in SCENES else data

def say(text):
    return {"inputs": text, "parameters": {"max_new_tokens": 2}}

def sleeps():
    time.sleep(600)

def holds_the_gil():
    re.match("(a+)+$", "a" * 64 + "b")

def leaves():
    os._exit(7)

def segfaults():
    ctypes.string_at(0)

def forks():
    if os.fork() == 0:
        return say("from the child")
    return say("from the parent")

def leaves_a_child():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "left-behind"])
    os._exit(8)

def takes_memory():
    return {"inputs": "x" * (1 << 46)}

def answers_too_much():
    return {"inputs": "x" * 40_000_000}

def prints():
    print("to stdout: ü\\x00")
    print("to stderr", file=sys.stderr)
    os.write(1, b"\\xff without an end")
    logging.getLogger("mine").warning("to logging")
    return say("a")

def floods():
    for number in range(100_000):
        print("line", number)
    return say("a")

def environment():
    pathlib.Path(os.environ["NOTES"]).write_text(json.dumps(dict(os.environ)))
    return say("a")

def writes():
    pathlib.Path.home().joinpath("note").write_text("x")
    return say(pathlib.Path.home().joinpath("note").read_text())

def no_json():
    return "no json"

def waits():
    path = pathlib.Path(os.environ["NOTES"])
    path.with_suffix(".begun").touch()
    while not path.exists():
        time.sleep(0.01)
    return say("a")

SCENES = [name for name, value in globals().items() if callable(value) and name != "input_fn"]
"""


def with_script(model: Path, folder: Path, text: str) -> Path:
    shutil.copytree(model, folder)
    (folder / "code").mkdir()
    (folder / "code" / "inference.py").write_text(text)
    return folder


def post(
    server: ServerProcess, data: str | bytes, content_type: str = "text/plain", **headers: str
) -> tuple[int, str, bytes]:
    """Status, content type and body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT_S)
    try:
        body = data.encode() if isinstance(data, str) else data
        connection.request("POST", "/invocations", body, {"content-type": content_type, **headers})
        response = connection.getresponse()
        return response.status, response.getheader("content-type", ""), response.read()
    finally:
        connection.close()


def error_of(answer: tuple[int, str, bytes], status: int = 500) -> str:
    assert answer[0] == status, answer
    body = json.loads(answer[2])
    assert body["error_type"] == "handler" and len(answer[2]) < 1024
    return str(body["error"])


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a script of the next fixture leaves what a test wants to see."""
    return tmp_path_factory.mktemp("notes") / "notes"


@pytest.fixture(scope="module")
def hostile(
    endless_model_dir: Path,
    server_environment: dict[str, str],
    notes: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("hostile")
    model = with_script(endless_model_dir, folder / "model", HOSTILE)
    settings = {
        "MODEL_ID": str(model),
        "HANDLER_TIMEOUT_S": str(TIMEOUT_S),
        "HF_TOKEN": "hf_secret",
        "AWS_SECRET_ACCESS_KEY": "aws-secret",
        "MY_OWN": "x",
        "NOTES": str(notes),
        **TRUSTED,
    }
    with serving(server_environment, **settings) as server:
        yield server


def test_the_documented_example(
    endless_model_dir: Path, server_environment: dict[str, str], tmp_path: Path
) -> None:
    text = (ROOT / "docs" / "custom-handlers.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    model = with_script(endless_model_dir, tmp_path / "model", example)
    with serving(server_environment, MODEL_ID=str(model), **TRUSTED) as server:
        status, kind, body = post(server, "Once upon a time,8", "text/csv", accept="text/plain")
        assert (status, kind) == (200, "text/plain; charset=utf-8") and body
        status, kind, body = post(server, "Once upon a time,8", "text/csv")
        assert (status, kind) == (200, "application/json")
        answer = json.loads(body)
        assert answer["words"] == len(answer["text"].split())
        plain = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 8, "return_full_text": False}}
        assert json.loads(post(server, json.dumps(plain), "application/json")[2]) == answer
        status, _, body = post(server, "Once upon a time", "text/csv")
        assert (status, json.loads(body)["error"]) == (400, "a row must be a prompt and a number of tokens")
        family = psutil.Process(server.pid).children(recursive=True)
        assert [path.name for path in (model / "code").iterdir()] == ["inference.py"]
        before = [title for title in tree(server).values() if title.strip() == "handler"]
        assert len(before) == 1
        server.stop()
        assert not [process for process in family if process.is_running()]


@pytest.mark.parametrize("scene", ["sleeps", "holds_the_gil"])
def test_a_hook_that_hangs_is_ended_and_nobody_else_notices(hostile: ServerProcess, scene: str) -> None:
    before = pid_of(hostile, "handler")
    stream = Stream(hostile.port, story(150))
    hung: list[tuple[int, str, bytes]] = []
    late = threading.Thread(target=lambda: hung.append(post(hostile, scene)))
    started_s = time.monotonic()
    late.start()
    while late.is_alive():
        assert hostile.ping()[0] == 200
        late.join(0.05)
    assert TIMEOUT_S <= time.monotonic() - started_s < TIMEOUT_S + 4.0
    assert error_of(hung[0]) == "input_fn of the custom handler took longer than 1 s (HANDLER_TIMEOUT_S)"
    stream.join()
    assert stream.complete
    assert post(hostile, "prints")[0] == 200
    assert pid_of(hostile, "handler") != before
    assert f"in {scene}" in hostile.log


@pytest.mark.parametrize("scene", ["leaves", "segfaults", "leaves_a_child"])
def test_a_process_that_dies_costs_its_own_call(hostile: ServerProcess, scene: str) -> None:
    answers: list[tuple[int, str, bytes]] = []
    first = threading.Thread(target=lambda: answers.append(post(hostile, scene)))
    first.start()
    others = [post(hostile, "prints") for _ in range(3)]
    first.join()
    assert "ended while input_fn ran" in error_of(answers[0])
    assert [status for status, _, _ in others] == [200, 200, 200]
    wait_until(
        lambda: not [title for title in tree(hostile).values() if "left-behind" in title],
        limit_s=5.0,
        what="the end of what the handler left behind",
    )


def test_a_fork_that_comes_back_answers_once(hostile: ServerProcess) -> None:
    status, _, body = post(hostile, "forks")
    assert status == 200 and b"from the parent" in body
    assert post(hostile, "prints")[0] == 200
    assert psutil.pid_exists(pid_of(hostile, "handler"))  # one


def test_memory_and_output_have_limits(hostile: ServerProcess) -> None:
    before = pid_of(hostile, "handler")
    assert "MemoryError" in error_of(post(hostile, "takes_memory"))
    assert "at most 33554432" in error_of(post(hostile, "answers_too_much"))
    assert "not valid JSON" in error_of(post(hostile, "no_json"))
    assert pid_of(hostile, "handler") == before


def test_what_a_script_prints_is_in_the_log(hostile: ServerProcess) -> None:
    assert post(hostile, "prints")[0] == 200
    hostile.wait_log(r'output of the custom handler text="to stdout: .*u0000', limit_s=10.0)
    hostile.wait_log(r'output of the custom handler text="to stderr"', limit_s=10.0)
    hostile.wait_log(r" WARNING handler to logging", limit_s=10.0)
    hostile.wait_log(r'output of the custom handler text="imported by', limit_s=10.0)


def test_a_script_that_prints_without_end_is_cut(hostile: ServerProcess) -> None:
    assert post(hostile, "floods")[0] in (200, 500)  # it may have no time left
    assert hostile.ping()[0] == 200
    # The first line of a later second tells.
    wait_until(
        lambda: (
            post(hostile, "prints")[0] == 200
            and re.search(r"output of the custom handler was dropped lines=\d+", hostile.log) is not None
        ),
        limit_s=10.0,
        what="the count of dropped lines",
    )
    assert hostile.log.count('text="line ') < 20_000


def test_no_secrets_and_a_home_of_its_own(hostile: ServerProcess, notes: Path) -> None:
    assert post(hostile, "environment")[0] == 200
    environ = json.loads(notes.read_text())
    assert environ["MY_OWN"] == "x"
    assert not {"HF_TOKEN", "AWS_SECRET_ACCESS_KEY"} & set(environ)
    assert not {"hf_secret", "aws-secret"} & set(environ.values())
    assert "textgen-handler-" in environ["HOME"]
    assert post(hostile, "writes")[0] == 200


def test_requests_in_hand_have_their_hooks_after_sigterm(
    endless_model_dir: Path, server_environment: dict[str, str], tmp_path: Path
) -> None:
    model = with_script(endless_model_dir, tmp_path / "model", HOSTILE)
    go = tmp_path / "go"
    with serving(server_environment, MODEL_ID=str(model), NOTES=str(go), **TRUSTED) as server:
        home = Path(server.wait_log(r'text="imported by ([^"]+)"', limit_s=10.0)[1])
        assert home.is_dir()
        answers: list[tuple[int, str, bytes]] = []
        call = threading.Thread(target=lambda: answers.append(post(server, "waits")))
        call.start()
        wait_until(go.with_suffix(".begun").exists, limit_s=10.0, what="the hook")
        os.kill(server.pid, signal.SIGTERM)
        server.wait_log("draining", limit_s=10.0)
        go.touch()
        call.join()
        assert answers[0][0] == 200
        server.stop()
        assert not home.exists()


def test_a_handler_that_ends_again_and_again_ends_the_server(
    endless_model_dir: Path, server_environment: dict[str, str], tmp_path: Path, full: bool
) -> None:
    text = f"import os, pathlib\nif pathlib.Path({str(tmp_path / 'spoiled')!r}).exists():\n    os._exit(9)\n"
    model = with_script(endless_model_dir, tmp_path / "model", text + HOSTILE)
    with serving(server_environment, MODEL_ID=str(model), **TRUSTED) as server:
        (tmp_path / "spoiled").touch()
        os.kill(pid_of(server, "handler"), signal.SIGKILL)
        server.wait_log("is started again .*times=3", limit_s=LIMIT_S)
        assert server.ping()[0] == 200
        if not full:
            return  # the pauses between the starts add up to half a minute
        server.wait_log(r"failed reason=.*ended 11 times within 300 s.*exit code 9", limit_s=LIMIT_S)


@pytest.mark.parametrize(
    ("text", "settings", "problem"),
    [
        ("", {}, r"inference\.py: a custom handler is run only with HF_MODEL_TRUST_REMOTE_CODE=true"),
        ("def predict_fn(data, model): ...", TRUSTED, r"inference\.py defines predict_fn"),
        (
            "import no_such_package",
            TRUSTED,
            r"inference\.py, line 1: ModuleNotFoundError.*nothing is installed",
        ),
        (
            "x = 1\nimport os; os._exit(5)",
            TRUSTED,
            r"inference\.py: .*ended while it was imported \(exit code 5\)",
        ),
        (
            "def input_fn(data, kind): ...",
            {
                **TRUSTED,
                "SAGEMAKER_SECURE_MODE": "true",
                "SAGEMAKER_SECURITY_CONTROLS": "DISALLOW_CUSTOM_INFERENCE_SCRIPTS",
            },
            r"DISALLOW_CUSTOM_INFERENCE_SCRIPTS forbids Python files",
        ),
    ],
)
def test_starts_that_fail(
    text: str,
    settings: dict[str, str],
    problem: str,
    endless_model_dir: Path,
    server_environment: dict[str, str],
    tmp_path: Path,
) -> None:
    model = with_script(endless_model_dir, tmp_path / "model", text)
    with ServerProcess({**server_environment, "MODEL_ID": str(model), **settings}) as server:
        server.wait_log(rf"ERROR container failed reason=.*{problem}", limit_s=LIMIT_S)
        with pytest.raises(ServerFailed):
            server.wait_ready(LIMIT_S)
        assert "engine ready" not in server.log
