"""S3 as model data and object storage need it: the one place that makes a boto3 client, lists, downloads, reads and writes.

Calls block; callers use threads. Knows neither endpoints nor archives.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from local_mode.contracts import ContainerFailed

MAX_OBJECTS = 10_000
MAX_NAME_BYTES = 255


@dataclass(frozen=True, slots=True)
class S3Object:
    key: str
    name: str
    """Path below the prefix."""
    size_bytes: int


class S3:
    """`endpoint_url` None is AWS itself. Credentials: those given, else what boto3 finds for this user."""

    def __init__(
        self,
        *,
        region: str,
        endpoint_url: str | None = None,
        credentials: tuple[str, str, str | None] | None = None,
    ) -> None:
        self._region = region
        self._endpoint_url = endpoint_url
        self._credentials = credentials or (None, None, None)
        self._client: Any = None
        self._making = threading.Lock()

    def client(self) -> Any:
        """Made when it is first needed; boto3's clients may be used from several threads."""
        with self._making:
            if self._client is None:
                self._client = self._make()
            return self._client

    def close(self) -> None:
        """Its connections; the next call opens others."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _make(self) -> Any:
        # boto3 takes a third of a second to import, which an emulator without S3 should not pay
        import boto3
        from botocore.config import Config

        key_id, secret, token = self._credentials
        return boto3.session.Session().client(
            "s3",
            region_name=self._region,
            endpoint_url=self._endpoint_url,
            aws_access_key_id=key_id,
            aws_secret_access_key=secret,
            aws_session_token=token,
            config=Config(
                retries={"mode": "standard", "max_attempts": 3},
                connect_timeout=5,
                read_timeout=30,
                s3={"addressing_style": "path"} if self._endpoint_url else {},
            ),
        )

    def list(self, uri: str) -> list[S3Object]:
        """The objects under a prefix that ends in `/`, under the names of spec section 1.4. Raises `ContainerFailed`."""
        bucket, prefix = split(uri)
        objects: list[S3Object] = []
        with explained(uri):
            pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            for entry in (entry for page in pages for entry in page.get("Contents", ())):
                name = entry["Key"].removeprefix(prefix)
                objects.append(S3Object(entry["Key"], name, int(entry["Size"])))
                if len(objects) > MAX_OBJECTS:
                    raise ContainerFailed(f"{uri} has over {MAX_OBJECTS} objects; give a model's own prefix")
        _require_names(objects, uri)
        return objects

    def head(self, uri: str) -> S3Object:
        """Raises `ContainerFailed` when there is no such object."""
        bucket, key = split(uri)
        with explained(uri):
            facts = self.client().head_object(Bucket=bucket, Key=key)
        return S3Object(key, key.rsplit("/", 1)[-1], int(facts["ContentLength"]))

    def download(self, uri: str, item: S3Object, target: Path, *, arrived: Callable[[int], None]) -> None:
        """`arrived` gets the bytes of each piece, from other threads too; what it raises ends the download."""
        from boto3.s3.transfer import TransferConfig

        bucket, _ = split(uri)
        with explained(f"s3://{bucket}/{item.key}"):
            self.client().download_file(
                bucket,
                item.key,
                str(target),
                Callback=arrived,
                Config=TransferConfig(max_concurrency=4),
            )
        if target.stat().st_size != item.size_bytes:
            raise ContainerFailed(f"s3://{bucket}/{item.key} changed while it was downloaded; start again")

    def read(self, uri: str, *, limit_bytes: int) -> tuple[bytes, str | None]:
        bucket, key = split(uri)
        with explained(uri):
            answer = self.client().get_object(Bucket=bucket, Key=key)
            with contextlib.closing(answer["Body"]) as body:
                if answer["ContentLength"] > limit_bytes:
                    raise ContainerFailed(
                        f"{uri} has {answer['ContentLength']} bytes, the limit is {limit_bytes}"
                    )
                return body.read(), answer.get("ContentType")

    def write(self, uri: str, content: bytes, *, content_type: str | None) -> None:
        bucket, key = split(uri)
        kind = {"ContentType": content_type} if content_type else {}
        with explained(uri):
            self.client().put_object(Bucket=bucket, Key=key, Body=content, **kind)


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of s3://bucket/key. Raises `ContainerFailed`."""
    try:
        parts = urlsplit(uri)
    except ValueError as error:  # brackets in the place of the bucket
        raise ContainerFailed(f"{uri} is no S3 location: {error}") from error
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise ContainerFailed(f"{uri} is no S3 location; give s3://bucket/key or s3://bucket/prefix/")
    return parts.netloc, parts.path.removeprefix("/")


def _require_names(objects: list[S3Object], uri: str) -> None:
    names = {item.name for item in objects}
    for item in objects:
        parts = item.name.split("/")
        if not item.name:
            raise ContainerFailed(f"{uri}: there is an object of the prefix's own name; remove it")
        if item.name.endswith("/"):
            raise ContainerFailed(f"{uri}: {item.name!r} is an object that stands for a folder; remove it")
        if "\0" in item.name or any(
            part in ("", ".", "..") or len(part.encode()) > MAX_NAME_BYTES for part in parts
        ):
            raise ContainerFailed(f"{uri}: {item.name!r} is no path for a file; rename it")
        for depth in range(1, len(parts)):
            if "/".join(parts[:depth]) in names:
                parent = "/".join(parts[:depth])
                raise ContainerFailed(f"{uri}: {parent!r} is both an object and a folder; rename one of them")


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turns what boto3 and the disk raise into `ContainerFailed`."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        reason = {
            "NoSuchBucket": "the bucket does not exist",
            "NoSuchKey": "there is no such object",
            "404": "there is no such object",
            "403": "access denied; the credentials need s3:GetObject and s3:ListBucket there",
            "AccessDenied": "access denied; the credentials need s3:GetObject and s3:ListBucket there",
        }.get(code, f"S3 answered {code}")
        raise ContainerFailed(f"{uri}: {reason}") from error
    except (BotoCoreError, Boto3Error) as error:
        text = " ".join(str(error).split())
        raise ContainerFailed(f"{uri}: {text}; check AWS_ENDPOINT_URL_S3 and the credentials") from error
    except OSError as error:
        raise ContainerFailed(f"{uri}: {error.strerror or error}") from error
