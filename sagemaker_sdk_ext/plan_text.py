"""A plan as text, and the command line that prints one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sagemaker_sdk_ext.errors import ConfigurationError
from sagemaker_sdk_ext.instances import GIB, PRICE_DATE, PRICE_REGION, PRICE_SOURCE
from sagemaker_sdk_ext.planner import plan

if TYPE_CHECKING:
    from sagemaker_sdk_ext.planner import Fit, Plan

_COLUMNS = (
    "instance type",
    "GPUs",
    "TP",
    "weights/GPU",
    "KV tokens",
    "longest request",
    "4k sequences",
    "USD/h",
)


def plan_text(found: Plan, instance_type: str | None = None) -> str:
    """What the model needs, the instance types it fits on by price, and for `instance_type` the details."""
    shape = found.shape
    lines = [
        f"{found.model}: {shape.architecture}, {_count(shape.num_parameters)} parameters",
        f"weights {_size(found.weight_bytes)} in {found.dtype}, KV cache {found.kv_bytes_per_token / 1024:.0f} KiB "
        f"per token, context {shape.max_positions} tokens",
        *(f"not runnable: {problem}" for problem in shape.problems),
        *(f"estimated: {doubt}" for doubt in shape.doubts),
    ]
    windows = [window for window in shape.layer_windows if window is not None]
    if windows:
        lines.append(f"{len(windows)} of {shape.num_layers} layers see the last {windows[0]} tokens only")
    fitting = [fit for fit in found.fits if fit.fits]
    if fitting:
        lines += ["", *_table(fitting)]
    chosen = found.fit_for(instance_type) if instance_type else found.best
    if chosen is not None:
        lines += ["", *_advice(found, chosen)]
    elif not fitting:
        lines.append("fits on none of the instance types of the table")
    lines += ["", f"prices: {PRICE_REGION}, {PRICE_DATE}, {PRICE_SOURCE}"]
    lines.append("inf and trn instance types are left out: the image has no kernels for their chips")
    return "\n".join(lines)


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"


def _size(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:.1f} MiB"


def price_text(fit: Fit) -> str:
    if fit.price_usd is None:
        return "?"
    return f"{'' if fit.price_confirmed else '~'}{fit.price_usd:.2f}"


def _table(fits: Sequence[Fit]) -> list[str]:
    rows = [_COLUMNS, *(_row(fit) for fit in fits)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return [
        "  ".join(
            text.ljust(width) if column < 2 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _row(fit: Fit) -> tuple[str, ...]:
    return (
        fit.instance_type,
        fit.gpus,
        str(fit.num_ranks),
        _size(fit.weights_gib_per_gpu * GIB),
        str(fit.kv_tokens),
        str(fit.max_total_tokens),
        str(fit.concurrent_4k),
        price_text(fit),
    )


def _advice(found: Plan, fit: Fit) -> list[str]:
    if not fit.fits:
        return [f"{fit.instance_type} does not fit: {fit.problem}"]
    environment = found.environment(fit.instance_type)
    listed = (
        " ".join(f"{name}={value}" for name, value in environment.items()) or "none needed, the defaults do"
    )
    return [
        f"{fit.instance_type}: environment: {listed}",
        f"ContainerStartupHealthCheckTimeoutInSeconds {found.startup_timeout_s}, "
        f"ModelDataDownloadTimeoutInSeconds {found.download_timeout_s} (from S3)",
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """`textgen-endpoint plan`: 0 when the model fits (on `--instance-type`, or on any), 1 when not, 2 for wrong use."""
    parser = argparse.ArgumentParser(
        prog="textgen-endpoint plan", description="What a model needs and which instance types it fits on."
    )
    parser.add_argument("model", help="folder with config.json, s3:// prefix, or Hub id")
    parser.add_argument("--instance-type", help="judge this one, such as ml.g6.12xlarge")
    parser.add_argument("--max-total-tokens", type=int, help="longest prompt + answer that must fit")
    parser.add_argument(
        "--num-gpus", type=int, help="tensor-parallel GPUs; absent: all that divide the heads"
    )
    parser.add_argument("--dtype", help="auto, bfloat16, float16 or float32")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub model")
    given = parser.parse_args(argv)
    try:
        found = plan(
            given.model,
            given.instance_type,
            max_total_tokens=given.max_total_tokens,
            num_gpus=given.num_gpus,
            dtype=given.dtype,
            revision=given.revision,
        )
    except ConfigurationError as error:
        print(f"textgen-endpoint plan: {error}", file=sys.stderr)
        return 2
    print(plan_text(found, given.instance_type))
    fit = found.fit_for(given.instance_type) if given.instance_type else found.best
    return 0 if fit is not None and fit.fits else 1
