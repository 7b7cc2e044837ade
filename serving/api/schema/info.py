"""Answers that describe the server: `/info`, `/execution-parameters` and an unhealthy `/health`. Knows nothing of HTTP."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """TGI's facts about the server and its model."""

    model_id: Annotated[str, Meta(description="Hub id, folder or name of the model")]
    model_sha: Annotated[str | None, Meta(description="commit of a Hub model")]
    model_pipeline_tag: Annotated[str | None, Meta(description="`text-generation`")]
    model_dtype: Annotated[str, Meta(description="compute type")]
    model_device_type: Annotated[str, Meta(description="`cpu` or `cuda`")]
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: Annotated[int, Meta(description="longest prompt")]
    max_total_tokens: Annotated[int, Meta(description="longest prompt and output together")]
    validation_workers: int
    max_client_batch_size: Annotated[int, Meta(description="prompts in one /v1/completions request")]
    router: str
    version: str
    sha: str | None
    docker_label: str | None


class ExecutionParameters(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    rename={
        "max_concurrent_transforms": "MaxConcurrentTransforms",
        "batch_strategy": "BatchStrategy",
        "max_payload_in_mb": "MaxPayloadInMB",
    },
):
    """What a batch transform job does unless its caller says otherwise; SageMaker's names."""

    max_concurrent_transforms: Annotated[int, Meta(description="requests at once")]
    batch_strategy: Annotated[
        Literal["MULTI_RECORD"], Meta(description="as many records in a request as fit, one per line")
    ]
    max_payload_in_mb: Annotated[int, Meta(description="largest request, MiB")]


class Unhealthy(msgspec.Struct, frozen=True, kw_only=True):
    """Why no requests can be served now."""

    error: str
    error_type: str
    stage: Annotated[str, Meta(description="where the start, or the stop, has got to")]
    detail: str
