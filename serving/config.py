"""Declared configuration, in slices, and the frozen `EngineConfig` that `serving.resolve` derives from it.

Every declared field has a default and a description: command-line flags, the environment table and the configuration
reference are made from them. Nothing here is written to after construction; a later stage derives a new object.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

PositiveInt = Annotated[int, Meta(ge=1)]


def _doc(description: str) -> Meta:
    return Meta(description=description)


class _Slice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class ModelConfig(_Slice):
    model_id: Annotated[str, _doc("Hub id, local folder, s3:// prefix or `demo`")] = ""
    revision: Annotated[str | None, _doc("branch, tag or commit of a Hub model")] = None
    quantize: Annotated[
        str | None, _doc("quantization scheme; none is built yet, so any value is refused")
    ] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        _doc("compute type; auto = float32 on CPU, the model's on CUDA"),
    ] = "auto"
    served_names: Annotated[
        tuple[str, ...], _doc("further names that requests may give as `model`, comma separated")
    ] = ()
    chat_template: Annotated[
        str | None, _doc("chat template to use instead of the model's: a file, or the template itself")
    ] = None
    tool_format: Annotated[
        str | None, _doc("how the model writes tool calls; absent: found in its chat template")
    ] = None
    reasoning_format: Annotated[
        str | None, _doc("how the model marks its reasoning, or `none`; absent: found in its chat template")
    ] = None
    trust_remote_code: Annotated[
        bool, _doc("run the custom handler that comes with a model; no other code of a model is ever run")
    ] = False


class CacheConfig(_Slice):
    block_size: Annotated[PositiveInt, _doc("tokens per KV block")] = 16
    max_batch_total_tokens: Annotated[
        PositiveInt | None, _doc("KV capacity in tokens; absent: sized from free memory")
    ] = None
    memory_fraction: Annotated[float, Meta(gt=0.0, le=1.0), _doc("share of the CUDA memory we may use")] = 0.9
    dtype: Annotated[
        Literal["auto", "fp8_e4m3"],
        _doc("type of the KV cache; auto = the compute type, fp8_e4m3 = half of its memory, on CUDA only"),
    ] = "auto"
    prefix_caching: Annotated[bool, _doc("reuse the KV blocks of equal prompt beginnings")] = True


class SchedulerConfig(_Slice):
    max_batch_prefill_tokens: Annotated[
        PositiveInt | None, _doc("token budget of one step; absent: 2048 on CUDA, 512 on CPU")
    ] = None
    max_num_seqs: Annotated[PositiveInt, _doc("sequences that run at the same time")] = 256
    max_queue_tokens: Annotated[
        PositiveInt | None, _doc("prompt tokens that may wait; absent: 4 x KV capacity")
    ] = None
    step_time_budget_s: Annotated[
        float,
        Meta(gt=0.0),
        _doc("longest step the scheduler plans, seconds; up to four times that when as many prompts wait"),
    ] = 0.25


class ParallelConfig(_Slice):
    num_ranks: Annotated[
        PositiveInt | None, _doc("tensor-parallel ranks (SM_NUM_GPUS); absent: all GPUs that fit, 1 on CPU")
    ] = None
    one_shot_all_reduce: Annotated[
        bool,
        _doc("sum a few rows over the ranks in one launch where NVLink joins all GPUs; false: NCCL always"),
    ] = True


class LimitsConfig(_Slice):
    max_input_tokens: Annotated[PositiveInt | None, _doc("longest prompt; absent: max_total_tokens - 1")] = (
        None
    )
    max_total_tokens: Annotated[
        PositiveInt | None,
        _doc("longest prompt + output; absent: the model's context or the KV capacity, the smaller"),
    ] = None
    max_concurrent_requests: Annotated[PositiveInt, _doc("generations held at once; beyond it 429")] = 128
    max_best_of: Annotated[PositiveInt, _doc("largest best_of")] = 2
    max_n: Annotated[PositiveInt, _doc("largest n of the OpenAI routes")] = 16
    max_client_batch_size: Annotated[PositiveInt, _doc("prompts in one /v1/completions request")] = 32
    max_stop_sequences: Annotated[int, Meta(ge=0), _doc("stop strings per request")] = 4
    max_top_n_tokens: Annotated[int, Meta(ge=0), _doc("largest top_n_tokens")] = 5
    grammar_support: Annotated[bool, _doc("accept grammars, response formats and forced tool calls")] = True
    grammar_timeout_s: Annotated[float, Meta(gt=0.0), _doc("longest compilation of one grammar, seconds")] = (
        2.0
    )
    grammar_cache_bytes: Annotated[int, Meta(ge=0), _doc("compiled grammars kept for reuse, bytes")] = (
        64 * 1024 * 1024
    )
    watermark_gamma: Annotated[
        float, Meta(gt=0.0, lt=1.0), _doc("share of the vocabulary that a watermark favours")
    ] = 0.5
    watermark_delta: Annotated[float, _doc("what a watermark adds to the favoured logits")] = 2.0
    payload_limit_bytes: Annotated[PositiveInt, _doc("largest request body, bytes")] = 32 * 1024 * 1024


class RuntimeConfig(_Slice):
    device: Annotated[Literal["auto", "cuda", "cpu"], _doc("where the model runs")] = "auto"
    deterministic: Annotated[bool, _doc("a row's bits depend on its own tokens only; slower")] = False
    decode_graphs: Annotated[
        bool, _doc("capture steps of decodes once and replay them, where the device and the model allow it")
    ] = True
    async_scheduling: Annotated[
        Literal["auto", "on", "off"],
        _doc("plan the next step while one runs; auto = on CUDA, where the host would be waiting meanwhile"),
    ] = "auto"
    num_threads: Annotated[
        Annotated[int, Meta(ge=1, le=1024)] | None, _doc("CPU threads per rank; absent: cores / ranks")
    ] = None
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _doc("log level")] = "info"
    json_logs: Annotated[bool, _doc("one JSON object per log line")] = False
    log_prompts: Annotated[bool, _doc("also log the beginning of each prompt and answer")] = False
    otlp_endpoint: Annotated[
        str | None, _doc("OTLP/HTTP collector for traces, such as http://collector:4318; absent: no traces")
    ] = None
    otlp_service_name: Annotated[str, _doc("service name in traces")] = "textgen-endpoint"
    emf: Annotated[
        bool, _doc("print metrics as lines of CloudWatch's embedded metric format, among the log's lines")
    ] = False
    emf_interval_s: Annotated[float, Meta(ge=1.0), _doc("time between two of these lines, seconds")] = 60.0
    emf_namespace: Annotated[str, _doc("CloudWatch namespace of these metrics")] = "TextgenEndpoint"
    emf_endpoint: Annotated[
        str | None, _doc("their dimension `Endpoint`; absent: they have the dimension `Model` alone")
    ] = None


class HttpConfig(_Slice):
    host: Annotated[str, _doc("address to listen on, an IP literal")] = "0.0.0.0"
    port: Annotated[int, Meta(ge=0, le=65535), _doc("port to listen on; 0 = any free one")] = 8080
    api_workers: Annotated[
        Annotated[int, Meta(ge=1, le=256)] | None, _doc("gunicorn workers; absent: one per 8 cores")
    ] = None
    heartbeat_s: Annotated[float, Meta(gt=0.0), _doc("silence on a stream after which a comment is sent")] = (
        15.0
    )
    body_timeout_s: Annotated[
        float,
        Meta(gt=0.0),
        _doc("silence in the middle of a request body after which it is given up, seconds"),
    ] = 30.0
    api_key: Annotated[
        str | None, _doc("key that requests must carry as `Authorization: Bearer KEY`; absent: open")
    ] = None
    api_key_exempt: Annotated[
        tuple[Literal["invocations"], ...], _doc("routes open without the key: `invocations`, or nothing")
    ] = ()
    cors_allow_origin: Annotated[
        tuple[str, ...], _doc("origins that browsers may call from, comma separated; absent: any")
    ] = ()
    unknown_parameters: Annotated[
        Literal["report", "refuse"],
        _doc("request fields that the native routes do not know: name them in a header, or 422"),
    ] = "report"
    drain_timeout_s: Annotated[float, Meta(ge=0.0), _doc("time running work has after SIGTERM")] = 25.0
    unary_deadline_s: Annotated[
        float,
        Meta(ge=0.0),
        _doc("time `/invocations` has to answer a request that is not streamed, seconds; 0 = no limit"),
    ] = 58.0
    batch_transform: Annotated[
        bool, _doc("the platform says that this is a batch transform job: no deadline for single answers")
    ] = False
    default_accept: Annotated[
        str | None,
        _doc(
            "what `/invocations` takes for a missing Accept header or `*/*`: application/jsonlines streams JSON lines, "
            "anything else server-sent events"
        ),
    ] = None
    handler_timeout_s: Annotated[
        float, Meta(gt=0.0), _doc("longest call of a custom handler's hook, seconds")
    ] = 10.0


class SessionConfig(_Slice):
    enabled: Annotated[bool, _doc("stateful sessions on `/invocations`")] = True
    ttl_s: Annotated[float, Meta(gt=0.0), _doc("life of a session from its creation, seconds")] = 1200.0
    max_sessions: Annotated[PositiveInt, _doc("sessions open at once; beyond it 429")] = 256
    kv_fraction: Annotated[
        float,
        Meta(ge=0.0, le=1.0),
        _doc("share of the KV capacity that sessions may keep for their next turn"),
    ] = 0.25


class ServerConfig(_Slice):
    """Everything a user can declare. Written to the run directory for the front and the engine to read."""

    model: ModelConfig = ModelConfig()
    cache: CacheConfig = CacheConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    parallel: ParallelConfig = ParallelConfig()
    limits: LimitsConfig = LimitsConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    http: HttpConfig = HttpConfig()
    sessions: SessionConfig = SessionConfig()


class EngineConfig(_Slice):
    """The engine's final configuration, made by `serving.resolve` only."""

    model_dir: str
    model_id: str
    revision: str | None
    device: Literal["cuda", "cpu"]
    dtype: Literal["float32", "bfloat16", "float16"]
    num_ranks: int
    num_threads: int
    block_size: int
    max_batch_total_tokens: int | None
    memory_fraction: float
    prefix_caching: bool
    max_step_tokens: int
    step_time_budget_s: float
    max_num_seqs: int
    max_queue_tokens: int | None
    max_concurrent_requests: int
    max_best_of: int
    max_input_tokens: int | None
    max_total_tokens: int
    deterministic: bool
    max_n: int = 16
    grammar_support: bool = True
    grammar_timeout_s: float = 2.0
    grammar_cache_bytes: int = 64 * 1024 * 1024
    session_ttl_s: float = 1200.0
    max_sessions: int = 256
    session_kv_fraction: float = 0.25
    decode_graphs: bool = True
    one_shot_all_reduce: bool = True
    async_scheduling: bool = False
    kv_cache_dtype: Literal["auto", "fp8_e4m3"] = "auto"
    log_level: str = "info"
    json_logs: bool = False


class KVGroupConfig(_Slice):
    """One KV group as the scheduler sees it. `window` is the sliding window in tokens (None: full attention)."""

    name: str
    window: int | None = None


class Stage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Start-up stage, published by PID 1 in `<run_dir>/stage.json` (replaced atomically) and read by `/ping`.

    `stage` is `starting`, `downloading`, `loading`, `warm-up`, `ready`, `draining` or `failed`;
    `detail` is for people (`43 %`, `3/8`, the reason of a failure).
    """

    stage: str
    detail: str = ""


class HandlerHooks(msgspec.Struct, frozen=True, kw_only=True):
    """The hooks of the custom handler, published by PID 1 in `<run_dir>/handler.json` before the engine starts."""

    names: tuple[str, ...]


RUN_CONFIG_FILE = "server.json"
STAGE_FILE = "stage.json"
ENGINE_SOCKET = "engine.sock"
HANDLER_SOCKET = "hooks.sock"
MODEL_DIR_FILE = "model-dir"
"""Where the model's files lie, as soon as they are whole, in UTF-8."""
HANDLER_FILE = "handler.json"
