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
    if config.deterministic:
        return None, "deterministic runs use fixed tiles in torch"
    if device.is_host:
        return None, "not on this device"
    if device.default_attention_backend == "sdpa":
        return None, "torch's own attention reads lengths on the host"
    from serving.platform.cuda_graphs import CudaGraphBackend

    return CudaGraphBackend(config.max_num_seqs), "one launch per decode step"
