"""Devices: what the machine offers, in one vocabulary. Nothing outside this package asks whether there is CUDA."""

from __future__ import annotations

from serving.platform.device import Device, get_device, gpu_driver, visible_gpus

__all__ = ["Device", "get_device", "gpu_driver", "visible_gpus"]
