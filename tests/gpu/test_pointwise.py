"""Norms, rotation, KV write and the gate on the GPU against their reference twins."""

from __future__ import annotations

import pytest

from tests.gpu.pointwise_cases import errors
from tests.gpu.rotation_cases import faults

pytestmark = pytest.mark.gpu


def test_pointwise_kernels() -> None:
    assert {name: error for name, error in errors("cuda").items() if not error < 1} == {}


def test_rotation_with_the_kv_write() -> None:
    assert faults("cuda").keys() == {"cases"}
