"""Asynchronous calls: inline or through S3, and the answer or error from where the platform puts it."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from botocore.exceptions import ClientError

from sagemaker_sdk_ext import AsyncGenerationFailed, ConfigurationError, TextGenPredictor


class FakeS3:
    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], bytes] = {}

    def put_object(self, *, Bucket: str, Key: str, Body: bytes, ContentType: str) -> None:
        assert ContentType == "application/json"
        self.objects[Bucket, Key] = Body

    def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:
        if (Bucket, Key) not in self.objects:
            raise ClientError({"Error": {"Code": "NoSuchKey"}}, "GetObject")
        return {"Body": io.BytesIO(self.objects[Bucket, Key])}


class FakeRuntime:
    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def invoke_endpoint_async(self, **request: Any) -> dict[str, Any]:
        self.asked.append(request)
        return {
            "InferenceId": request["InferenceId"],
            "OutputLocation": "s3://out/1.out",
            "FailureLocation": "s3://failed/1-error.out",
        }


@pytest.fixture
def s3() -> FakeS3:
    return FakeS3()


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


def test_small_bodies_go_inline(s3: FakeS3, runtime: FakeRuntime) -> None:
    predictor = TextGenPredictor("ep", client=runtime)
    running = predictor.generate_async("x", s3_client=s3, timeout_s=1800, max_new_tokens=3)
    (asked,) = runtime.asked
    assert json.loads(asked["Body"])["parameters"]["max_new_tokens"] == 3
    assert asked["InvocationTimeoutSeconds"] == 1800 and "InputLocation" not in asked
    assert running.poll() is None
    s3.objects["out", "1.out"] = b'[{"generated_text": "done"}]'
    assert running.result(timeout_s=5).text == "done"


def test_large_bodies_need_s3(s3: FakeS3, runtime: FakeRuntime) -> None:
    predictor = TextGenPredictor("ep", client=runtime)
    with pytest.raises(ConfigurationError, match="upload_to="):
        predictor.generate_async("x" * 200_000, s3_client=s3)
    with pytest.raises(ConfigurationError, match="no S3 URI"):
        predictor.generate_async("x", s3_client=s3, upload_to="bucket/prefix")
    messages = [{"role": "user", "content": "y" * 200_000}]
    running = predictor.generate_async(messages, s3_client=s3, upload_to="s3://in/prefix/")
    (asked,) = runtime.asked
    assert asked["InputLocation"] == f"s3://in/prefix/{running.inference_id}.json"
    assert json.loads(s3.objects["in", f"prefix/{running.inference_id}.json"])["messages"] == messages


def test_failures_and_time_limits(s3: FakeS3, runtime: FakeRuntime) -> None:
    running = TextGenPredictor("ep", client=runtime).generate_async("x", s3_client=s3)
    with pytest.raises(TimeoutError, match="it may still come"):
        running.result(timeout_s=0.0)
    s3.objects["failed", "1-error.out"] = b'{"error": "too long"}'
    with pytest.raises(AsyncGenerationFailed, match="too long") as caught:
        running.result()
    assert caught.value.location == "s3://failed/1-error.out"


@pytest.mark.parametrize(
    "wanted", [{"component_name": "c"}, {"adapter": "a"}, {"adapter": "s3://b/a.tar.gz"}]
)
def test_what_asynchronous_calls_cannot_reach_is_not_replaced_by_the_base_model(
    s3: FakeS3, runtime: FakeRuntime, wanted: dict[str, str]
) -> None:
    predictor = TextGenPredictor("ep", client=runtime, **wanted)
    (name,) = wanted
    with pytest.raises(ConfigurationError, match=f"{name} = "):
        predictor.generate_async("x", s3_client=s3)
    assert runtime.asked == []


def test_results_are_read_with_the_credentials_of_the_session(s3: FakeS3, runtime: FakeRuntime) -> None:
    class Session:
        def client(self, service: str, *, region_name: str | None) -> FakeS3:
            assert service == "s3"
            return s3

    running = TextGenPredictor("ep", Session(), client=runtime).generate_async("x")
    s3.objects["out", "1.out"] = b'[{"generated_text": "done"}]'
    assert running.result(timeout_s=5).text == "done"
