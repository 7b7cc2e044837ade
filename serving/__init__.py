"""The engine and its front. `from serving import LLM, SamplingParams` is the library; torch loads with the first `LLM`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from serving.config import EngineConfig
from serving.sampling_params import SamplingParams

if TYPE_CHECKING:
    from serving.llm import LLM, RequestOutput

__all__ = ["LLM", "EngineConfig", "RequestOutput", "SamplingParams"]


def __getattr__(name: str) -> Any:
    if name in ("LLM", "RequestOutput"):
        from serving import llm

        return getattr(llm, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
