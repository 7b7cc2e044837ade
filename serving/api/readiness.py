"""Whether this worker may take work: the start-up stage, the engine's facts and health, the tokenizer.
Answers from memory (and one `stat` of the stage file); nothing here waits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from serving.api.roles import EngineClient, TextProcessor
from serving.api.schema.generate import Limits
from serving.config import LimitsConfig, Stage
from serving.errors import Draining, NotReady
from serving.messages import EngineReady
from serving.sampling_params import Watermark

_NORMALIZER_SHRINK = 4
"""A normalizer may shorten text (Unicode composition) by about this factor before it is cut into tokens."""

_CONNECT_POLL_S = 0.02

_StageKey = tuple[int, int]


@dataclass(slots=True)
class StageFile:
    """The start-up stage that PID 1 publishes. Read again only when the file was replaced."""

    path: Path
    _key: _StageKey | None = field(default=None, init=False)
    _stage: Stage = field(default=Stage(stage="starting"), init=False)

    def __call__(self) -> Stage:
        try:
            status = os.stat(self.path)
            key = (status.st_ino, status.st_mtime_ns)
            if key != self._key:
                self._stage = msgspec.json.decode(self.path.read_bytes(), type=Stage)
                self._key = key
        except FileNotFoundError:
            self._key = None
            self._stage = Stage(stage="starting")
        return self._stage


TextProvider = Callable[[], TextProcessor | None]


@dataclass(slots=True, frozen=True)
class Serving:
    """What a request needs once the server is ready."""

    engine: EngineReady
    text: TextProcessor
    limits: Limits


@dataclass(slots=True)
class Readiness:
    engine: EngineClient
    text: TextProvider
    stage: Callable[[], Stage]
    declared: LimitsConfig
    connect_wait_s: float = 0.0
    """How long a request may wait for a worker that has just started, while another one already answers `/ping`."""
    _serving: Serving | None = field(default=None, init=False)

    def problem(self) -> Stage | None:
        """None when requests can be served, otherwise the stage and the reason to show."""
        stage = self.stage()
        if stage.stage != "ready":
            return stage
        if self.engine.ready is None or self.text() is None:
            return Stage(stage="connecting", detail="this worker is not connected to the engine yet")
        healthy, reason = self.engine.healthy()
        return None if healthy else Stage(stage="unhealthy", detail=reason)

    def require(self) -> Serving:
        """Raises `NotReady` or, once the server is stopping, `Draining`."""
        problem = self._settled_problem()
        if problem is not None and problem.stage == "draining":
            raise Draining("the server is stopping and takes no new requests")
        ready, text = self.engine.ready, self.text()
        if problem is not None or ready is None or text is None:
            described = "connecting" if problem is None else f"{problem.stage} {problem.detail}".strip()
            raise NotReady(f"the server is not ready: {described}")
        serving = self._serving
        if serving is None or serving.engine is not ready or serving.text is not text:
            serving = self._serving = Serving(engine=ready, text=text, limits=self._limits(ready, text))
        return serving

    def _settled_problem(self) -> Stage | None:
        deadline = time.monotonic() + self.connect_wait_s
        while True:
            problem = self.problem()
            if problem is None or problem.stage != "connecting" or self._serving is not None:
                return problem
            if time.monotonic() >= deadline:
                return problem
            time.sleep(_CONNECT_POLL_S)

    def _limits(self, ready: EngineReady, text: TextProcessor) -> Limits:
        vocabulary = text.vocabulary
        spelled = max((len(name.encode()) for name in vocabulary.special_text.values()), default=0)
        longest = max(spelled, max((len(token) for token in vocabulary.token_bytes), default=0))
        return Limits(
            max_input_tokens=ready.max_input_tokens,
            max_total_tokens=ready.max_total_tokens,
            max_best_of=self.declared.max_best_of,
            max_n=self.declared.max_n,
            max_client_batch_size=self.declared.max_client_batch_size,
            grammar_support=self.declared.grammar_support,
            watermark=Watermark(gamma=self.declared.watermark_gamma, delta=self.declared.watermark_delta),
            vocab_size=ready.vocab_size,
            max_stop_sequences=self.declared.max_stop_sequences,
            max_top_n_tokens=self.declared.max_top_n_tokens,
            longest_token_bytes=longest * _NORMALIZER_SHRINK,
        )
