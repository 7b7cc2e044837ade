"""An engine without a model: takes every request, gives each running one a token per tick. For measuring the front alone.

python -m benchmarks.engine_stand_in --run-dir DIR --model-dir local_mode/demo_model --tokens-per-s 10
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from serving.config import ENGINE_SOCKET
from serving.ipc.server import EngineHub, FrontClosed, front_of
from serving.messages import (
    AbortRequest,
    AddRequest,
    CommandReply,
    EngineReady,
    EngineStats,
    Ping,
    RequestAccepted,
    SequenceOutput,
)
from serving.text.tokenizer import Tokenizer
from serving.vocabulary import Vocabulary

_NUM_SEQS = 4096
_FLUSH_S = 1.0


class StandIn:
    """Every request runs at once and repeats its prompt's tokens, special ones left out, until `max_new_tokens`.

    A token's log-probability is the reading of `time.monotonic` before its step was sent, negative: every process of a
    machine has the same clock, so a client can tell how long a token took.
    """

    def __init__(self, hub: EngineHub, vocabulary: Vocabulary) -> None:
        self._hub = hub
        self._special_ids = vocabulary.special_ids
        self._token_ids: dict[str, list[int]] = {}
        self._requests: dict[str, AddRequest] = {}
        self._counts: dict[str, int] = {}
        self._num_steps = 0
        self._num_sequences = 0
        self._num_finished = 0

    def run(self, tokens_per_s: float) -> None:
        """Serve for ever; `tokens_per_s` 0 means as fast as the fronts take them."""
        interval_s = 1.0 / tokens_per_s if tokens_per_s else 0.0
        next_tick_s = time.monotonic()
        while True:
            wait_s = max(0.0, next_tick_s - time.monotonic()) if self._requests else None
            for event in self._hub.poll(wait_s):
                self._take(*event)
            if self._requests and time.monotonic() >= next_tick_s:
                next_tick_s = max(next_tick_s + interval_s, time.monotonic() - interval_s)
                self._step()
                if not interval_s:
                    self._hub.flush(_FLUSH_S)

    def _take(self, front_id: str, message: object) -> None:
        if isinstance(message, AddRequest):
            self._requests[message.request_id] = message
            self._token_ids[message.request_id] = [
                token_id for token_id in message.prompt_token_ids if token_id not in self._special_ids
            ] or message.prompt_token_ids
            self._counts[message.request_id] = 0
            self._num_sequences += 1
            self._hub.send(front_id, RequestAccepted(request_id=message.request_id))
        elif isinstance(message, AbortRequest):
            self._forget(message.request_id)
        elif isinstance(message, FrontClosed):
            for request_id in [key for key in self._requests if front_of(key) == message.front_id]:
                self._forget(request_id)
        elif isinstance(message, Ping):
            self._hub.send(front_id, CommandReply(nonce=message.nonce, stats=self._stats()))

    def _stats(self) -> EngineStats:
        return EngineStats(
            num_steps=self._num_steps,
            num_waiting=0,
            num_running=len(self._requests),
            num_waiting_tokens=0,
            num_free_blocks=1,
            num_blocks=1,
            num_sequences=self._num_sequences,
            num_finished=self._num_finished,
            num_failed=0,
            num_aborted=self._num_sequences - self._num_finished - len(self._requests),
            num_preemptions=0,
            num_prompt_tokens=0,
            num_generated_tokens=0,
            num_cached_tokens=0,
            forward_s=0.0,
        )

    def _step(self) -> None:
        self._num_steps += 1
        outputs: list[SequenceOutput] = []
        sent_s = time.monotonic()
        for request_id, request in list(self._requests.items()):
            count = self._counts[request_id] = self._counts[request_id] + 1
            last = count >= (request.params.max_new_tokens or 1)
            prompt = self._token_ids[request_id]
            output = SequenceOutput(
                request_id=request_id,
                token_ids=[prompt[count % len(prompt)]],
                logprobs=[-sent_s],
                finish_reason="length" if last else None,
                queue_s=1e-6 if last or count == 1 else 0.0,
                inference_s=1.0 if last else 0.0,
            )
            outputs.append(output)
            if last:
                self._num_finished += 1
                self._forget(request_id)
        self._hub.deliver(outputs)

    def _forget(self, request_id: str) -> None:
        self._requests.pop(request_id, None)
        self._counts.pop(request_id, None)
        self._token_ids.pop(request_id, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--tokens-per-s", type=float, default=10.0, help="per stream; 0 = without pause")
    options = parser.parse_args()
    vocabulary = Tokenizer.from_dir(options.model_dir).vocabulary
    hub = EngineHub(
        options.run_dir / ENGINE_SOCKET,
        EngineReady(
            model_id="stand-in",
            model_dir=str(options.model_dir.resolve()),
            revision=None,
            device="cpu",
            dtype="float32",
            num_ranks=1,
            vocab_size=len(vocabulary),
            eos_token_ids=sorted(vocabulary.eos_token_ids),
            max_input_tokens=40_000,
            max_total_tokens=60_000,
            max_step_tokens=512,
            max_num_seqs=_NUM_SEQS,
            num_blocks=100_000,
            block_size=16,
            stall_limit_s=20.0,
        ),
    )
    StandIn(hub, vocabulary).run(options.tokens_per_s)


if __name__ == "__main__":
    main()
