"""Files by URI, on disk and in S3 (moto's server)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from local_mode.contracts import ServiceError
from local_mode.hosting.object_storage import Storage
from local_mode.hosting.s3 import S3


@pytest.fixture(scope="module")
def storage() -> Iterator[Storage]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    with contextlib.closing(boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys)) as client:
        client.create_bucket(Bucket="files")
    s3 = S3(region="us-east-1", endpoint_url=url, credentials=("test", "test", None))
    yield Storage(s3)
    s3.close()
    server.stop()


@pytest.mark.parametrize("place", ["s3", "file"])
def test_what_is_written_is_read(storage: Storage, tmp_path: Path, place: str) -> None:
    root = "s3://files" if place == "s3" else f"file://{tmp_path}"
    uri = f"{root}/out/a b.json"

    async def story() -> tuple[bytes, str | None]:
        await storage.write(uri, b"{}", content_type="application/json")
        return await storage.read(uri, limit_bytes=2)

    assert asyncio.run(story()) == (b"{}", "application/json")
    with pytest.raises(ServiceError, match="has 2 bytes, the limit is 1") as refused:
        asyncio.run(storage.read(uri, limit_bytes=1))
    assert refused.value.code == "ValidationError"


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://files/none", "there is no such object"),
        ("s3://nobucket/none", "the bucket does not exist"),
        ("file:///no/such/file", "No such file"),
        ("ftp://x/y", "is no S3 location"),
        ("s3://[x/y", "is no S3 location"),
        ("file://[x/y", "is no location of a file"),
        ("file:///x%00y", "is no location of a file"),
    ],
)
def test_what_is_not_there_is_an_error_of_the_service(storage: Storage, uri: str, said: str) -> None:
    with pytest.raises(ServiceError, match=said):
        asyncio.run(storage.read(uri, limit_bytes=10))


def test_what_cannot_be_stored_is_an_error_of_the_service(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError):
        asyncio.run(storage.write(f"file://{tmp_path}/file/below", b"x"))
    with pytest.raises(ServiceError, match="the bucket does not exist"):
        asyncio.run(storage.write("s3://nobucket/x", b"x"))
