"""The runner's half of the JSON lines, and the loops that turn requests into calls of an engine.

Standard library only: it runs in each engine's own environment, on whatever Python that has. Knows no engine.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

Job = dict[str, Any]
Answer = dict[str, Any]
Prompt = Sequence[int]


class Batcher(Protocol):
    """An engine that takes requests at any time."""

    def add(self, index: int, prompt: Prompt, num_output_tokens: int) -> None: ...

    def step(self) -> list[tuple[int, list[int], bool]]:
        """Do some work, or wait for some; (index of the request, its new tokens, whether it has ended) of each."""


class Waves(Protocol):
    """An engine that takes a batch and gives nothing but its end, or its steps."""

    def generate(
        self, prompts: list[Prompt], num_output_tokens: int, told: Callable[[], None]
    ) -> list[list[int]]:
        """All prompts have one length. `told()` is called after each step, if the engine has steps to see."""


def serve(make_run: Callable[[Path, Job], Callable[[Job], Answer]]) -> None:
    """Load, say so, then answer each line of standard input. Whatever libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    run = make_run(Path(sys.argv[1]), json.loads(sys.argv[2]))
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), file=answers, flush=True)


def run_batcher(batcher: Batcher, workload: Job) -> Answer:
    """Requests are handed over at their arrival, and no more than `concurrency` at once."""
    requests, concurrency = workload["requests"], workload["concurrency"]
    waiting = deque(range(len(requests)))
    results = [_empty() for _ in requests]
    num_open = 0
    started_s = time.perf_counter()
    while waiting or num_open:
        now_s = time.perf_counter() - started_s
        while waiting and (concurrency is None or num_open < concurrency):
            request = requests[waiting[0]]
            if request["arrival_s"] > now_s:
                break
            index = waiting.popleft()
            results[index]["start_s"] = now_s
            batcher.add(index, request["prompt_ids"], request["num_output_tokens"])
            num_open += 1
        if not num_open:
            time.sleep(max(0.0, requests[waiting[0]]["arrival_s"] - now_s))
            continue
        for index, tokens, has_ended in batcher.step():
            now_s = time.perf_counter() - started_s
            _note(results[index], tokens, now_s)
            if has_ended:
                results[index]["end_s"] = now_s
                num_open -= 1
    return {"requests": results, "wall_s": time.perf_counter() - started_s}


def run_waves(waves: Waves, workload: Job) -> Answer:
    """Closed loop only: `concurrency` requests, then as many again. Raises ValueError for anything else."""
    requests = workload["requests"]
    size = workload["concurrency"] or len(requests)
    if any(request["arrival_s"] for request in requests):
        raise ValueError("this engine takes whole batches; it has no open loop")
    results = [_empty() for _ in requests]
    started_s = time.perf_counter()
    for first in range(0, len(requests), size):
        members = range(first, min(first + size, len(requests)))
        shapes = {(len(requests[i]["prompt_ids"]), requests[i]["num_output_tokens"]) for i in members}
        if len(shapes) != 1:
            raise ValueError("this engine takes whole batches, of prompts and outputs of one length")
        [(_, num_output_tokens)] = shapes
        _run_wave(waves, requests, results, members, num_output_tokens, started_s)
    return {"requests": results, "wall_s": time.perf_counter() - started_s}


def _run_wave(
    waves: Waves,
    requests: list[Job],
    results: list[Answer],
    members: range,
    num_output_tokens: int,
    started_s: float,
) -> None:
    times_s: list[float] = []
    begin_s = time.perf_counter() - started_s
    outputs = waves.generate(
        [requests[i]["prompt_ids"] for i in members],
        num_output_tokens,
        lambda: times_s.append(time.perf_counter() - started_s),
    )
    end_s = time.perf_counter() - started_s
    for index, tokens in zip(members, outputs):  # noqa: B905 (the engine's Python may be older than `strict`)
        results[index].update(
            start_s=begin_s,
            first_token_s=times_s[0] if times_s else None,
            end_s=end_s,
            num_tokens=len(tokens),
            token_s=times_s,
            token_ids=tokens,
        )


def _empty() -> Answer:
    return {
        "start_s": 0.0,
        "first_token_s": None,
        "end_s": 0.0,
        "num_tokens": 0,
        "token_s": [],
        "token_ids": [],
        "error": "",
    }


def _note(result: Answer, tokens: list[int], now_s: float) -> None:
    if tokens and result["first_token_s"] is None:
        result["first_token_s"] = now_s
    result["num_tokens"] += len(tokens)
    result["token_s"] += [now_s] * len(tokens)
    result["token_ids"] += tokens
