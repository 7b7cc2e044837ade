"""Prints the lines of CloudWatch's embedded metric format, in one worker of the front: the first, which knows the counters
of all. Knows nothing of requests.
"""

from __future__ import annotations

import sys
import threading
import time

from serving.api.roles import EngineClient
from serving.config import RuntimeConfig
from serving.errors import RequestError
from serving.messages import EngineStats
from serving.metrics import ServerMetrics
from serving.metrics.emf import EmbeddedMetrics, Reading, Totals

_STATS_TIMEOUT_S = 1.0


class EmfWriter:
    """One line per `runtime.emf_interval_s` once the engine is ready, and a last one at the end."""

    def __init__(self, engine: EngineClient, metrics: ServerMetrics, runtime: RuntimeConfig) -> None:
        self._engine = engine
        self._metrics = metrics
        self._runtime = runtime
        self._first = Reading(0.0, Totals(), None)
        self._lines: EmbeddedMetrics | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="emf", daemon=True)

    def start(self) -> None:
        self._first = self._read()
        self._thread.start()

    def close(self) -> None:
        """Print what was counted since the last line."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._print(Reading(time.monotonic(), Totals.of(self._metrics.families()), None))

    def _run(self) -> None:
        while not self._ended.wait(self._runtime.emf_interval_s):
            self._print(self._read())

    def _print(self, reading: Reading) -> None:
        ready = self._engine.ready
        if self._lines is None:
            if ready is None:
                return
            endpoint = self._runtime.emf_endpoint
            named = {} if endpoint is None else {"Endpoint": endpoint}
            self._lines = EmbeddedMetrics(
                self._first,
                namespace=self._runtime.emf_namespace,
                dimensions={**named, "Model": ready.model_id},
            )
        # One write of a whole line, as the log's: what other processes print lies before or behind it.
        sys.stdout.write(self._lines.line(reading, timestamp_ms=int(time.time() * 1000)) + "\n")
        sys.stdout.flush()

    def _read(self) -> Reading:
        return Reading(time.monotonic(), Totals.of(self._metrics.families()), self._engine_stats())

    def _engine_stats(self) -> EngineStats | None:
        if self._engine.ready is None:
            return None
        try:
            return self._engine.stats(_STATS_TIMEOUT_S)
        except (TimeoutError, RequestError):
            return None
