from __future__ import annotations

from typing import Any, cast

from serving.engine.process import EngineLoop
from serving.ipc.server import EngineHub, FrontEvent
from serving.messages import AddRequest
from serving.sampling_params import SamplingParams
from tests.unit.engine.engine_main import FakeCore


class ScriptedHub:
    """Hands out one event a poll, and stops the loop when there is nothing left to hand out or to do."""

    def __init__(self, events: list[FrontEvent | None]) -> None:
        self.events = events
        self.log: list[str] = []
        self.loop: EngineLoop

    def poll(self, timeout_s: float | None) -> list[FrontEvent]:
        self.log.append("idle" if timeout_s != 0.0 else "busy")
        if timeout_s == 0.0:
            return []
        if not self.events:
            self.loop.stop()
            return []
        event = self.events.pop(0)
        return [event] if event else []

    def wake(self) -> None: ...

    def send(self, front_id: str, message: object) -> None: ...

    def deliver(self, outputs: list[Any]) -> None:
        self.log += [output.finish_reason for output in outputs if output.finish_reason]

    def flush(self, limit_s: float) -> None: ...


def test_whenever_the_last_request_is_done_somebody_hears_of_it() -> None:
    requests: list[FrontEvent | None] = [
        (
            "front",
            AddRequest(
                request_id=f"front-{index}", prompt_token_ids=[1], params=SamplingParams(max_new_tokens=count)
            ),
        )
        for index, count in enumerate((1, 2))
    ]
    hub = ScriptedHub([None, requests[0], None, requests[1], None])
    hub.loop = EngineLoop(
        cast("Any", FakeCore("")),
        cast(EngineHub, hub),
        when_done=lambda: hub.log.append("done"),
    )
    hub.loop.run()
    assert hub.log == [
        "idle", "idle", "length", "done", "idle", "idle", "busy", "length", "done", "idle", "idle",
    ]  # fmt: skip
