from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.ipc.client import EngineClient
from tests.unit.ipc.fakes import FakeEngine


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "engine.sock"


@pytest.fixture
def engine(socket_path: Path) -> Iterator[FakeEngine]:
    engine = FakeEngine(socket_path)
    yield engine
    engine.stop()


@pytest.fixture
def client(engine: FakeEngine, socket_path: Path) -> Iterator[EngineClient]:
    client = EngineClient(socket_path, "front")
    client.start()
    client.wait_ready(5.0)
    yield client
    client.close()
