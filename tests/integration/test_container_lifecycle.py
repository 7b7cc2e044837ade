"""PID 1 from the first `/ping` to the exit code: stages, drain, deaths, orphans and last words."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import tarfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.integration.running_container import RunningContainer


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


class Stream(threading.Thread):
    """One client that reads a stream to its end."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
        self.started = threading.Event()
        self.body = ""
        self.cut = False
        self.start()

    def run(self) -> None:
        with contextlib.closing(self._connection) as connection:
            connection.request("GET", "/stream")
            answer = connection.getresponse()
            self.body = answer.read(1).decode()
            self.started.set()
            try:
                self.body += answer.read().decode()
            except http.client.IncompleteRead:
                self.cut = True


def streams(container: RunningContainer, count: int) -> list[Stream]:
    running = [Stream(container.address) for _ in range(count)]
    assert all(stream.started.wait(20) for stream in running)
    return running


def test_ping_tells_the_stage_until_ready(model_dir: Path) -> None:
    with RunningContainer("loading,hold,warm-up,ready", model_dir) as container:
        stage = container.ping_until(lambda status, stage: status == 503 and stage["stage"] == "loading")
        assert stage["detail"] == "3/8"
        run_dir = Path(stage["run_dir"])
        assert run_dir.stat().st_mode & 0o777 == 0o700
        (run_dir / "go").touch()
        container.wait_ready()
        container.stop()
        assert container.wait(20) == 0
        assert not run_dir.exists()


def test_children_learn_what_they_need_and_no_secret(model_dir: Path) -> None:
    secrets = {
        "HF_TOKEN": "canary-1",
        "HUGGING_FACE_HUB_TOKEN": "canary-2",
        "AWS_SECRET_ACCESS_KEY": "canary-3",
    }
    with RunningContainer(
        "ready", model_dir, "serve", **secrets, REVISION="abc", NUM_SHARD="2", DEVICE="cpu"
    ) as container:
        run_dir = Path(container.wait_ready()["run_dir"])
        engine = json.loads((run_dir / "engine.json").read_text())
        assert engine["argv"]["model_dir"] == engine["argv"]["model_id"] == str(model_dir)
        assert engine["argv"]["run_dir"] == str(run_dir)
        assert engine["argv"]["revision"] == "abc"
        assert engine["environ"]["GLOO_SOCKET_IFNAME"] == "lo"
        assert engine["environ"]["OMP_NUM_THREADS"] == "1"
        assert engine["environ"]["PROMETHEUS_MULTIPROC_DIR"] == str(run_dir / "metrics")
        assert (run_dir / "metrics").is_dir()
        config = json.loads((run_dir / "server.json").read_text())
        assert config["parallel"]["num_ranks"] == 2
        assert config["model"]["model_id"] == str(model_dir)
        seen = json.dumps(engine) + (run_dir / "server.json").read_text()
        seen += "".join(str(process.environ()) for process in container.family()[1:])
        container.stop()
        assert container.wait(20) == 0
        assert "canary" not in seen + "\n".join(container.lines)
    assert any(re.search(r"parallel\.num_ranks +2 +from NUM_SHARD", line) for line in container.lines)


def test_sigterm_lets_running_work_finish_and_refuses_new_work(model_dir: Path) -> None:
    with RunningContainer("ready", model_dir) as container:
        run_dir = Path(container.wait_ready()["run_dir"])
        family = container.family()
        running = streams(container, 32)
        idle = socket.create_connection(("127.0.0.1", urlsplit(container.address).port or 0))
        stopped_at = time.monotonic()
        container.stop()
        container.ping_until(
            lambda status, stage: status == 503 and stage["stage"] == "draining", timeout_s=2
        )
        container.stop()  # a second one changes nothing
        container.stop(signal.SIGINT)
        while time.monotonic() < stopped_at + 1.5:
            assert container.ping()[0] == 503  # answered, not refused, as long as work runs
        (run_dir / "finish").touch()
        assert container.wait(20) == 0
        assert time.monotonic() - stopped_at < 25
        idle.close()
        for stream in running:
            stream.join(5)
            assert stream.body.endswith("data: end\n\n")
        assert container.survivors(family, 0) == []
        assert "stopped" in container.lines[-1]


def test_work_that_never_ends_is_cut_in_time(model_dir: Path) -> None:
    with RunningContainer("ready", model_dir, GRACEFUL_TERMINATION_TIMEOUT="3") as container:
        container.wait_ready()
        running = streams(container, 4)
        stopped_at = time.monotonic()
        container.stop()
        assert container.wait(10) == 0
        assert time.monotonic() - stopped_at < 3.5
        for stream in running:
            stream.join(5)
            assert stream.cut
        assert any("work is left" in line for line in container.lines)


def test_an_engine_that_dies_during_the_drain_is_a_failure(model_dir: Path) -> None:
    with RunningContainer("ready", model_dir) as container:
        run_dir = Path(container.wait_ready()["run_dir"])
        streams(container, 2)
        engine = container.child("fake_engine")
        container.stop()
        container.ping_until(lambda _, stage: stage["stage"] == "draining", timeout_s=2)
        engine.kill()
        (run_dir / "engine-gone").touch()
        assert container.wait(10) == 1
    assert "killed by SIGKILL" in container.lines[-1]


def test_sigterm_at_once(model_dir: Path) -> None:
    with RunningContainer("hold", model_dir) as container:
        container.line_with("listening")
        family = container.family()
        container.stop()
        assert container.wait(10) == 0
        assert container.survivors(family, 0) == []


