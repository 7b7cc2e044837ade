"""Every struct that crosses a socket: front <-> engine, engine -> ranks. Nothing else lives here.

Two tagged unions, one decoder each. New fields get defaults, so that an old peer can still read them.
"""

from __future__ import annotations

import msgspec

from serving.batch import ScheduledBatch
from serving.errors import WireError
from serving.sampling_params import SamplingParams


class _Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """Wire defaults shared by all messages."""


# ---------------------------------------------------------------- front -> engine


class Hello(_Message, tag="hello"):
    """First message of a front. From then on its connection speaks for requests named `{front_id}-…` only."""

    front_id: str


class AddRequest(_Message, tag="add"):
    """Start one generation of `params.n` sequences. `request_id` is unique per front and carries the front's id.

    With `session_id` it is a turn of that session, and refused when the session is not open.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    adapter_id: str | None = None
    cache_salt: str = ""
    session_id: str = ""


class AbortRequest(_Message, tag="abort"):
    """Stop one sequence (`index`) or, with None, all sequences of a request. Unknown ids are ignored."""

    request_id: str
    index: int | None = None


class Ping(_Message, tag="ping"):
    """Answered between two steps with a `CommandReply` that carries `EngineStats`."""

    nonce: int


class LoadAdapter(_Message, tag="load_adapter"):
    nonce: int
    name: str
    source: str


class UnloadAdapter(_Message, tag="unload_adapter"):
    nonce: int
    name: str


class OpenSession(_Message, tag="open_session"):
    """Answered with a `CommandReply` that carries `SessionOpened`, or the error."""

    nonce: int


class CloseSession(_Message, tag="close_session"):
    nonce: int
    session_id: str


ToEngine = Hello | AddRequest | AbortRequest | Ping | LoadAdapter | UnloadAdapter | OpenSession | CloseSession


# ---------------------------------------------------------------- engine -> front


class EngineReady(_Message, tag="ready"):
    """First message on every connection, sent once the engine can serve: the facts a front needs."""

    model_id: str
    model_dir: str
    revision: str | None
    device: str
    dtype: str
    num_ranks: int
    vocab_size: int
    eos_token_ids: list[int]
    max_input_tokens: int
    max_total_tokens: int
    max_step_tokens: int
    max_num_seqs: int
    num_blocks: int
    block_size: int
    stall_limit_s: float
    architecture: str = ""
    planning_core: int | None = None
    """Where the engine plans its steps, on a machine whose cores are all taken by its compute threads."""


class RequestAccepted(_Message, tag="accepted"):
    """The request was admitted; from here on it ends in exactly one terminal `SequenceOutput` per sequence."""

    request_id: str


class TopToken(msgspec.Struct, frozen=True, array_like=True):
    id: int
    logprob: float


class SequenceOutput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one step added to one sequence. Terminal when `finish_reason` is set.

    `token_ids`, `logprobs` and, if asked for, `top_tokens` have equal length. `finish_reason` is `length`, `eos_token`,
    `stop_token`, `abort` or `error`; with `error`, `error` holds the cause. A request refused before admission gets one
    output with index 0, no tokens and `error`. Timings are seconds, on the terminal output;
    `queue_s` also on the first.
    `prompt_logprobs` (one per prompt token, the first None) comes with the first output when asked for; so does
    `prompt_top_tokens` (the likeliest tokens at each prompt position, the first empty) when `top_n_tokens` is set too.
    """

    request_id: str
    index: int = 0
    token_ids: list[int] = []
    logprobs: list[float] = []
    top_tokens: list[list[TopToken]] | None = None
    finish_reason: str | None = None
    error: WireError | None = None
    num_cached_tokens: int = 0
    prompt_logprobs: list[float | None] | None = None
    prompt_top_tokens: list[list[TopToken]] | None = None
    seed: int | None = None
    queue_s: float = 0.0
    inference_s: float = 0.0


class StepOutputs(_Message, tag="step"):
    """One message per step and front: all news of that front's requests."""

    outputs: list[SequenceOutput]


