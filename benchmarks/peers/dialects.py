"""How each kind of HTTP server is asked for a greedy stream, and what its events say. Knows no sockets."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.peers.contracts import EngineFailed, Request
from benchmarks.peers.stream_client import Event

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class OpenAICompletions:
    """`/v1/completions` with token ids. The count of tokens is the server's usage; times are those of pieces of text."""

    model: str
    path: str = "/v1/completions"

    def body(self, request: Request) -> bytes:
        fields = {
            "model": self.model,
            "prompt": request.prompt_ids,
            "max_tokens": request.num_output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return json.dumps(fields).encode()

    def read(self, data: bytes) -> Event:
        event = json.loads(data)
        if "error" in event:
            return Event(error=json.dumps(event["error"]))
        usage = event.get("usage")
        total = usage["completion_tokens"] if usage else None
        return Event(num_tokens=sum(1 for one in event["choices"] if one["text"]), total=total)


@dataclass(frozen=True, slots=True)
class NativeStream:
    """TGI's `/generate_stream`, which takes text: prompts must be such that their text gives the same tokens again."""

    decode: Decode
    encode: Callable[[str], list[int]]
    path: str = "/generate_stream"

    def body(self, request: Request) -> bytes:
        text = self.decode(request.prompt_ids)
        if self.encode(text) != list(request.prompt_ids):
            raise EngineFailed(
                "the text of a prompt is tokenized to other ids; take prompts from model_fixture.prompt_ids()"
            )
        return json.dumps(
            {"inputs": text, "parameters": {"max_new_tokens": request.num_output_tokens}}
        ).encode()

    def read(self, data: bytes) -> Event:
        event = json.loads(data)
        if "error" in event:
            return Event(error=str(event["error"]))
        details = event.get("details")
        total = details["generated_tokens"] if details else None
        return Event(num_tokens=1, token_ids=[event["token"]["id"]], total=total)


@dataclass(frozen=True, slots=True)
class LlamaServer:
    """llama-server's own `/completion`. Greedy by one sampler, `top_k` of 1: its default chain sorts 40 candidates."""

    prefix_cache: bool
    path: str = "/completion"

    def body(self, request: Request) -> bytes:
        fields = {
            "prompt": request.prompt_ids,
            "n_predict": request.num_output_tokens,
            "samplers": ["top_k"],
            "top_k": 1,
            "ignore_eos": True,
            "cache_prompt": self.prefix_cache,
            "stream": True,
        }
        return json.dumps(fields).encode()

    def read(self, data: bytes) -> Event:
        event = json.loads(data)
        if "error" in event:
            return Event(error=json.dumps(event["error"]))
        ids = event.get("tokens", [])
        total = event["tokens_predicted"] if event["stop"] else None
        return Event(num_tokens=max(len(ids), int(bool(event["content"]))), token_ids=ids, total=total)
