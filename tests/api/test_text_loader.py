"""The tokenizer is read while the engine loads, and a folder that cannot be read is told after the engine's own reason."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serving.api.wsgi import TextLoader
from serving.config import MODEL_DIR_FILE, ServerConfig
from serving.ipc.client import EngineClient
from serving.messages import EngineReady
from serving.text.processor import TextProcessor
from tests.api.fake_engine import READY


class LoadingEngine:
    """An engine that becomes ready when the test says so."""

    def __init__(self, facts: EngineReady) -> None:
        self.ready: EngineReady | None = None
        self._facts = facts
        self._changed = threading.Event()

    def become_ready(self) -> None:
        self.ready = self._facts
        self._changed.set()

    def wait_ready(self, timeout_s: float) -> EngineReady:
        if not self._changed.wait(timeout_s) or self.ready is None:
            raise TimeoutError
        return self.ready


@pytest.fixture
def engine(demo_model_dir: Path) -> LoadingEngine:
    return LoadingEngine(msgspec.structs.replace(READY, model_dir=str(demo_model_dir), vocab_size=2048))


def loader(engine: LoadingEngine, run_dir: Path) -> TextLoader:
    client: EngineClient = engine  # type: ignore[assignment]
    return TextLoader(client, ServerConfig(), run_dir / MODEL_DIR_FILE)


def test_files_are_read_before_the_engine_is_ready(
    engine: LoadingEngine, tmp_path: Path, demo_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = threading.Event()
    of_the_library = TextProcessor.read

    def note(model_dir: str, **options: Any) -> Callable[..., TextProcessor]:
        processor = of_the_library(model_dir, **options)
        read.set()
        return processor

    monkeypatch.setattr(TextProcessor, "read", note)
    text = loader(engine, tmp_path)
    text.start()
    (tmp_path / MODEL_DIR_FILE).write_text(str(demo_model_dir))
    assert read.wait(30.0), "it waited for the engine"
    assert text() is None, "without the size of the model's vocabulary no prompt can be checked"
    engine.become_ready()
    text.join(30.0)
    processor = text()
    assert processor is not None and processor.prepare("Once") == processor.tokenizer.encode("Once")


def test_an_engine_that_nobody_announced(engine: LoadingEngine, tmp_path: Path) -> None:
    text = loader(engine, tmp_path)
    text.start()
    engine.become_ready()
    text.join(30.0)
    assert text() is not None


def test_a_folder_that_cannot_be_read_waits_for_the_engines_reason(
    engine: LoadingEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    (tmp_path / MODEL_DIR_FILE).write_text(str(tmp_path))
    text = loader(engine, tmp_path)
    text.start()
    text.join(0.2)
    assert ended == [] and not caplog.records
    engine.become_ready()
    text.join(30.0)
    assert ended == [4]
    assert "tokenizer.json" in caplog.text
    assert text() is None


@pytest.mark.parametrize("core", [0, 3, None])
def test_the_front_leaves_the_core_that_the_engine_plans_on(
    engine: LoadingEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, core: int | None
) -> None:
    left: list[int] = []
    monkeypatch.setattr("serving.api.wsgi.keep_off", left.append)
    engine._facts = msgspec.structs.replace(engine._facts, planning_core=core)
    text = loader(engine, tmp_path)
    text.start()
    engine.become_ready()
    text.join(30.0)
    assert text() is not None
    assert left == ([] if core is None else [core])
