"""What SageMaker's hosts withhold, and who else lives there: a read-only model, no network, little shared memory, a range
of ports, a second container."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_mode.server_process import ServerFailed, ServerProcess
from tests.e2e.conftest import LIMIT_S, Stream, pid_of, story, tree, wait_until
from tests.e2e.container.conftest import SAFE_PORTS
from tests.e2e.container.host import Host, interfaces, seen_by, shared_memory_files, sockets
from tests.e2e.native_calls import ask

SHM_KIB = 64 * 1024
BODY = story(12)

# (protocol, address, port) -> process
Sockets = dict[tuple[str, str, int], str]


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in [folder, *folder.rglob("*")]
    }


@pytest.fixture(scope="module")
def host(mounted: tuple[dict[str, str], Path]) -> Host:
    return Host(model=mounted[1] / "model", shm_kib=SHM_KIB)


@pytest.fixture(scope="module")
def poor(host: Host, mounted: tuple[dict[str, str], Path]) -> Iterator[ServerProcess]:
    """Two ranks that have none of what a laptop gives."""
    modes = {path: path.stat().st_mode for path in [host.model, *host.model.iterdir()]}
    for path in modes:
        path.chmod(0o555 if path.is_dir() else 0o444)
    with ServerProcess({**mounted[0], "SM_NUM_GPUS": "2"}, command=host.command()) as server:
        server.wait_log(r"engine ready\b", limit_s=LIMIT_S)
        yield server
    for path, mode in modes.items():
        path.chmod(mode)


def test_a_read_only_model_folder(poor: ServerProcess, host: Host) -> None:
    before = contents(host.model)
    assert {Path(name).name for name in before} >= {"config.json", "model.safetensors"}
    assert host.call(poor, "POST", "/invocations", BODY)[0] == 200
    assert contents(host.model) == before
    assert f"chosen_by={host.model}" in poor.log
    # It could not have written there, whoever it is: the kernel says so.
    if host.namespaces:
        with pytest.raises(OSError) as refused:
            (seen_by(poor, host.model) / "probe").touch()
        assert refused.value.errno == errno.EROFS
    else:
        capabilities = (Path(f"/proc/{poor.pid}/status").read_text().split("CapEff:")[1]).split()[0]
        assert int(capabilities, 16) & 0b110 == 0, "permission bits mean nothing to this process"


def test_no_network(poor: ServerProcess, host: Host) -> None:
    """A model in its folder is served; nothing that is not there is waited for."""
    status, body = host.call(poor, "POST", "/invocations", BODY)
    assert status == 200 and "generated_text" in body
    assert host.call(poor, "GET", "/ping")[0] == 200
    if host.namespaces:
        assert interfaces(poor) == {"lo"}
    addresses = {address for _, address, _ in sockets(poor)}
    assert addresses == {"127.0.0.1"}


def test_a_hub_model_without_network_fails_in_one_line(
    host: Host, mounted: tuple[dict[str, str], Path], tmp_path: Path
) -> None:
    """Within the time of a start-up, not at the end of the platform's."""
    nowhere = {
        "SAGEMAKER_BASE_DIR": str(tmp_path),
        "HF_MODEL_ID": "owner/name",
        "HF_HOME": str(tmp_path / "hf"),
    }
    unreachable = {} if host.namespaces else {"HF_ENDPOINT": "http://127.0.0.1:9"}
    started_s = time.monotonic()
    with ServerProcess({**mounted[0], **nowhere, **unreachable}, command=host.command()) as server:
        with pytest.raises(ServerFailed):
            server.wait_log("never printed", limit_s=LIMIT_S)
        assert server.wait(LIMIT_S) == 1
        failed_s = time.monotonic() - started_s
        last = server.log.splitlines()[-1]
    assert " ERROR container failed " in last and "Traceback" not in server.log
    assert "owner/name" in last and "the Hub cannot be reached" in last and "model folder" in last
    assert failed_s < 30.0
    print(f"without network a Hub id fails after {failed_s:.1f} s")


@pytest.mark.parametrize("shm_kib", [SHM_KIB, 1024])
def test_shared_memory_of_64_mb_and_of_1_mb(
    poor: ServerProcess,
    host: Host,
    mounted: tuple[dict[str, str], Path],
    shm_kib: int,
    request: pytest.FixtureRequest,
) -> None:
    """Ranks exchange tensors without it."""
    server = poor
    if shm_kib != SHM_KIB:
        host = Host(host.model, shm_kib)
        server = ServerProcess({**mounted[0], "SM_NUM_GPUS": "2"}, command=host.command())
        request.addfinalizer(server.stop)
        server.wait_log(r"engine ready\b", limit_s=LIMIT_S)
    assert host.call(server, "POST", "/invocations", BODY)[0] == 200
    assert shared_memory_files(server) == []
    if host.namespaces:
        facts = os.statvfs(seen_by(server, Path("/dev/shm")))
        assert facts.f_frsize * facts.f_blocks == shm_kib * 1024
        assert facts.f_bfree == facts.f_blocks


def outside(found: Sockets, *, port: int) -> Sockets:
    lowest, highest = (int(text) for text in SAFE_PORTS.split("-"))
    return {key: title for key, title in found.items() if key[2] != port and not lowest <= key[2] <= highest}


def test_one_rank_opens_the_serving_port_and_no_other(container: ServerProcess) -> None:
    ask(container, "POST", "/invocations", BODY)
    assert set(sockets(container)) == {("tcp", "127.0.0.1", container.port)}
    assert "outside SAGEMAKER_SAFE_PORT_RANGE" not in container.log


def test_ports_of_two_ranks_are_on_loopback_and_announced(poor: ServerProcess) -> None:
    """gloo takes any port: what is promised is that none can be reached from elsewhere, and that the log says so."""
    beyond = outside(sockets(poor), port=poor.port)
    assert beyond, (
        "ranks have no port beyond the range any more: drop the warning and this test's second half"
    )
    assert {protocol for protocol, _, _ in beyond} == {"tcp"}
    assert {address for _, address, _ in beyond} == {"127.0.0.1"}
    assert {title.split(" ")[0] for title in beyond.values()} <= {"engine", "worker-tp1"}
    assert poor.log.count("outside SAGEMAKER_SAFE_PORT_RANGE") == 1


def test_two_containers_on_one_host(container: ServerProcess, by_hand: ServerProcess) -> None:
    assert container.port != by_hand.port
    first, second = (ask(server, "POST", "/invocations", BODY) for server in (container, by_hand))
    assert first.status == second.status == 200 and first.body == second.body
    shared = opened_for_writing(container) & opened_for_writing(by_hand)
    assert not shared

    # One dies with all its processes; of the other not even a stream notices.
    stream = Stream(container.port, story(300))
    assert stream.first_event.wait(LIMIT_S)
    dying = set(tree(by_hand))
    os.kill(pid_of(by_hand, "engine"), signal.SIGKILL)
    assert by_hand.wait(15.0) == 1
    wait_until(lambda: not dying & set(tree(container)), limit_s=1.0, what="its processes are nobody else's")
    assert container.ping()[0] == 200
    stream.join()
    assert stream.complete and not stream.broken
    assert ask(container, "POST", "/invocations", BODY).body == first.body


def opened_for_writing(server: ServerProcess) -> set[str]:
    """Files that a server's processes hold open to write to, but for devices and pipes."""
    found = set()
    for pid in tree(server):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(descriptor)
                flags = Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text().split()[3]
            except FileNotFoundError:
                continue
            if target.startswith("/") and not target.startswith("/dev/") and int(flags, 8) & 0b11:
                found.add(target)
    return found
