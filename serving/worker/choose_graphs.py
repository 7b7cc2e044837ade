"""Whether decode steps are captured, and by what. The one place that decides it, with the reason for the log."""

from __future__ import annotations

import logging

from serving import logs
from serving.config import EngineConfig
from serving.contracts import GraphBackend
from serving.platform import Device

logger = logging.getLogger(__name__)


def choose_graphs(config: EngineConfig, device: Device) -> GraphBackend | None:
    """None: every step is launched kernel by kernel."""
    backend, reason = _choose(config, device)
    logs.event(
        logger,
        logging.INFO,
        "decode graphs",
        used=type(backend).__name__ if backend is not None else "none",
        reason=reason,
    )
    return backend


def _choose(config: EngineConfig, device: Device) -> tuple[GraphBackend | None, str]:
    if not config.decode_graphs:
        return None, "switched off"
    if device.is_host:
        return _choose_on_host(config)
    if config.deterministic:
        return None, "deterministic runs use fixed tiles in torch"
    if device.default_attention_backend == "sdpa":
        return None, "torch's own attention reads lengths on the host"
    from serving.platform.cuda_graphs import CudaGraphBackend

    return CudaGraphBackend(config.max_num_seqs), "one launch per decode step"


def _choose_on_host(config: EngineConfig) -> tuple[GraphBackend | None, str]:
    if config.num_ranks > 1:
        return None, "sums over ranks are no kernel calls"
    if config.dtype != "float32":
        return None, "only float32 has compiled kernels"
    from serving.kernels.cpu.native import library
    from serving.kernels.cpu.native.program import NativeGraphs

    loaded = library.load()
    if loaded is None:
        return None, "there are no compiled kernels here"
    return NativeGraphs(loaded), "the kernel calls of a decode step are written down once"
