"""What SageMaker's hosts give a container, and what they must not lose: read-only models, ports, shared memory, no
network, several containers on one host, and starts that have to fail in one line."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from local_mode.server_process import SERVE_COMMAND, ServerFailed, ServerProcess
from tests.e2e.conftest import LIMIT_S, serving, story, tree

SAFE_PORTS = "23000-23999"


def listeners(server: ServerProcess) -> set[tuple[str, int]]:
    """Addresses that any process of a server listens on."""
    found = set()
    for pid in tree(server):
        for connection in psutil.Process(pid).net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN:
                found.add((connection.laddr.ip, connection.laddr.port))
    return found


def shared_memory_files(server: ServerProcess) -> list[str]:
    """What the processes of a server have open or mapped below /dev/shm."""
    found = []
    for pid in tree(server):
        folder = Path(f"/proc/{pid}")
        found += [line for line in (folder / "maps").read_text().splitlines() if " /dev/shm" in line]
        for descriptor in (folder / "fd").iterdir():
            try:
                target = os.readlink(descriptor)
            except FileNotFoundError:
                continue
            found += [target] if target.startswith("/dev/shm") else []
    return found


def generated(server: ServerProcess, body: dict[str, object]) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT_S)
    try:
        connection.request("POST", "/invocations", json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        assert response.status == 200, answer
        return str(json.loads(answer)[0]["generated_text"])
    finally:
        connection.close()


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in [folder, *folder.rglob("*")]
    }


@pytest.fixture(scope="module")
def base(endless_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`/opt/ml` with a model folder that nobody may write to."""
    base = tmp_path_factory.mktemp("opt-ml")
    model = base / "model"
    model.mkdir()
    for path in endless_model_dir.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
        (model / path.name).chmod(0o444)
    model.chmod(0o555)
    yield base
    model.chmod(0o755)


@pytest.fixture(scope="module")
def environment(server_environment: dict[str, str], base: Path) -> dict[str, str]:
    mounted = {name: text for name, text in server_environment.items() if name != "MODEL_ID"}
    return {**mounted, "SAGEMAKER_BASE_DIR": str(base), "SAGEMAKER_SAFE_PORT_RANGE": SAFE_PORTS}


@pytest.fixture(scope="module")
def neighbours(environment: dict[str, str]) -> Iterator[list[ServerProcess]]:
    """Two containers of the same image on one host, started side by side."""
    with ExitStack() as stack:
        servers = [stack.enter_context(ServerProcess(environment)) for _ in range(2)]
        for server in servers:
            server.wait_ready(LIMIT_S)
        yield servers


def test_two_containers_on_one_host_do_not_meet(neighbours: list[ServerProcess]) -> None:
    body = story(12)
    first, second = (generated(server, body) for server in neighbours)
    assert first == second
    assert neighbours[0].port != neighbours[1].port


def test_one_rank_listens_on_the_serving_port_only(neighbours: list[ServerProcess]) -> None:
    for server in neighbours:
        assert listeners(server) == {("127.0.0.1", server.port)}
        assert "SAGEMAKER_SAFE_PORT_RANGE" not in server.log


def test_shared_memory_is_not_used(neighbours: list[ServerProcess]) -> None:
    assert [shared_memory_files(server) for server in neighbours] == [[], []]


def test_the_model_folder_is_read_and_not_written(neighbours: list[ServerProcess], base: Path) -> None:
    before = contents(base)
    generated(neighbours[0], story(4))
    assert contents(base) == before
    assert {Path(name).name for name in before} >= {"config.json", "model.safetensors"}
    assert f"chosen_by={base / 'model'}" in neighbours[0].log


def test_two_ranks_need_loopback_ports_and_no_shared_memory(environment: dict[str, str]) -> None:
    with serving(environment, SM_NUM_GPUS="2") as server:
        assert len(generated(server, story(8))) > 0
        others = {address for address, port in listeners(server) if port != server.port}
        assert others <= {"127.0.0.1"}
        assert shared_memory_files(server) == []
        assert "outside SAGEMAKER_SAFE_PORT_RANGE" in server.log


def test_an_archive_brings_its_own_settings(
    endless_model_dir: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    properties = tmp_path / "serving.properties"
    # LMI's own examples name the folder that the properties lie in.
    properties.write_text(
        f"engine=Python\noption.model_id={tmp_path / 'model'}\noption.max_model_len=96\n"
        "option.served_model_name=archived\n"
    )
    with tarfile.open(tmp_path / "model" / "model.tar.gz", "w:gz") as archive:
        for path in (*endless_model_dir.iterdir(), properties):
            archive.add(path, path.name)
    with serving(environment, SAGEMAKER_BASE_DIR=str(tmp_path), HF_HOME=str(tmp_path / "cache")) as server:
        assert re.search(r"limits\.max_total_tokens +96 +from option\.max_model_len in ", server.log)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT_S)
        connection.request("GET", "/info")
        assert json.loads(connection.getresponse().read())["max_total_tokens"] == 96
        chat = {"model": "archived", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(chat), {"content-type": "application/json"}
        )
        assert connection.getresponse().status == 200
        connection.close()


def failing(environment: dict[str, str], **settings: str) -> str:
    """The one line that a start ends with."""
    with ServerProcess({**environment, **settings}) as server:
        with pytest.raises(ServerFailed):
            server.wait_log("never printed", limit_s=LIMIT_S)
        assert server.wait(LIMIT_S) == 1
        last = server.log.splitlines()[-1]
    assert " ERROR container failed " in last
    return last


def test_a_hub_model_without_network_is_one_clear_error(environment: dict[str, str], tmp_path: Path) -> None:
    nowhere = {
        "SAGEMAKER_BASE_DIR": str(tmp_path),
        "HF_MODEL_ID": "owner/name",
        "HF_HOME": str(tmp_path / "hf"),
    }
    offline = failing(environment, **nowhere, HF_HUB_OFFLINE="1")
    assert "owner/name" in offline and "HF_HUB_OFFLINE" in offline
    isolated = failing(environment, **nowhere, HF_ENDPOINT="http://127.0.0.1:9")
    assert "the Hub cannot be reached" in isolated and "model folder" in isolated


def test_starts_that_must_not_happen(environment: dict[str, str], base: Path, tmp_path: Path) -> None:
    assert "inference component" in failing(environment, SAGEMAKER_MULTI_MODEL="true")
    conflict = failing(environment, SM_NUM_GPUS="1", OPTION_TENSOR_PARALLEL_DEGREE="2")
    assert "SM_NUM_GPUS=1 and OPTION_TENSOR_PARALLEL_DEGREE=2 are one setting" in conflict
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "weights.pkl").touch()
    secured = failing(
        environment,
        SAGEMAKER_SECURE_MODE="true",
        SAGEMAKER_SECURITY_CONTROLS="DISALLOW_PICKLE_FILES",
        SAGEMAKER_UNTRUSTED_CHANNELS=f"{base / 'model'},{tmp_path / 'extra'}",
    )
    assert "DISALLOW_PICKLE_FILES" in secured and "weights.pkl" in secured


def test_arguments_are_serve_or_nothing(environment: dict[str, str]) -> None:
    entry = [sys.executable, "-m", "container.entrypoint"]
    assert [*entry, "serve"] == list(SERVE_COMMAND)
    with ServerProcess(environment, command=entry) as server:
        assert server.port > 0
    refused = subprocess.run(
        [*entry, "train"], env=environment, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert refused.returncode == 1 and "'train'; allowed: serve, or nothing" in refused.stdout
