"""The stand-in for docker by its command line, and both SDK lines' local mode through it."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from local_mode import docker_stand_in
from tests.sagemaker.conftest import MODEL_FILES, Program, interpreter

PROGRAMS = Path(__file__).with_name("programs")
PROMPT = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 8}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return docker_stand_in.install(tmp_path_factory.mktemp("stand-in"))


@pytest.fixture(scope="module")
def environment(folder: Path, client_environment: dict[str, str]) -> dict[str, str]:
    """AWS is nowhere: local mode has no need of it."""
    nowhere = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    return {**client_environment, **nowhere, "PATH": f"{folder}:{client_environment['PATH']}"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def compose(folder: Path, *, port: int, model: Path, command: str = "serve") -> Path:
    """What the SDKs write."""
    service = {
        "command": command,
        "container_name": "abcdefghij-algo-1-abcde",
        "environment": ["AWS_ACCESS_KEY_ID=test", "SAGEMAKER_PROGRAM=", "SERVED_MODEL_NAME=a=b"],
        "image": "any/image:1",
        "networks": {"sagemaker-local": {"aliases": ["algo-1-abcde"]}},
        "ports": [f"{port}:8080"],
        "stdin_open": True,
        "tty": True,
        "volumes": [f"{model}:/opt/ml/model"],
    }
    content = {"version": "2.3", "services": {"algo-1-abcde": service}}
    path = folder / "docker-compose.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


def docker(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["docker", *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, input="secret"
    )


def test_the_folder_holds_one_executable_and_is_left_alone_when_it_is_right(folder: Path) -> None:
    written_s = (folder / "docker").stat().st_mtime_ns
    assert docker_stand_in.install(folder) == folder
    assert [path.name for path in folder.iterdir()] == ["docker"]
    assert (folder / "docker").stat().st_mtime_ns == written_s


def test_the_command_line_tells_the_folder(client_environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serving.cli", "local", "docker-stand-in", str(tmp_path / "bin")]
    done = subprocess.run(command, env=client_environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path}/bin\n"
    assert (tmp_path / "bin" / "docker").is_file()


def test_what_the_sdks_ask_docker(environment: dict[str, str]) -> None:
    assert "v2." in docker(environment, "compose", "version").stdout
    assert "Cgroup Driver: none" not in docker(environment, "info").stdout
    (context,) = json.loads(docker(environment, "context", "inspect").stdout)
    assert context["Endpoints"]["docker"]["Host"].startswith("unix://")
    assert docker(environment, "images", "-q", "any/image").stdout.strip()
    for arguments in (["login", "registry", "-u", "AWS", "--password-stdin"], ["pull", "any/image"]):
        answer = docker(environment, *arguments)
        assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["run", "any/image"], "`docker run any/image` is not known"),
        (
            ["compose", "-f", "x.yaml", "up", "--detach"],
            "`docker compose -f x.yaml up --detach` is not known",
        ),
        (["compose", "-f", "nowhere.yaml", "up"], "No such file or directory: 'nowhere.yaml'"),
    ],
)
def test_what_it_does_not_know_it_says(
    environment: dict[str, str], arguments: list[str], reason: str
) -> None:
    answer = docker(environment, *arguments)
    assert answer.returncode == 1
    assert reason in answer.stdout


def test_it_runs_nothing_but_serve(environment: dict[str, str], tmp_path: Path) -> None:
    path = compose(tmp_path, port=1, model=tmp_path, command="train")
    answer = docker(environment, "compose", "-f", str(path), "up", "--build")
    assert answer.returncode == 1
    assert "service algo-1-abcde runs 'train'; only `serve` can be run" in answer.stdout


def test_a_server_that_cannot_start_says_why_to_who_reads_slowly(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """The SDKs read a line, then look whether the process lives, and stop when it does not."""
    path = compose(tmp_path, port=free_port(), model=tmp_path / "empty")
    command = ["docker", "compose", "-f", str(path), "up", "--build", "--abort-on-container-exit"]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    read = []
    while process.poll() is None:
        read.append(process.stdout.readline())
    assert process.returncode not in (0, 130)
    assert "HF_MODEL_ID" in "".join(read)
    process.communicate()


@contextmanager
def serving(environment: dict[str, str], path: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    command = ["docker", "compose", "-f", str(path), "up", "--build", "--abort-on-container-exit"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        deadline_s = time.monotonic() + 60
        while _status(port) != 200:
            assert process.poll() is None and time.monotonic() < deadline_s, process.communicate(timeout=10)[
                0
            ]
            time.sleep(0.05)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=40)


def _status(port: int) -> int:
    try:
        with urllib.request.urlopen(f"http://localhost:{port}/ping", timeout=2) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0


def test_compose_up_serves_the_mounted_model_until_sigterm(
    environment: dict[str, str], demo_model_dir: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in MODEL_FILES:
        shutil.copy(demo_model_dir / name, model)
    port = free_port()
    with serving(environment, compose(tmp_path, port=port, model=model), port) as process:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/models", headers={"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert "a=b" in {model["id"] for model in json.load(answer)["data"]}
    assert process.returncode == 0
    assert _status(port) == 0
    assert sorted(path.name for path in model.iterdir()) == sorted(MODEL_FILES)


@pytest.mark.full
@pytest.mark.parametrize("line", ["sagemaker2", "sagemaker3"])
def test_instance_type_local(
    line: str, environment: dict[str, str], model_archive: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"  # unpacked in place by the SDKs
    data.mkdir()
    shutil.copy(model_archive, data)
    log = tmp_path / "log"
    port = free_port()
    program = [
        str(PROGRAMS / f"local_{line}.py"),
        f"file://{data}/model.tar.gz",
        str(port),
        json.dumps(PROMPT),
    ]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [interpreter(line), *program],
            env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=stderr, text=True,
        )  # fmt: skip
    result = Program(process, log).result()
    assert result["answer"][0]["generated_text"].startswith(PROMPT["inputs"])
    assert _status(port) == 0, "the container outlived its endpoint"


def test_the_archive_of_these_tests_is_the_demo_model(model_archive: Path) -> None:
    with tarfile.open(model_archive) as archive:
        assert sorted(archive.getnames()) == sorted(MODEL_FILES)
