"""Instance types for endpoints: GPUs, memory, and list prices. A dated table; knows no models."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sagemaker_sdk_ext.errors import ConfigurationError

PRICE_REGION = "us-east-1"
PRICE_DATE = "2025-11-30"
PRICE_SOURCE = (
    "approximate on-demand prices of SageMaker real-time inference, collected from published lists and not read from the "
    "AWS price API; ~ marks estimates that no published list confirmed; see https://aws.amazon.com/sagemaker/ai/pricing/"
)
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Instance:
    """`gpu_memory_gib` is what CUDA reports of one GPU, a little below its name; prices in USD per hour, None: unknown."""

    name: str
    gpu: str
    num_gpus: int
    gpu_memory_gib: float
    vcpus: int
    memory_gib: int
    price_usd: float | None
    price_confirmed: bool = True
    """False: an estimate, or from a list that may have changed."""

    @property
    def family(self) -> str:
        return self.name.split(".")[1]


_G5 = ("A10G", 22.0)
_G6 = ("L4", 22.0)
_G6E = ("L40S", 44.4)
_A100 = ("A100 40GB", 39.4)
_A100_80 = ("A100 80GB", 79.1)
_H100 = ("H100 80GB", 79.1)
_H200 = ("H200 141GB", 139.8)

INSTANCES: tuple[Instance, ...] = (
    Instance("ml.g5.xlarge", _G5[0], 1, _G5[1], 4, 16, 1.408),
    Instance("ml.g5.2xlarge", _G5[0], 1, _G5[1], 8, 32, 1.515),
    Instance("ml.g5.4xlarge", _G5[0], 1, _G5[1], 16, 64, 2.03),
    Instance("ml.g5.8xlarge", _G5[0], 1, _G5[1], 32, 128, 3.06),
    Instance("ml.g5.16xlarge", _G5[0], 1, _G5[1], 64, 256, 5.12),
    Instance("ml.g5.12xlarge", _G5[0], 4, _G5[1], 48, 192, 7.09),
    Instance("ml.g5.24xlarge", _G5[0], 4, _G5[1], 96, 384, 10.18),
    Instance("ml.g5.48xlarge", _G5[0], 8, _G5[1], 192, 768, 20.36),
    Instance("ml.g6.xlarge", _G6[0], 1, _G6[1], 4, 16, 1.127),
    Instance("ml.g6.2xlarge", _G6[0], 1, _G6[1], 8, 32, 1.222),
    Instance("ml.g6.4xlarge", _G6[0], 1, _G6[1], 16, 64, 1.654),
    Instance("ml.g6.8xlarge", _G6[0], 1, _G6[1], 32, 128, 2.518),
    Instance("ml.g6.16xlarge", _G6[0], 1, _G6[1], 64, 256, 4.246),
    Instance("ml.g6.12xlarge", _G6[0], 4, _G6[1], 48, 192, 5.752),
    Instance("ml.g6.24xlarge", _G6[0], 4, _G6[1], 96, 384, 8.344),
    Instance("ml.g6.48xlarge", _G6[0], 8, _G6[1], 192, 768, 16.688),
    Instance("ml.g6e.xlarge", _G6E[0], 1, _G6E[1], 4, 32, 2.326, False),
    Instance("ml.g6e.2xlarge", _G6E[0], 1, _G6E[1], 8, 64, 2.803, False),
    Instance("ml.g6e.4xlarge", _G6E[0], 1, _G6E[1], 16, 128, 3.755, False),
    Instance("ml.g6e.8xlarge", _G6E[0], 1, _G6E[1], 32, 256, 5.661, False),
    Instance("ml.g6e.16xlarge", _G6E[0], 1, _G6E[1], 64, 512, 9.472, False),
    Instance("ml.g6e.12xlarge", _G6E[0], 4, _G6E[1], 48, 384, 13.116, False),
    Instance("ml.g6e.24xlarge", _G6E[0], 4, _G6E[1], 96, 768, 18.832, False),
    Instance("ml.g6e.48xlarge", _G6E[0], 8, _G6E[1], 192, 1536, 37.664, False),
    Instance("ml.p4d.24xlarge", _A100[0], 8, _A100[1], 96, 1152, 25.252, False),
    Instance("ml.p4de.24xlarge", _A100_80[0], 8, _A100_80[1], 96, 1152, 31.564, False),
    Instance("ml.p5.4xlarge", _H100[0], 1, _H100[1], 16, 256, None),
    Instance("ml.p5.48xlarge", _H100[0], 8, _H100[1], 192, 2048, 63.296, False),
    Instance("ml.p5e.48xlarge", _H200[0], 8, _H200[1], 192, 2048, None),
    Instance("ml.p5en.48xlarge", _H200[0], 8, _H200[1], 192, 2048, 72.79, False),
)
_BY_NAME = {instance.name: instance for instance in INSTANCES}
_GPU_FAMILIES = frozenset({"g4dn", "g6f", "gr6", "p3", "p3dn", "p6-b200"} | {i.family for i in INSTANCES})
_LOCAL_STORAGE = frozenset(_GPU_FAMILIES - {"p3"})
_ACCELERATORS = {
    "inf1": "Inferentia",
    "inf2": "Inferentia2",
    "trn1": "Trainium",
    "trn1n": "Trainium",
    "trn2": "Trainium2",
}
_TOO_OLD = {"p2": "K80", "p3": "V100", "p3dn": "V100"}


def find_instance(name: str) -> Instance | None:
    """None for a type that the table does not have, such as one without a GPU."""
    return _BY_NAME.get(name)


def family(instance_type: str) -> str:
    return instance_type.split(".")[1] if instance_type.count(".") >= 2 else ""


def gpu_family(instance_type: str) -> str | None:
    """The family of an instance type with NVIDIA GPUs, None for others."""
    name = family(instance_type)
    return name if name in _GPU_FAMILIES else None


def has_local_storage(instance_type: str) -> bool:
    return family(instance_type) in _LOCAL_STORAGE


def cpu_memory_gib(instance_type: str) -> float | None:
    """Host memory of a CPU instance type of the c, m and r families, None for others: 2, 4 and 8 GiB per vCPU."""
    name, _, size = instance_type.removeprefix("ml.").partition(".")
    per_vcpu = {"c": 2, "m": 4, "r": 8}.get(name[:1])
    match = re.fullmatch(r"([0-9]*)xlarge|large", size)
    if per_vcpu is None or not name[1:2].isdigit() or match is None:
        return None
    vcpus = 2 if size == "large" else 4 * int(match[1] or 1)
    return float(per_vcpu * vcpus)


def is_local(instance_type: str) -> bool:
    """The SDKs' local mode."""
    return instance_type in ("local", "local_gpu")


def refuse_unusable(instance_type: str) -> None:
    """Raises `ConfigurationError` for accelerators that the image has no kernels for, and for what is no type."""
    if is_local(instance_type):
        return
    name = family(instance_type)
    if not instance_type.startswith("ml.") or not name:
        raise ConfigurationError(
            f"instance_type = {instance_type!r} is no instance type such as ml.g6.2xlarge"
        )
    if name in _ACCELERATORS:
        raise ConfigurationError(
            f"instance_type = {instance_type!r} has {_ACCELERATORS[name]} chips; the image runs on NVIDIA GPUs and on CPUs"
        )
    if name in _TOO_OLD:
        raise ConfigurationError(
            f"instance_type = {instance_type!r} has {_TOO_OLD[name]} GPUs, which CUDA 13 does not support; "
            "take g5, g6, g6e, p4d or p5"
        )
