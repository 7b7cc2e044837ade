"""The engine in this process: `LLM(model).generate(prompts)`. Text in, text out; no HTTP, no sockets."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Literal

import msgspec
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from serving.config import (
    CacheConfig,
    LimitsConfig,
    ModelConfig,
    ParallelConfig,
    RuntimeConfig,
    SchedulerConfig,
    ServerConfig,
)
from serving.engine.boot import boot
from serving.errors import InvalidRequest, ModelError, from_wire
from serving.messages import AddRequest, EngineStats, SequenceOutput, TopToken
from serving.sampling_params import SamplingParams
from serving.text.chat import ChatRequest
from serving.text.processor import TextProcessor
from serving.text.sequence_text import SequenceText

Prompt = str | Sequence[int]

_UNLIMITED = 2**31
_PROGRESS_FROM = 8
"""Batches at least this large show a progress bar on a terminal."""


@dataclass(slots=True)
class GeneratedSequence:
    """One continuation. `finish_reason` is `length`, `eos_token` or `stop_sequence`; lists have one entry per token."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_tokens: list[list[TopToken]] = field(default_factory=list)
    finish_reason: str = ""
    seed: int | None = None


@dataclass(slots=True)
class RequestOutput:
    """All continuations of one prompt, `params.n` of them; the properties speak of the first."""

    prompt_token_ids: list[int]
    sequences: list[GeneratedSequence]
    num_cached_tokens: int = 0
    prompt_logprobs: list[float | None] | None = None
    prompt_top_tokens: list[list[TopToken]] | None = None

    @property
    def text(self) -> str:
        return self.sequences[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.sequences[0].token_ids

    @property
    def logprobs(self) -> list[float]:
        return self.sequences[0].logprobs

    @property
    def top_tokens(self) -> list[list[TopToken]]:
        return self.sequences[0].top_tokens

    @property
    def finish_reason(self) -> str:
        return self.sequences[0].finish_reason


@dataclass(slots=True)
class _Running:
    """A request on its way: its output so far and the text state of its sequences."""

    output: RequestOutput
    texts: list[SequenceText]
    num_open: int


class LLM:
    """A model, ready to generate.

        llm = LLM("demo")
        llm.generate(["Once upon a time"], SamplingParams(temperature=0, max_new_tokens=40))[0].text

    Raises `StartupError` subclasses when the model cannot be served as asked. Close it (or use `with`) to free the device.
    """

    def __init__(
        self,
        model: str | Path = "demo",
        *,
        device: Literal["auto", "cuda", "cpu"] = "auto",
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        num_ranks: int | None = None,
        prefix_caching: bool = True,
        deterministic: bool = False,
        block_size: int = 16,
        kv_cache_dtype: Literal["auto", "fp8_e4m3"] = "auto",
        max_total_tokens: int | None = None,
        max_batch_prefill_tokens: int | None = None,
        max_batch_total_tokens: int | None = None,
        max_num_seqs: int = 256,
        memory_fraction: float = 0.9,
        num_threads: int | None = None,
        decode_graphs: bool = True,
        async_scheduling: Literal["auto", "on", "off"] = "auto",
        one_shot_all_reduce: bool = True,
        chat_template: str | None = None,
    ) -> None:
        """`model` is `demo` or a folder in Hugging Face layout; the other options are those of the server."""
        folder = _model_folder(model)
        declared = ServerConfig(
            model=ModelConfig(model_id=str(model), dtype=dtype, chat_template=chat_template),
            cache=CacheConfig(
                block_size=block_size,
                dtype=kv_cache_dtype,
                max_batch_total_tokens=max_batch_total_tokens,
                memory_fraction=memory_fraction,
                prefix_caching=prefix_caching,
            ),
            scheduler=SchedulerConfig(
                max_batch_prefill_tokens=max_batch_prefill_tokens,
                max_num_seqs=max_num_seqs,
                max_queue_tokens=_UNLIMITED,
            ),
            parallel=ParallelConfig(num_ranks=num_ranks, one_shot_all_reduce=one_shot_all_reduce),
            limits=LimitsConfig(
                max_total_tokens=max_total_tokens,
                max_concurrent_requests=_UNLIMITED,
                max_best_of=max_num_seqs,
            ),
            runtime=RuntimeConfig(
                device=device,
                deterministic=deterministic,
                num_threads=num_threads,
                decode_graphs=decode_graphs,
                async_scheduling=async_scheduling,
            ),
        )
        booted = boot(declared, model_dir=str(folder), model_id=str(model))
        self._core = booted.core
        self.ready = booted.core.ready(architecture=booted.architecture)
        self.text = TextProcessor.from_dir(folder, vocab_size=self.ready.vocab_size, config=declared.model)
        self._counter = 0

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._core.close()

    def stats(self) -> EngineStats:
        """Gauges and counters of the engine since it started."""
        return self._core.stats()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = True,
    ) -> list[RequestOutput]:
        """Continue every prompt (text, or token ids); one output per prompt, in order.

        Raises `InvalidRequest` before anything is generated if one of the requests can never run.
        """
        batch = _as_batch(prompts)
        all_params = _as_params(params, len(batch))
        running: dict[str, _Running] = {}
        try:
            for prompt, one in zip(batch, all_params, strict=True):
                self._add(prompt, one, running)
            outputs = [state.output for state in running.values()]
            self._finish_all(running, show=progress and len(batch) >= _PROGRESS_FROM)
        finally:
            self._abandon(running)
        return outputs

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[str]:
        """Pieces of text as they are generated; closing the iterator aborts the request."""
        running: dict[str, _Running] = {}
        self._add(prompt, params or SamplingParams(), running)
        try:
            while running:
                for output in self._core.step():
                    yield "".join(self._take(output, running))
        finally:
            self._abandon(running)

    def chat(
        self, messages: Sequence[Mapping[str, object]], params: SamplingParams | None = None
    ) -> RequestOutput:
        """Answer a conversation of `{"role", "content"}` messages. What they spell never becomes a special token.

        Raises `TemplateError` if the model has no template.
        """
        prepared = self.text.prepare_chat(ChatRequest(messages=[dict(message) for message in messages]))
        return self.generate([prepared.prompt_token_ids], params)[0]

    # ------------------------------------------------------------ the loop

    def _add(self, prompt: Prompt, params: SamplingParams, running: dict[str, _Running]) -> None:
        ids = self.text.prepare(prompt) if isinstance(prompt, str) else list(prompt)
        if not params.greedy and params.seed is None:
            params = _with_seed(params)
        self._counter += 1
        request_id = f"llm-{self._counter}"
        texts = [self.text.new_sequence(params, prompt_token_ids=ids) for _ in range(params.n)]
        self._core.add_request(
            AddRequest(request_id=request_id, prompt_token_ids=ids, params=params), wait=True
        )
        output = RequestOutput(prompt_token_ids=ids, sequences=[GeneratedSequence() for _ in range(params.n)])
        running[request_id] = _Running(output=output, texts=texts, num_open=params.n)

    def _finish_all(self, running: dict[str, _Running], *, show: bool) -> None:
        columns = (
            TextColumn("generating"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        total, num_tokens = len(running), 0
        with Progress(*columns, disable=not show) as bar:
            task = bar.add_task("generating", total=total, rate="")
            while running:
                for output in self._core.step():
                    num_tokens += len(output.token_ids)
                    self._take(output, running)
                elapsed_s = bar.tasks[0].elapsed or 0.0
                bar.update(
                    task,
                    completed=total - len(running),
                    rate=f"{num_tokens / max(elapsed_s, 1e-3):.0f} tok/s",
                )

    def _take(self, output: SequenceOutput, running: dict[str, _Running]) -> list[str]:
        """Add one sequence's news to its request; returns the pieces of its text."""
        state = running.get(output.request_id)
        if state is None:
            return []
        sequence, text = state.output.sequences[output.index], state.texts[output.index]
        if sequence.finish_reason:
            return []
        if output.error is not None:
            raise from_wire(output.error)
        tokens = text.push(output)
        kept = len(tokens)
        sequence.token_ids += output.token_ids[:kept]
        sequence.logprobs += output.logprobs[:kept]
        sequence.top_tokens += (output.top_tokens or [])[:kept]
        sequence.seed = output.seed
        if output.index == 0:
            state.output.num_cached_tokens = output.num_cached_tokens
        if output.prompt_logprobs is not None:
            state.output.prompt_logprobs = output.prompt_logprobs
            state.output.prompt_top_tokens = output.prompt_top_tokens
        if text.stopped:
            self._core.abort(output.request_id, output.index)
        if text.finish_reason is not None:
            sequence.text, sequence.finish_reason = text.text, text.finish_reason
            state.num_open -= 1
            if state.num_open == 0:
                del running[output.request_id]
        return [token.text for token in tokens if not token.special]

    def _abandon(self, running: dict[str, _Running]) -> None:
        for request_id in running:
            self._core.abort(request_id)
        while self._core.has_work():
            self._core.step()


def _model_folder(model: str | Path) -> Path:
    if model == "demo":
        return Path(str(resources.files("local_mode"))) / "demo_model"
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{model!s} is not a folder with a config.json; fetch a Hub model first, with "
            "`huggingface_hub.snapshot_download`, and pass the folder"
        )
    return folder


def _as_batch(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt is a string or a list of ids; everything else is a list of prompts."""
    if isinstance(prompts, str):
        return [prompts]
    ids = [item for item in prompts if isinstance(item, int)]
    return [ids] if ids else [item for item in prompts if not isinstance(item, int)]


def _as_params(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise InvalidRequest(
            f"{len(params)} sampling params for {count} prompts: give one, or one per prompt"
        )
    return list(params)


def _with_seed(params: SamplingParams) -> SamplingParams:
    return msgspec.structs.replace(params, seed=int.from_bytes(os.urandom(8), "little"))
