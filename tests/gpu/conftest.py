"""A CUDA device for every test marked `gpu`, float32 without TF32, and no memory left from the test before."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

HERE = "tests/gpu/"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU machines bring their own versions of everything: only our own warnings are errors there."""
    for item in items:
        if HERE in item.path.as_posix() and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.filterwarnings("default"))
            item.add_marker(pytest.mark.filterwarnings("error:::(serving|container)"))


@pytest.fixture(autouse=True)
def cuda_device(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.node.get_closest_marker("gpu") is None:
        yield
        return
    if not torch.cuda.is_available():
        pytest.fail(f"no usable CUDA device (torch {torch.__version__}); these tests need one")
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    gc.collect()
    torch.cuda.empty_cache()
