"""Parameters of a host come from pages that the system zeroes when they are first written. Knows no layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from serving.platform.device import Device

_WORTH_PAGES_BYTES = 2**20


class LazyZeros(TorchFunctionMode):
    """Within it, `torch.zeros` of a large tensor on a host is `device.zeros`, which writes nothing.

    torch writes the zeros at once, and every byte of a checkpoint is then written a second time: for parameters of 2 GB
    that is seconds. What a checkpoint leaves out, padding, is still zero.
    """

    def __init__(self, device: Device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func is torch.zeros and self._device.torch_device.type == "cpu":
            dtype = given.get("dtype") or torch.get_default_dtype()
            shape = tuple(args[0]) if len(args) == 1 and not isinstance(args[0], int) else tuple(args)
            if torch.Size(shape).numel() * dtype.itemsize >= _WORTH_PAGES_BYTES:
                return self._device.zeros(shape, dtype)
        return func(*args, **given)
