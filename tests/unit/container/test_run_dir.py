"""The private run directory: its mode, and stages that readers never see in half."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from container.run_dir import RunDirectory
from serving.config import ENGINE_SOCKET, RUN_CONFIG_FILE, STAGE_FILE, ServerConfig, Stage


@pytest.fixture
def run_dir() -> Iterator[RunDirectory]:
    directory = RunDirectory()
    yield directory
    directory.remove()
    assert not directory.path.exists()


def test_only_this_user_may_look_inside(run_dir: RunDirectory) -> None:
    assert run_dir.path.stat().st_mode & 0o777 == 0o700


def test_the_configuration_reads_back(run_dir: RunDirectory) -> None:
    config = ServerConfig()
    run_dir.write_config(config)
    assert msgspec.json.decode((run_dir.path / RUN_CONFIG_FILE).read_bytes(), type=ServerConfig) == config


def test_a_reader_sees_whole_stages_only(run_dir: RunDirectory) -> None:
    details = ["", "x" * 20_000]
    run_dir.publish(Stage(stage="loading", detail=details[0]))
    stop = threading.Event()
    seen: set[str] = set()

    def read() -> None:
        while not stop.is_set():
            seen.add(json.loads((run_dir.path / STAGE_FILE).read_bytes()).get("detail", ""))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(300):
        run_dir.publish(Stage(stage="loading", detail=details[number % 2]))
    stop.set()
    reader.join()
    assert seen and seen <= set(details)
    assert run_dir.stage.detail == details[1]
    assert [path.name for path in run_dir.path.glob("*.new")] == []


def test_the_socket_path_fits_however_deep_the_folder_for_temporary_files_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    directory = RunDirectory()
    try:
        assert len(str(directory.path / ENGINE_SOCKET)) < 108
        assert list(deep.iterdir()) == []
    finally:
        directory.remove()
