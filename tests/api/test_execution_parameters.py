"""`GET /execution-parameters`: SageMaker's names, the real limits, and never more than the platform takes."""

from __future__ import annotations

import pytest

from serving.config import LimitsConfig
from tests.api.conftest import FrontFactory

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("payload_limit_bytes", "max_concurrent_requests", "transforms", "payload_mb"),
    [
        (32 * MIB, 128, 16, 6),
        (1024 * MIB, 128, 16, 6),
        (32 * MIB, 4, 4, 6),
        (2 * MIB, 128, 50, 2),
        (4 * MIB - 1, 128, 33, 3),
        (100_000, 512, 100, 1),
    ],
)
def test_they_follow_the_limits(
    new_front: FrontFactory,
    payload_limit_bytes: int,
    max_concurrent_requests: int,
    transforms: int,
    payload_mb: int,
) -> None:
    limits = LimitsConfig(
        payload_limit_bytes=payload_limit_bytes, max_concurrent_requests=max_concurrent_requests
    )
    response = new_front(limits=limits).client.get("/execution-parameters")
    assert (response.status_code, response.content_type) == (200, "application/json")
    assert response.json == {
        "MaxConcurrentTransforms": transforms,
        "BatchStrategy": "MULTI_RECORD",
        "MaxPayloadInMB": payload_mb,
    }
    assert transforms * payload_mb <= 100