def test_sigterm_while_loading(model_dir: Path) -> None:
    with RunningContainer("deaf,loading,hold,ready", model_dir) as container:
        container.ping_until(lambda _, stage: stage["stage"] == "loading")
        family = container.family()
        container.stop()
        assert container.wait(10) == 0
        assert container.survivors(family, 0) == []


def test_kill_of_the_engine_ends_the_container(model_dir: Path) -> None:
    with RunningContainer("orphan,ready", model_dir) as container:
        run_dir = Path(container.wait_ready()["run_dir"])
        running = streams(container, 4)
        family = container.family()
        assert any("textgen-orphan" in process.cmdline() for process in family)
        container.child("fake_engine").kill()
        (run_dir / "engine-gone").touch()  # the application would see the end of its socket
        container.ping_until(lambda status, stage: status == 503 and stage["stage"] == "failed", timeout_s=2)
        assert container.wait(15) == 1
        for stream in running:
            stream.join(5)
            assert stream.body.endswith("data: error\n\n")
        assert container.survivors(family, 0) == []
    assert "failed" in container.lines[-1]
    assert "killed by SIGKILL" in container.lines[-1] and "MAX_BATCH_TOTAL_TOKENS" in container.lines[-1]


def test_kill_of_the_front_ends_the_container(model_dir: Path) -> None:
    with RunningContainer("ready", model_dir) as container:
        container.wait_ready()
        family = container.family()
        master = next(process for process in family[1:] if process.children())
        master.kill()
        assert container.wait(15) == 1
        assert container.survivors(family, 1) == []
    assert "the HTTP front ended (killed by SIGKILL)" in container.lines[-1]


def test_a_dead_front_worker_is_replaced(model_dir: Path) -> None:
    with RunningContainer("ready", model_dir) as container:
        container.wait_ready()
        (worker,) = next(process for process in container.family()[1:] if process.children()).children()
        worker.kill()
        worker.wait(5)
        deadline = time.monotonic() + 20
        while True:
            try:
                if container.ping()[0] == 200:
                    break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        container.stop()
        assert container.wait(20) == 0


def test_kill_of_pid_1_leaves_no_orphans(model_dir: Path) -> None:
    with RunningContainer("ready", model_dir) as container:
        container.wait_ready()
        children = container.family()[1:]
        assert len(children) >= 3
        container.stop(signal.SIGKILL)
        assert container.survivors(children, 5) == []


@pytest.mark.parametrize(
    ("script", "reason"), [("loading,failed", "no luck; try again"), ("exit", "exit code 7")]
)
def test_a_failed_start_ends_with_the_reason(model_dir: Path, script: str, reason: str) -> None:
    with RunningContainer(script, model_dir) as container:
        assert container.wait(20) == 1
    assert "ERROR" in container.lines[-1]
    assert reason in container.lines[-1]


@pytest.mark.parametrize(
    ("arguments", "environ", "reason"),
    [
        (["train"], {}, "unknown arguments 'train'; allowed: serve, or nothing"),
        (
            ["serve"],
            {"MAX_BEST_OF": "many"},
            "MAX_BEST_OF=many is not valid; allowed: a whole number at least 1",
        ),
        (["serve"], {"MODEL_ID": "", "HF_MODEL_ID": "", "SAGEMAKER_BASE_DIR": "/none"}, "HF_MODEL_ID unset"),
        (["serve"], {"HOSTNAME": "192.0.2.1"}, "cannot listen on 192.0.2.1"),
    ],
)
def test_a_wrong_start_is_one_last_line(
    model_dir: Path, arguments: list[str], environ: dict[str, str], reason: str
) -> None:
    with RunningContainer("ready", model_dir, *arguments, **environ) as container:
        assert container.wait(20) == 1
    assert reason in container.lines[-1]
    assert not any("Traceback" in line for line in container.lines)


def test_a_taken_port_is_named(model_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with RunningContainer("ready", model_dir, PORT=port) as container:
            assert container.wait(20) == 1
    assert f"cannot listen on 127.0.0.1 port {port}" in container.lines[-1]
    assert "set PORT" in container.lines[-1]


def test_foreign_children_change_nothing(model_dir: Path) -> None:
    """Orphans are given to PID 1; gunicorn once took their exit codes 3 and 4 for its own worker's."""
    with RunningContainer("foreign,ready", model_dir) as container:
        container.wait_ready()
        container.line_with("foreign processes ended")
        assert container.ping()[0] == 200
        container.stop()
        assert container.wait(20) == 0


def test_an_archive_is_unpacked_before_the_engine_starts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    packed = tmp_path / "model.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(tmp_path / "config.json", "inner/config.json")
    with RunningContainer("ready", packed, HF_HOME=str(tmp_path / "cache")) as container:
        run_dir = Path(container.wait_ready()["run_dir"])
        engine = json.loads((run_dir / "engine.json").read_text())
        assert Path(engine["argv"]["model_dir"]).parts[-1] == "inner"
        assert str(tmp_path / "cache") in engine["argv"]["model_dir"]
        container.stop()
        assert container.wait(20) == 0


def test_a_failed_download_is_the_last_line(tmp_path: Path) -> None:
    packed = tmp_path / "model.tar.gz"
    packed.write_bytes(b"no archive")
    with RunningContainer("ready", packed, HF_HOME=str(tmp_path / "cache")) as container:
        assert container.wait(20) == 1
    assert "cannot be unpacked" in container.lines[-1]
