"""Process trees: nothing outlives them, not even when the emulator is killed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import psutil
import pytest

from local_mode.contracts import ContainerFailed, ContainerSpec
from local_mode.hosting.logs import LogFile, last_words, note, tail
from local_mode.hosting.process_backend import ProcessBackend, ProcessContainer
from tests.unit.local_mode.hosting.world import until

SLEEP = "import time; time.sleep(600)"


def with_container(
    tmp_path: Path, command: Sequence[str], story: Callable[[ProcessContainer], Awaitable[None]]
) -> Path:
    """Run `command` as a container; returns its log."""
    model = tmp_path / "model"
    model.mkdir()
    log = tmp_path / "logs" / "c.log"

    async def play() -> None:
        backend = ProcessBackend(
            folder=tmp_path / "c", environment={"PATH": "/usr/bin:/bin"}, command=command
        )
        spec = ContainerSpec(name="e/v/1", image="any", environment={})
        container = await backend.start(spec, model_dir=model, channels={}, log=log)
        try:
            await story(container)
        finally:
            await container.stop(grace_s=0.3)
        assert container.ending is not None

    asyncio.run(play())
    assert list((tmp_path / "c").iterdir()) == []
    return log


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", "-c", code)


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        ("raise SystemExit(5)", "exited with status 5"),
        ("import os; os.kill(os.getpid(), 11)", "was ended by SIGSEGV"),
    ],
)
def test_an_ending_is_told_in_words(tmp_path: Path, code: str, ending: str) -> None:
    async def story(container: ProcessContainer) -> None:
        await until(lambda: container.ending is not None)
        assert container.ending == ending

    with_container(tmp_path, python(code), story)


def test_a_command_that_does_not_exist_says_so_in_the_log(tmp_path: Path) -> None:
    async def story(container: ProcessContainer) -> None:
        await until(lambda: container.ending is not None)
        assert container.ending == "exited with status 127"

    assert "cannot run /no/such/program" in with_container(tmp_path, ("/no/such/program",), story).read_text()


def test_daemons_that_left_the_group_end_with_the_first_process(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = (
        "import subprocess, sys\n"
        f"sleeper = [sys.executable, '-I', '-S', '-c', {SLEEP!r}]\n"
        f"middle = 'import subprocess, sys; print(subprocess.Popen(sys.argv[1:], start_new_session=True).pid)'\n"
        "done = subprocess.run([sys.executable, '-c', middle, *sleeper], capture_output=True, text=True)\n"
        f"open({str(pids)!r}, 'w').write(done.stdout)\n"
    )
    # The middle process has ended: its child has no parent in the container any more.
    code = code.replace("capture_output=True, text=True", "stdout=open('out', 'w')").replace(
        "done.stdout", "open('out').read()"
    )

    async def story(container: ProcessContainer) -> None:
        await until(lambda: container.ending is not None)

    with_container(tmp_path, python(code), story)
    assert not psutil.pid_exists(int(pids.read_text()))


def test_containers_die_with_an_emulator_that_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    sleeper = python(f"open({str(ready)!r}, 'w').write(str(__import__('os').getpid())); {SLEEP}")
    emulator = f"""
import asyncio, pathlib
from local_mode.contracts import ContainerFailed, ContainerSpec
from local_mode.hosting.process_backend import ProcessBackend
async def play():
    here = pathlib.Path({str(tmp_path)!r})
    backend = ProcessBackend(folder=here / "c", environment={{}}, command={sleeper!r})
    spec = ContainerSpec(name="x", image="any", environment={{}})
    container = await backend.start(spec, model_dir=here, channels={{}}, log=here / "log")
    await asyncio.sleep(600)
asyncio.run(play())
"""
    root = Path(__file__).resolve().parents[4]
    process = subprocess.Popen([sys.executable, "-c", emulator], cwd=root)
    deadline_s = time.monotonic() + 30
    while not (ready.exists() and ready.read_text()) and time.monotonic() < deadline_s:
        os.sched_yield()
        time.sleep(0.02)
    container = psutil.Process(int(ready.read_text()))
    process.kill()
    process.wait()
    container.wait(10)


def test_two_containers_never_get_one_port_and_others_cannot_take_it(tmp_path: Path) -> None:
    async def play() -> set[str]:
        backend = ProcessBackend(folder=tmp_path / "c", environment={}, command=python(SLEEP))
        spec = ContainerSpec(name="x", image="any", environment={})
        containers = [
            await backend.start(spec, model_dir=tmp_path, channels={}, log=tmp_path / "log") for _ in range(4)
        ]
        await asyncio.gather(*(container.stop(grace_s=0.0) for container in containers))
        return {container.base_url for container in containers}

    assert len(asyncio.run(play())) == 4


def test_logs_rotate_and_keep_the_last_words(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x.log"
    log = LogFile(path, max_bytes=100)
    for number in range(30):
        log.append(f"line {number}\n".encode())
    log.close()
    assert path.stat().st_size <= 110
    assert path.with_name("x.log.1").stat().st_size <= 110
    note(path, "platform\nline")
    assert tail(path)[-1].endswith("INFO platform platform line")
    assert last_words(path) == "line 29"


def test_a_log_that_was_rotated_by_another_writer_is_not_rotated_again(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    first, second = LogFile(path, max_bytes=100), LogFile(path, max_bytes=100)
    first.append(b"a" * 99 + b"\n")
    second.append(b"b\n")  # this rotates, and `first` still writes to the rotated file
    second.append(b"c\n")
    first.append(b"d\n")
    first.append(b"e\n")
    assert path.with_name("x.log.1").read_bytes() == b"a" * 99 + b"\nb\nd\n"
    assert path.read_bytes() == b"c\ne\n"
    first.close()
    second.close()


def test_a_full_disk_costs_lines_and_not_the_container(tmp_path: Path) -> None:
    async def play() -> None:
        backend = ProcessBackend(
            folder=tmp_path / "c", environment={}, command=python(f"print('x', flush=True); {SLEEP}")
        )
        spec = ContainerSpec(name="x", image="any", environment={})
        container = await backend.start(spec, model_dir=tmp_path, channels={}, log=Path("/dev/full"))
        await until(lambda: bool(psutil.Process(container.pid).children()))
        tree = psutil.Process(container.pid).children()
        await container.stop(grace_s=0.1)
        assert container.ending is not None and not any(process.is_running() for process in tree)

    asyncio.run(play())


def test_without_a_log_nothing_is_started_and_nothing_left(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    backend = ProcessBackend(folder=tmp_path / "c", environment={}, command=python(SLEEP))
    spec = ContainerSpec(name="x", image="any", environment={})
    before = psutil.Process().children()
    with pytest.raises(ContainerFailed, match="no place for container x"):
        asyncio.run(backend.start(spec, model_dir=tmp_path, channels={}, log=tmp_path / "log"))
    assert list((tmp_path / "c").iterdir()) == [] and psutil.Process().children() == before


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('a\n12 ERROR container failed reason="no \\"x\\" here"\nlater line\n', 'no "x" here'),
        ("12 ERROR container failed reason=short\n", "short"),
        ('{"message": "failed", "reason": "as JSON"}\n{"message": "stopped"}\n', "as JSON"),
        ("Traceback\nValueError: bad\n", "ValueError: bad"),
        ("", None),
    ],
)
def test_last_words(tmp_path: Path, lines: str, words: str | None) -> None:
    path = tmp_path / "x.log"
    path.write_text(lines)
    assert last_words(path) == words