class Bucketed(msgspec.Struct, frozen=True, array_like=True):
    """A histogram since boot: counts per bucket of `serving.buckets`, zeros at the end left out, and the sum of values."""

    counts: list[int] = []
    total: float = 0.0


class MethodStats(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Steps of one kind. Durations (seconds): the whole step, its forward pass, taking in its result."""

    num_started: int = 0
    num_done: int = 0
    step_s: Bucketed = Bucketed()
    forward_s: Bucketed = Bucketed()
    update_s: Bucketed = Bucketed()


class StepStats(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the engine's steps did. `methods` has `prefill` and `decode`.

    `next_size`: sequences that began in one step; `join_s`: planning of the steps in which some joined running ones;
    `extra_tokens`: tokens per sequence and step beyond the first. `running_max_tokens` is what the running sequences
    may grow to, `capacity_tokens` what the KV cache holds, `max_sequences` how many may run and wait together.
    """

    methods: dict[str, MethodStats] = {}
    next_size: Bucketed = Bucketed()
    join_s: Bucketed = Bucketed()
    extra_tokens: Bucketed = Bucketed()
    running_max_tokens: int = 0
    capacity_tokens: int = 0
    max_sequences: int = 0


class GrammarStats(msgspec.Struct, frozen=True, kw_only=True):
    """Grammars that were not in the cache. `compile_s`: asked for to compiled or refused; those that are refused without
    being looked at are only in `num_refused`."""

    num_waiting: int = 0
    num_refused: int = 0
    cache_bytes: int = 0
    compile_s: Bucketed = Bucketed()


class SessionStats(msgspec.Struct, frozen=True, kw_only=True):
    """`num_pinned_blocks` of the KV group that has most; `num_pins_given_up` for room or quota, since boot."""

    num_open: int = 0
    num_pinned_blocks: int = 0
    num_pinned_tokens: int = 0
    num_pins_given_up: int = 0


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """Engine-owned gauges and counters (counters since boot). `queue_s`: arrival to first scheduled, one per request."""

    num_steps: int
    num_waiting: int
    num_running: int
    num_waiting_tokens: int
    num_free_blocks: int
    num_blocks: int
    num_sequences: int
    num_finished: int
    num_failed: int
    num_aborted: int
    num_preemptions: int
    num_prompt_tokens: int
    num_generated_tokens: int
    num_cached_tokens: int
    forward_s: float
    queue_s: Bucketed = Bucketed()
    step: StepStats = StepStats()
    grammar: GrammarStats = GrammarStats()
    session: SessionStats = SessionStats()


class SessionOpened(msgspec.Struct, frozen=True, kw_only=True):
    """`expires_at_s` is seconds since 1970, UTC."""

    session_id: str
    expires_at_s: float


class CommandReply(_Message, tag="reply"):
    nonce: int
    error: WireError | None = None
    stats: EngineStats | None = None
    session: SessionOpened | None = None


class EngineFailed(_Message, tag="failed"):
    """Last message of a dying engine; every open request has ended with it."""

    reason: str


FromEngine = EngineReady | RequestAccepted | StepOutputs | CommandReply | EngineFailed


# ---------------------------------------------------------------- engine <-> ranks


class ExecuteBatch(_Message, tag="execute"):
    batch: ScheduledBatch


class InitializeCache(_Message, tag="initialize_cache"):
    """Allocate the KV cache with this many blocks per group."""

    num_blocks: list[int]


class RunWarmup(_Message, tag="warmup"):
    """Run the largest step once, without a cache, so that its peak memory is known."""

    num_tokens: int


class Shutdown(_Message, tag="shutdown"):
    pass


ToRank = ExecuteBatch | InitializeCache | RunWarmup | LoadAdapter | Shutdown


class RankReady(_Message, tag="rank_ready"):
    """A rank has loaded its shard, or finished the command before; `free_bytes` is what its device has left."""

    rank: int
    free_bytes: int = 0


class RankFailed(_Message, tag="rank_failed"):
    rank: int
    reason: str


FromRank = RankReady | RankFailed
