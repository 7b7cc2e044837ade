"""The real engine process around a fake core and executor: `python -m tests.unit.engine.engine_main …`.

`--model-id` scripts it: `boot-fails`, `boot-breaks`, `step-fails`, `thread-dies`, `check-fails`, `slow` (steps of 0.2 s),
`ranks` (a real rank group; a step hangs for ever once a rank is dead), else a token per request and step, for ever unless
`max_new_tokens` is set.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

from serving.config import Stage
from serving.engine.block_pool import BlockPool
from serving.engine.process import BootOptions, main
from serving.engine.rank_group import RankGroup
from serving.engine.session_pins import SessionPins
from serving.engine.sessions import SessionTable
from serving.errors import InvalidRequest, ModelError, RequestError, WireError
from serving.messages import AddRequest, EngineReady, EngineStats, SequenceOutput
from tests.unit.engine.test_executor import RANK_COMMAND, engine_config
from tests.unit.ipc.fakes import READY, STATS


class FakeCore:
    def __init__(self, script: str, group: RankGroup | None = None) -> None:
        self._script = script
        self._group = group
        self._running: dict[str, tuple[AddRequest, int]] = {}
        self._pending: list[SequenceOutput] = []
        self._num_steps = 0
        self.sessions = SessionTable(SessionPins([BlockPool(2)], kv_fraction=0.0), ttl_s=0.5, max_sessions=2)

    def add_request(self, message: AddRequest) -> bool:
        if not message.prompt_token_ids:
            raise InvalidRequest("`inputs` must have at least 1 token", field="inputs")
        if message.session_id:
            self.sessions.use(message.session_id)
        self._running[message.request_id] = (message, 0)
        return True

    def call_on_compiled(self, call: Callable[[], None]) -> None:
        """It compiles nothing."""

    def share_of_cache_ever_used(self) -> float:
        return 0.0

    def take_admissions(self) -> list[tuple[str, RequestError | None]]:
        return []

    def abort(self, request_id: str, index: int | None = None) -> None:
        if self._running.pop(request_id, None) is not None:
            self._pending.append(SequenceOutput(request_id=request_id, finish_reason="abort"))

    def abort_front(self, front_id: str) -> None:
        for request_id in [key for key in self._running if key.rpartition("-")[0] == front_id]:
            del self._running[request_id]

    def has_work(self) -> bool:
        return bool(self._running or self._pending)

    def step(self) -> list[SequenceOutput]:
        if self._script == "step-fails":
            raise RuntimeError("secret /path\nand a second line")
        if self._script == "thread-dies":
            threading.Thread(target=lambda: [].pop()).start()
            threading.Event().wait()
        if self._group is not None and self._group.death(within_s=0.0):
            threading.Event().wait()
        threading.Event().wait(0.2 if self._script == "slow" else 0.002)
        self._num_steps += 1
        outputs, self._pending = self._pending, []
        for request_id, (message, done) in list(self._running.items()):
            limit = message.params.max_new_tokens
            finished = limit is not None and done + 1 >= limit
            if finished:
                del self._running[request_id]
            else:
                self._running[request_id] = (message, done + 1)
            outputs.append(
                SequenceOutput(
                    request_id=request_id,
                    token_ids=[done],
                    logprobs=[-1.0],
                    finish_reason="length" if finished else None,
                )
            )
        return outputs

    def fail_all(self, reason: str) -> list[SequenceOutput]:
        error = WireError(error_type="generation", message=reason)
        return [SequenceOutput(request_id=key, finish_reason="error", error=error) for key in self._running]

    def stats(self) -> EngineStats:
        import msgspec

        return msgspec.structs.replace(STATS, num_steps=self._num_steps, num_running=len(self._running))

    def check(self) -> None:
        if self._script == "check-fails" and self._num_steps:
            raise RuntimeError("2 blocks are lost")

    def close(self) -> None:
        print("core closed", file=sys.stderr)


def build(options: BootOptions) -> tuple[FakeCore, EngineReady]:
    options.report(Stage(stage="loading", detail="1/2"))
    options.report(Stage(stage="warm-up"))
    if options.model_id == "boot-fails":
        raise ModelError("config.json has no `model_type`: is this a model folder?")
    if options.model_id == "boot-breaks":
        raise KeyError("rope")
    group = None
    if options.model_id == "ranks":
        group = RankGroup(
            engine_config(num_ranks=2),
            rendezvous=options.run_dir / "rendezvous",
            on_death=options.on_rank_death,
            rank_command=RANK_COMMAND,
        )
        group.collect_ready()
        (options.run_dir / "rank.pid").write_text(str(group.pids[0]))
    return FakeCore(options.model_id, group), READY


if __name__ == "__main__":
    sys.exit(main(build=build))  # type: ignore[arg-type]
