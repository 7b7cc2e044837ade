"""`s3://bucket/prefix/` or `s3://bucket/…/model.tar.gz` -> a local folder. The only caller of boto3."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from container.archive import unpack
from container.folders import build_folder
from container.model_source import MODEL_FILE_PATTERNS, model_folder
from container.progress import Progress, Report, require_space
from serving.errors import ConfigError, ModelError

_MAX_OBJECTS = 10_000
_PAGE_SIZE = 1000
_MAX_NAME_BYTES = 255
_ATTEMPTS = 5
_ARCHIVE_SUFFIXES = (".tar.gz", ".tgz")


@dataclass(frozen=True, slots=True)
class _Object:
    key: str
    name: str
    """Path below the prefix."""
    size_bytes: int
    etag: str


def fetch_s3(uri: str, cache: Path, report: Report) -> Path:
    """Download what is under `uri`. Raises `ConfigError` for a bad URI, else `ModelError`."""
    parts = urlsplit(uri)
    bucket, prefix = parts.netloc, parts.path.lstrip("/")
    if not bucket or parts.query or parts.fragment:
        raise ConfigError(
            f"{uri} is no S3 location; allowed: s3://bucket/prefix/ or s3://bucket/…/model.tar.gz"
        )
    try:
        client = boto3.client(
            "s3",
            config=Config(
                retries={"mode": "standard", "max_attempts": _ATTEMPTS}, connect_timeout=10, read_timeout=60
            ),
        )
        return _fetch(client, uri, bucket, prefix, cache=cache, report=report)
    except (BotoCoreError, ClientError, Boto3Error) as error:
        raise ModelError(f"{uri}: {_explain(error)}") from error
    except OSError as error:
        raise ModelError(f"{uri} cannot be stored in {cache}: {error.strerror or error}") from error


def _fetch(client: Any, uri: str, bucket: str, prefix: str, *, cache: Path, report: Report) -> Path:
    is_archive = prefix.endswith(_ARCHIVE_SUFFIXES)
    if not is_archive and prefix and not prefix.endswith("/"):
        prefix += "/"
    wanted = (
        _archive_object(_list(client, bucket, prefix), prefix)
        if is_archive
        else _model_objects(_list(client, bucket, prefix), prefix, uri)
    )
    if not wanted:
        raise ModelError(
            f"{uri} holds no model files; give the prefix that holds config.json and *.safetensors"
        )
    folder = _download(client, bucket, wanted, cache / "s3", report=report, uri=uri)
    if is_archive:
        folder = unpack(folder / wanted[0].name, cache, report)
    found = model_folder(folder)
    if found is None:
        raise ModelError(
            f"{uri} holds no config.json; give the prefix (or archive) of a model in Hugging Face format"
        )
    return found


def _list(client: Any, bucket: str, prefix: str) -> Iterable[dict[str, Any]]:
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Prefix=prefix, PaginationConfig={"PageSize": _PAGE_SIZE}
    )
    for number, entry in enumerate(entry for page in pages for entry in page.get("Contents", ())):
        if number >= _MAX_OBJECTS:
            raise ModelError(
                f"s3://{bucket}/{prefix} has over {_MAX_OBJECTS} objects; give a model's own prefix"
            )
        yield entry


def _archive_object(listing: Iterable[dict[str, Any]], key: str) -> list[_Object]:
    name = key.rsplit("/", 1)[-1]
    return [_Object(key, name, entry["Size"], entry["ETag"]) for entry in listing if entry["Key"] == key]


def _model_objects(listing: Iterable[dict[str, Any]], prefix: str, uri: str) -> list[_Object]:
    """Objects that belong to a model, each under a safe relative name."""
    objects: dict[str, _Object] = {}
    for entry in listing:
        name = entry["Key"].removeprefix(prefix)
        if not name or name.endswith("/"):
            continue  # "folders" that consoles create
        _require_safe(name, uri)
        if any(fnmatch.fnmatch(name, pattern) for pattern in MODEL_FILE_PATTERNS):
            objects[name] = _Object(entry["Key"], name, entry["Size"], entry["ETag"])
    for name in objects:
        for parent in Path(name).parents:
            if str(parent) in objects:
                raise ModelError(f"{uri}: {str(parent)!r} is both an object and a folder; rename one of them")
    return list(objects.values())


def _require_safe(name: str, uri: str) -> None:
    parts = name.split("/")
    if "\0" in name or any(part in ("", ".", "..") or len(part.encode()) > _MAX_NAME_BYTES for part in parts):
        raise ModelError(f"{uri}: object name {name!r} is not a relative path; rename it")


def _download(
    client: Any, bucket: str, wanted: list[_Object], root: Path, *, report: Report, uri: str
) -> Path:
    """The folder with all of `wanted`, named by a digest of the listing: changed objects, new folder."""
    digest = hashlib.sha256(bucket.encode())
    for item in wanted:
        digest.update(f"\0{item.key}\0{item.size_bytes}\0{item.etag}".encode())

    def fill(folder: Path) -> None:
        total_bytes = sum(item.size_bytes for item in wanted)
        require_space(folder, total_bytes, what=uri)
        progress = Progress(report, total_bytes=total_bytes)
        for item in wanted:
            target = folder / item.name
            target.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(
                bucket,
                item.key,
                str(target),
                Callback=progress.add,
                Config=TransferConfig(max_concurrency=16),
            )
            if target.stat().st_size != item.size_bytes:
                raise ModelError(
                    f"s3://{bucket}/{item.key} arrived with the wrong size, not {item.size_bytes} bytes; "
                    "it changed during the download, start again"
                )

    return build_folder(root / digest.hexdigest()[:24], fill)


def _explain(error: Exception) -> str:
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code == "NoSuchBucket":
            return "the bucket does not exist; check its name and region"
        if status in (401, 403):
            return f"access denied ({code}); the execution role needs s3:ListBucket and s3:GetObject there"
        return f"S3 answered {status} {code}"
    text = " ".join(str(error).split())
    return (
        f"{text}; check the network (VPC endpoint for S3, network isolation), the region and the credentials"
    )
