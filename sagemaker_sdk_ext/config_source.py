"""Where a model's config.json comes from: a mapping, a folder, S3 or the Hub. Knows nothing of its content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagemaker_sdk_ext.async_generation import split_s3_uri
from sagemaker_sdk_ext.errors import ConfigurationError

CONFIG = "config.json"


class ConfigUnreachable(ConfigurationError):
    """There is no config.json to be had there; the model itself may be fine."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """`checkpoint_bytes` is the size of the weight files where they could be listed."""

    name: str
    config: Mapping[str, Any]
    checkpoint_bytes: int | None = None


def read_source(
    model: str | Path | Mapping[str, Any],
    *,
    revision: str | None = None,
    token: str | None = None,
    boto_session: Any = None,
) -> ModelSource:
    """Raises `ConfigUnreachable` when config.json cannot be read from there."""
    if isinstance(model, Mapping):
        return ModelSource(str(model.get("_name_or_path") or "config"), model)
    text = str(model).removeprefix("file://")
    if text.startswith("s3://"):
        return _from_s3(text, boto_session)
    path = Path(text)
    if path.is_file() or path.is_dir() or isinstance(model, Path) or text.startswith(("/", ".")):
        return _from_folder(path)
    return _from_hub(text, revision, token)


def _from_folder(path: Path) -> ModelSource:
    file = path if path.is_file() else path / CONFIG
    if not file.is_file():
        raise ConfigUnreachable(f"{file} is missing; give a model folder in the Hugging Face layout")
    weights = [each.stat().st_size for each in file.parent.glob("*.safetensors")]
    return ModelSource(str(path), _parse(file.read_bytes(), str(file)), sum(weights) or None)


def _from_s3(uri: str, boto_session: Any) -> ModelSource:
    if uri.endswith(".tar.gz"):
        raise ConfigUnreachable(
            f"{uri} is an archive, whose config.json cannot be read without downloading it; plan with the unpacked folder"
        )
    try:
        import boto3
    except ImportError as error:
        raise ConfigUnreachable(f"boto3 is needed to read {uri}: pip install boto3") from error
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, prefix = split_s3_uri(uri.removesuffix(CONFIG))
    prefix = prefix.rstrip("/") + "/" if prefix else ""
    try:
        client = (boto_session or boto3.session.Session()).client("s3")
        data = client.get_object(Bucket=bucket, Key=prefix + CONFIG)["Body"].read()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
        found = [item for page in pages for item in page.get("Contents", ())]
    except (BotoCoreError, ClientError) as error:
        raise ConfigUnreachable(f"{uri}: config.json cannot be read: {error}") from error
    weights = sum(item["Size"] for item in found if item["Key"].endswith(".safetensors"))
    return ModelSource(uri, _parse(data, uri), weights or None)


def _from_hub(model_id: str, revision: str | None, token: str | None) -> ModelSource:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise ConfigUnreachable(
            f"{model_id}: huggingface_hub is needed to read the Hub: pip install huggingface_hub"
        ) from error
    try:
        file = hf_hub_download(model_id, CONFIG, revision=revision, token=token, etag_timeout=5)
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigUnreachable(
            f"{model_id}: config.json is not to be had from the Hub: {first_line}"
        ) from error
    return ModelSource(model_id, _parse(Path(file).read_bytes(), model_id))


def _parse(data: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise ConfigurationError(f"{where}: config.json is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigurationError(f"{where}: config.json is no JSON object")
    return value
