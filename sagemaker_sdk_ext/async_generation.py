"""Asynchronous inference: the body to S3 or inline, then the answer or the error from S3. Knows two boto3 clients."""

from __future__ import annotations

import time
import uuid
from typing import Any

from sagemaker_sdk_ext import bodies, invocation
from sagemaker_sdk_ext.bodies import Generated
from sagemaker_sdk_ext.errors import AsyncGenerationFailed, ConfigurationError
from sagemaker_sdk_ext.invocation import RetryPolicy

MAX_INLINE_BYTES = 128_000
_ABSENT = frozenset({"NoSuchKey", "404", "NotFound"})


class AsyncGeneration:
    """A running asynchronous call. Its answer will be at `output_location`, its error at `failure_location`."""

    def __init__(
        self, *, inference_id: str, output_location: str, failure_location: str | None, s3_client: Any
    ) -> None:
        self.inference_id = inference_id
        self.output_location = output_location
        self.failure_location = failure_location
        self._s3 = s3_client

    def poll(self) -> Generated | None:
        """The answer, None while there is none. Raises `AsyncGenerationFailed` when the call ended with an error."""
        data = self._read(self.output_location)
        if data is not None:
            return bodies.read_answer(data)
        failure = self._read(self.failure_location) if self.failure_location else None
        if failure is None:
            return None
        text = failure.decode("utf-8", "replace")
        raise AsyncGenerationFailed(
            f"the asynchronous call {self.inference_id} failed: {text[:500]}",
            location=str(self.failure_location),
            body=text,
        )

    def result(self, *, timeout_s: float = 900.0, interval_s: float = 2.0) -> Generated:
        """Wait for the answer. Raises `TimeoutError`, and `AsyncGenerationFailed` as `poll` does."""
        end = time.monotonic() + timeout_s
        while True:
            found = self.poll()
            if found is not None:
                return found
            left_s = end - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(
                    f"no answer at {self.output_location} within {timeout_s:g} s; it may still come: call result() again"
                )
            time.sleep(min(interval_s, left_s))

    def _read(self, uri: str) -> bytes | None:
        from botocore.exceptions import ClientError

        bucket, key = split_s3_uri(uri)
        try:
            data: bytes = self._s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in _ABSENT:
                return None
            raise
        return data


def start_async(
    client: Any,
    request: dict[str, Any],
    body: bytes,
    *,
    upload_to: str | None,
    s3_client: Any,
    boto_session: Any,
    retry: RetryPolicy,
) -> AsyncGeneration:
    """`request` has at least the endpoint's name. Without `s3_client` one is made from `boto_session` (None: boto3's)."""
    if s3_client is None:
        s3_client = _s3_client(client, boto_session)
    inference_id = str(uuid.uuid4())
    if upload_to is not None:
        bucket, prefix = split_s3_uri(upload_to)
        key = "/".join(part for part in (prefix.strip("/"), f"{inference_id}.json") if part)
        s3_client.put_object(Bucket=bucket, Key=key, Body=body, ContentType=bodies.JSON)
        place: dict[str, Any] = {"InputLocation": f"s3://{bucket}/{key}"}
    elif len(body) <= MAX_INLINE_BYTES:
        place = {"Body": body}
    else:
        raise ConfigurationError(
            f"the request has {len(body)} bytes, more than the {MAX_INLINE_BYTES} that go without S3; "
            f"give upload_to='s3://bucket/prefix'"
        )
    full = {
        **request,
        **place,
        "ContentType": bodies.JSON,
        "Accept": bodies.JSON,
        "InferenceId": inference_id,
    }
    response = invocation.call(client.invoke_endpoint_async, full, retry=retry)
    return AsyncGeneration(
        inference_id=response.get("InferenceId", inference_id),
        output_location=response["OutputLocation"],
        failure_location=response.get("FailureLocation"),
        s3_client=s3_client,
    )


def split_s3_uri(uri: str) -> tuple[str, str]:
    """Bucket and key. Raises `ConfigurationError` for what is no s3:// URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket:
        raise ConfigurationError(f"{uri!r} is no S3 URI such as s3://bucket/prefix")
    return bucket, key


def _s3_client(runtime_client: Any, boto_session: Any) -> Any:
    """With the credentials that the endpoint is called with, as far as they are known."""
    if boto_session is None:
        import boto3

        boto_session = boto3.session.Session()
    meta = getattr(runtime_client, "meta", None)
    return boto_session.client("s3", region_name=getattr(meta, "region_name", None))
