"""What every test lives in: the counts (`--full`), hypothesis profiles, a compiler that remembers, and the check for
leaked processes.

Fixtures for one part belong to that part's folder.
"""

from __future__ import annotations

import gc
import os
import time
import uuid
from collections.abc import Generator, Iterator
from importlib import resources
from pathlib import Path

import hypothesis
import psutil
import pytest

from tests import compiler_cache

# In the environment of every process a test starts, so that one that lost its parent is still known as ours.
LEAK_TAG = "PYTEST_LEAK_TAG"
LEAK_GRACE_S = 5.0
# Folders in the order in which `--no-loadscope-reorder` hands out their files.
LONG_FIRST = ("e2e", "sagemaker", "integration", "conformance", "promises", "kernels", "models")
# Python's own helper of multiprocessing, which lives as long as its process.
NOT_LEAKED = ("multiprocessing.resource_tracker",)

hypothesis.settings.register_profile("fast", max_examples=25, deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("full", max_examples=500, deadline=None, print_blob=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run with the counts of make test-full")


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.load_profile("full" if config.getoption("--full") else "fast")
    compiler_cache.install()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What collection leaves (thousands of tests, every library) stays for good; each full garbage collection after it
    would walk through all of that, for half a second."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start servers first: with two workers, one would else be left alone with a long file at the end."""
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    folder = item.nodeid.removeprefix("tests/").split("/")[0]
    return LONG_FIRST.index(folder) if folder in LONG_FIRST else len(LONG_FIRST)


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """True under `make test-full`: tests take their counts from it (`prompts = 50 if full else 8`)."""
    return bool(request.config.getoption("--full"))


@pytest.fixture(scope="session")
def demo_model_dir() -> Path:
    """The embedded demo model's folder, in Hugging Face layout."""
    folder = Path(str(resources.files("local_mode"))) / "demo_model"
    needed = ("config.json", "tokenizer.json", "model.safetensors")
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        pytest.fail(f"{folder} lacks {', '.join(missing)}; is this checkout complete?")
    return folder


def _tagged_processes(tag: str) -> list[psutil.Process]:
    """Processes that carry `tag` in their environment, whoever their parent is now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(LEAK_TAG) == tag:
                found.append(process)
        except psutil.Error:
            continue
    return found


def _left_behind(tag: str) -> list[str]:
    """One line for each living process that tests started; zombies only wait for this process to end."""
    ours = {process.pid: process for process in _tagged_processes(tag)}
    ours.update({process.pid: process for process in psutil.Process().children(recursive=True)})
    ours.pop(os.getpid(), None)
    lines = []
    for process in ours.values():
        try:
            command = " ".join(process.cmdline())
            if process.status() != psutil.STATUS_ZOMBIE and not any(name in command for name in NOT_LEAKED):
                lines.append(f"pid {process.pid}: {command or process.name()}")
        except psutil.NoSuchProcess:
            continue
    return lines


@pytest.fixture(scope="session", autouse=True)
def no_process_left_behind() -> Iterator[None]:
    """Fails the last test of a session that leaves processes of ours running, and ends them."""
    tag = os.environ[LEAK_TAG] = uuid.uuid4().hex
    yield
    deadline = time.monotonic() + LEAK_GRACE_S
    while (leaked := _left_behind(tag)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in [*psutil.Process().children(recursive=True), *_tagged_processes(tag)] if leaked else []:
        if process.pid != os.getpid():
            process.kill()
    assert not leaked, "tests left processes running:\n" + "\n".join(leaked)
