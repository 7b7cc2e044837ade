"""Devices: what the machine offers, in one vocabulary. Nothing outside asks whether there is CUDA."""

from __future__ import annotations

from serving.platform.device import Device, get_device, gpu_driver, num_cores, visible_gpus

__all__ = ["Device", "get_device", "gpu_driver", "num_cores", "visible_gpus"]
