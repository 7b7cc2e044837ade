"""What gunicorn loads in each worker, after the fork: `serving.api.wsgi:build('/run/dir')`. Composition only.

The app answers at once; the engine is connected and the tokenizer is read in the background.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from pathlib import Path

import msgspec
from flask import Flask

from serving import logs, metrics
from serving.api.app import create_app
from serving.api.connection import cooperative
from serving.api.cores import keep_off
from serving.api.emf_writer import EmfWriter
from serving.api.handler_client import HandlerFile
from serving.api.loop_reader import receive_in_loop
from serving.api.offload import run_aside
from serving.api.readiness import StageFile
from serving.config import (
    ENGINE_SOCKET,
    MODEL_DIR_FILE,
    RUN_CONFIG_FILE,
    STAGE_FILE,
    RuntimeConfig,
    ServerConfig,
)
from serving.errors import StartupError
from serving.ipc.arrivals import receive_in_thread
from serving.ipc.client import EngineClient
from serving.messages import EngineReady
from serving.text.processor import TextProcessor
from serving.tracing import Tracing, endpoint_problem

logger = logging.getLogger(__name__)

_WAIT_S = 60.0
_CONNECT_WAIT_S = 10.0
_FILES_INTERVAL_S = 0.02
_GUNICORN_APP_LOAD_ERROR = 4
"""With this exit code of a worker gunicorn ends instead of starting workers without end."""


def build(run_dir: str) -> Flask:
    """The app of this worker, for the server whose private run directory is `run_dir`."""
    directory = Path(run_dir)
    config = msgspec.json.decode((directory / RUN_CONFIG_FILE).read_bytes(), type=ServerConfig)
    slot = metrics.claim_slot(run_dir)
    if not metrics.is_shared() and (config.http.api_workers or 1) > 1:
        logger.warning("PROMETHEUS_MULTIPROC_DIR is not set: /metrics shows one worker of several")
    engine = EngineClient(
        directory / ENGINE_SOCKET,
        front_id=f"api{os.getpid()}",
        receive=receive_in_loop if cooperative() else receive_in_thread,
    )
    engine.start()
    text = TextLoader(engine, config, directory / MODEL_DIR_FILE)
    text.start()
    first_worker = slot == metrics.FIRST_SLOT
    tracing = start_tracing(config.runtime, first_worker=first_worker)
    counted = metrics.ServerMetrics()
    if config.runtime.emf and first_worker:
        writer = EmfWriter(engine, counted, config.runtime)
        writer.start()
        atexit.register(writer.close)
    return create_app(
        engine,
        text,
        config,
        StageFile(directory / STAGE_FILE),
        metrics=counted,
        tracing=tracing,
        handler=HandlerFile(directory, config),
        connect_wait_s=_CONNECT_WAIT_S,
    )


def start_tracing(runtime: RuntimeConfig, *, first_worker: bool) -> Tracing | None:
    """None without an endpoint, or with one that cannot take traces over HTTP, which the first worker logs."""
    if not runtime.otlp_endpoint:
        return None
    problem = endpoint_problem(runtime.otlp_endpoint)
    if problem is not None:
        if first_worker:
            logs.event(logger, logging.ERROR, "no traces", reason=problem)
        return None
    tracing = Tracing(runtime.otlp_endpoint, runtime.otlp_service_name)
    atexit.register(tracing.close)
    return tracing


class TextLoader:
    """Reads the tokenizer as soon as the model's files are there, while the engine loads; what it returns is None until
    the engine has told the size of its vocabulary.

    A folder that the front cannot read is reported once the engine is ready: if the engine cannot read it either, its
    reason says more.
    """

    def __init__(self, engine: EngineClient, config: ServerConfig, model_dir_file: Path) -> None:
        self._engine = engine
        self._config = config
        self._model_dir_file = model_dir_file
        self._text: TextProcessor | None = None
        self._thread = threading.Thread(target=self._load, name="tokenizer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait until it is through, or as long as that."""
        self._thread.join(timeout_s)

    def __call__(self) -> TextProcessor | None:
        return self._text

    def _load(self) -> None:
        model_dir = self._wait_for_files()
        try:
            read = run_aside(
                lambda: TextProcessor.read(
                    model_dir, config=self._config.model, grammars=self._config.limits.grammar_support
                )
            )
        except StartupError as error:
            self._wait()
            logger.error("%s", error.message)
            os._exit(_GUNICORN_APP_LOAD_ERROR)
        else:
            ready = self._wait()
            if ready.planning_core is not None:
                keep_off(ready.planning_core)
            self._text = read(vocab_size=ready.vocab_size)

    def _wait_for_files(self) -> str:
        """PID 1 writes the path; an engine that was started by somebody else tells it when it is ready."""
        while self._engine.ready is None:
            try:
                return self._model_dir_file.read_text(encoding="utf-8")
            except FileNotFoundError:
                time.sleep(_FILES_INTERVAL_S)
        return self._wait().model_dir

    def _wait(self) -> EngineReady:
        while True:
            try:
                return self._engine.wait_ready(_WAIT_S)
            except TimeoutError:
                continue  # a large model may load for many minutes
