"""Prometheus metrics: TGI's names and buckets, and ours. Knows nothing of HTTP; engine-owned numbers come in as
`EngineStats`, so that they are counted once however many front workers there are.
"""

from __future__ import annotations

from serving.metrics.exposition import CONTENT_TYPE
from serving.metrics.front import ServerMetrics
from serving.metrics.slots import FIRST_SLOT, claim_slot, is_shared

__all__ = ["CONTENT_TYPE", "FIRST_SLOT", "ServerMetrics", "claim_slot", "is_shared"]
