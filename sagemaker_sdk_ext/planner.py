"""What a model needs, and which instance types it fits on, from config.json alone. Estimates; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagemaker_sdk_ext.config_source import read_source
from sagemaker_sdk_ext.errors import ConfigurationError, Misfit
from sagemaker_sdk_ext.instances import (
    GIB,
    INSTANCES,
    Instance,
    cpu_memory_gib,
    find_instance,
    gpu_family,
    refuse_unusable,
)
from sagemaker_sdk_ext.model_shape import DTYPE_BYTES, ModelShape, read_shape

MEMORY_FRACTION = 0.9
"""The server's share of GPU memory (CUDA_MEMORY_FRACTION)."""
STEP_TOKENS = 2048
MAX_SEQUENCES = 256
MIN_TOKENS = 2048
SEQUENCE_TOKENS = 4096
_CONTEXT_BYTES = GIB
_MARGIN = 0.9
_HUB_BYTES_PER_S = 100e6
_S3_BYTES_PER_S = 200e6
_LOAD_BYTES_PER_S = 150e6
_START_S = 180


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """One model on one instance type. `kv_tokens` are what fits into the KV cache, `problem` is why it does not fit."""

    instance_type: str
    gpus: str
    num_ranks: int
    weights_gib_per_gpu: float
    kv_tokens: int
    max_total_tokens: int
    concurrent_4k: int
    price_usd: float | None
    price_confirmed: bool
    problem: str | None = None

    @property
    def fits(self) -> bool:
        return self.problem is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The verdicts are sorted: what fits first, then by price. `str()` is a table for people."""

    model: str
    shape: ModelShape
    dtype: str
    weight_bytes: int
    """On GPUs, in `dtype`."""
    kv_bytes_per_token: int
    fits: tuple[Fit, ...]
    from_hub: bool

    @property
    def best(self) -> Fit | None:
        """The cheapest that fits."""
        return next((fit for fit in self.fits if fit.fits), None)

    @property
    def startup_timeout_s(self) -> int:
        """ContainerStartupHealthCheckTimeoutInSeconds: loading, and the Hub's download where there is one."""
        download_s = self.weight_bytes / _HUB_BYTES_PER_S if self.from_hub else 0.0
        return _limited(_START_S + download_s + self.weight_bytes / _LOAD_BYTES_PER_S)

    @property
    def download_timeout_s(self) -> int:
        """ModelDataDownloadTimeoutInSeconds, twice what S3 should take."""
        return _limited(_START_S + 2 * self.weight_bytes / _S3_BYTES_PER_S)

    def fit_for(self, instance_type: str) -> Fit | None:
        return next((fit for fit in self.fits if fit.instance_type == instance_type), None)

    def environment(self, instance_type: str) -> dict[str, str]:
        """Recommended variables, with a margin for what is only estimated. Unset, the server finds its own at start."""
        fit = self.fit_for(instance_type)
        if fit is None or not fit.fits:
            return {}
        found = {}
        instance = find_instance(instance_type)
        if instance is not None and fit.num_ranks < instance.num_gpus:
            found["SM_NUM_GPUS"] = str(fit.num_ranks)
        if fit.max_total_tokens < self.shape.max_positions:
            found["MAX_TOTAL_TOKENS"] = str(max(1, int(fit.max_total_tokens * _MARGIN) // 256) * 256)
        return found

    def require(self, instance_type: str) -> None:
        """Raises `Misfit` when the model cannot run on the instance type."""
        fit = self.fit_for(instance_type)
        if fit is None or fit.fits:
            return
        best = self.best
        advice = f"; {best.instance_type} is the cheapest that fits" if best is not None else ""
        raise Misfit(
            f"{self.model} on {instance_type}: {fit.problem}{advice}; allow_misfit=True deploys all the same"
        )

    def __str__(self) -> str:
        from sagemaker_sdk_ext.plan_text import plan_text

        return plan_text(self)


def plan(
    model: str | Path | Mapping[str, Any],
    instance_type: str | None = None,
    *,
    max_total_tokens: int | None = None,
    num_gpus: int | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    boto_session: Any = None,
) -> Plan:
    """Judge every GPU instance type, and `instance_type` where it is none of them.

    `model` is config.json as a mapping, a folder, an s3:// prefix or a Hub id. Raises `ConfigUnreachable` when it cannot be
    read, `ConfigurationError` for one that cannot be understood.
    """
    source = read_source(model, revision=revision, token=token, boto_session=boto_session)
    shape = read_shape(source.config)
    if dtype not in (None, "auto", *DTYPE_BYTES):
        raise ConfigurationError(f"dtype = {dtype!r} must be auto or one of {', '.join(DTYPE_BYTES)}")
    on_gpu = _gpu_dtype(shape, dtype)
    judged = [_fit_gpu(shape, instance, on_gpu, num_gpus, max_total_tokens) for instance in INSTANCES]
    if instance_type is not None and all(fit.instance_type != instance_type for fit in judged):
        refuse_unusable(instance_type)
        other = _fit_other(shape, instance_type, dtype, max_total_tokens)
        judged += [other] if other is not None else []
    judged.sort(key=lambda fit: (not fit.fits, fit.price_usd is None, fit.price_usd or 0.0, fit.gpus))
    is_folder = isinstance(model, Mapping) or source.checkpoint_bytes is not None
    return Plan(
        model=source.name,
        shape=shape,
        dtype=on_gpu,
        weight_bytes=shape.weight_bytes(on_gpu),
        kv_bytes_per_token=shape.kv_bytes(1, dtype=on_gpu),
        fits=tuple(judged),
        from_hub=not is_folder and not str(model).startswith(("s3://", "file://", "/", ".")),
    )


def _gpu_dtype(shape: ModelShape, asked: str | None) -> str:
    """The server's rule: the model's own type, but float32 models in bfloat16."""
    if asked not in (None, "auto"):
        return str(asked)
    return "bfloat16" if shape.dtype == "float32" else shape.dtype


def default_ranks(num_heads: int, num_gpus: int) -> int:
    """The server's rule: the most GPUs whose number divides the query heads."""
    return max(count for count in range(1, num_gpus + 1) if num_heads % count == 0)


def _fit_gpu(
    shape: ModelShape, instance: Instance, dtype: str, num_gpus: int | None, wanted_tokens: int | None
) -> Fit:
    ranks = num_gpus or default_ranks(shape.num_heads, instance.num_gpus)
    weights = shape.weight_bytes(dtype) / ranks
    working = _CONTEXT_BYTES + _activation_bytes(shape, dtype, ranks)
    free = instance.gpu_memory_gib * GIB * MEMORY_FRACTION - weights - working
    problem = _ranks_problem(shape, instance, ranks)
    return _judge(
        shape,
        free,
        dtype,
        wanted_tokens,
        problem=problem,
        instance_type=instance.name,
        gpus=f"{instance.num_gpus} x {instance.gpu}",
        num_ranks=ranks,
        weights_gib_per_gpu=weights / GIB,
        price_usd=instance.price_usd,
        price_confirmed=instance.price_confirmed,
    )


def _ranks_problem(shape: ModelShape, instance: Instance, ranks: int) -> str | None:
    if ranks > instance.num_gpus:
        return f"num_gpus = {ranks} exceeds its {instance.num_gpus} GPUs"
    if shape.num_heads % ranks:
        return f"num_gpus = {ranks} does not divide the model's {shape.num_heads} query heads"
    return None


def _activation_bytes(shape: ModelShape, dtype: str, ranks: int) -> float:
    """The largest step's intermediates and the float32 logits of every sequence with its sampling copies."""
    step = STEP_TOKENS * (3 * shape.intermediate_size / ranks + 6 * shape.hidden_size) * DTYPE_BYTES[dtype]
    return step + 2 * MAX_SEQUENCES * shape.vocab_size * 4


def _fit_other(
    shape: ModelShape, instance_type: str, asked: str | None, wanted_tokens: int | None
) -> Fit | None:
    """A CPU instance; None where its memory is not known."""
    memory_gib = cpu_memory_gib(instance_type)
    if gpu_family(instance_type) is not None or memory_gib is None:
        return None
    dtype = "float32" if asked in (None, "auto") else str(asked)
    weights = shape.weight_bytes(dtype)
    free = memory_gib * GIB * MEMORY_FRACTION - weights - _CONTEXT_BYTES
    return _judge(
        shape,
        free / 2,
        dtype,
        wanted_tokens,
        problem=None,
        instance_type=instance_type,
        gpus="no GPU",
        num_ranks=1,
        weights_gib_per_gpu=weights / GIB,
        price_usd=None,
        price_confirmed=False,
    )


def _judge(
    shape: ModelShape,
    free_bytes: float,
    dtype: str,
    wanted_tokens: int | None,
    *,
    problem: str | None,
    **facts: Any,
) -> Fit:
    ranks = facts["num_ranks"]
    per_token = shape.kv_bytes(1, dtype=dtype, num_ranks=ranks)
    kv_tokens = max(0, int(free_bytes // per_token))
    sequence = min(SEQUENCE_TOKENS, shape.max_positions)
    per_sequence = shape.kv_bytes(sequence, dtype=dtype, num_ranks=ranks)
    needed = wanted_tokens or min(MIN_TOKENS, shape.max_positions)
    if shape.problems:
        problem = "; ".join(shape.problems)
    elif problem is None and free_bytes <= 0:
        problem = (
            f"the weights take {facts['weights_gib_per_gpu']:.1f} GiB of each GPU or host's memory, which leaves nothing "
            "for the KV cache"
        )
    elif problem is None and wanted_tokens is not None and wanted_tokens > shape.max_positions:
        problem = f"max_total_tokens = {wanted_tokens} exceeds the model's context of {shape.max_positions}"
    elif problem is None and free_bytes < shape.kv_bytes(needed, dtype=dtype, num_ranks=ranks):
        problem = f"its KV cache holds {kv_tokens} tokens, fewer than the {needed} of one request"
    fitting = 0 if problem else kv_tokens
    return Fit(
        kv_tokens=kv_tokens,
        max_total_tokens=min(shape.max_positions, fitting),
        concurrent_4k=0 if problem else int(free_bytes // per_sequence),
        problem=problem,
        **facts,
    )


def _limited(seconds: float) -> int:
    return int(min(3600, max(60, -(-seconds // 60) * 60)))
