"""SageMaker's Python SDK 3: every request goes through the core resources."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from sagemaker_sdk_ext.backends import Line, Request
from sagemaker_sdk_ext.backends.plain import boto_session, role_arn
from sagemaker_sdk_ext.errors import ConfigurationError

# Maps whose keys are the user's own.
_FREE_KEYS = frozenset({"Environment"})
_LOWER_TO_UPPER = re.compile(r"([a-z0-9])([A-Z])")
_WORD = re.compile(r"(.)([A-Z][a-z]+)")


class Sdk3Backend:
    """`session` is a boto3 session, or an SDK session that has one; None: the SDK's default."""

    line: Line = "3"

    def __init__(self, session: Any = None) -> None:
        self._boto = boto_session(session)
        self._resources = _resources()

    @property
    def region(self) -> str | None:
        region = self._boto.region_name
        return str(region) if region else None

    def role_arn(self, role: str) -> str:
        return role_arn(self._boto, role)

    def create(self, operation: str, request: Request) -> None:
        resource = getattr(self._resources, operation.removeprefix("Create"))
        resource.create(**snake_case(request), **self._where())

    def delete(self, operation: str, request: Request) -> None:
        self._get(operation.removeprefix("Delete"), **snake_case(request)).delete()

    def endpoint_status(self, name: str) -> tuple[str, str]:
        endpoint = self._get("Endpoint", endpoint_name=name)
        return endpoint.endpoint_status, _text(endpoint.failure_reason)

    def component_status(self, name: str) -> tuple[str, str]:
        component = self._get("InferenceComponent", inference_component_name=name)
        return component.inference_component_status, _text(component.failure_reason)

    def service(self, name: str) -> Any:
        return self._boto.client(name)

    def _get(self, resource: str, **names: Any) -> Any:
        return getattr(self._resources, resource).get(**names, **self._where())

    def _where(self) -> dict[str, Any]:
        return {"session": self._boto, "region": self.region}


def snake_case(value: Any) -> Any:
    """A request in the spelling of the core resources, which turn it back into the same request."""
    if isinstance(value, Mapping):
        return {
            member_name(key): dict(item) if key in _FREE_KEYS else snake_case(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [snake_case(item) for item in value]
    return value


def member_name(name: str) -> str:
    """S3DataSource -> s3_data_source, VolumeSizeInGB -> volume_size_in_gb: the SDK's own rule."""
    return _LOWER_TO_UPPER.sub(r"\1_\2", _WORD.sub(r"\1_\2", name)).lower()


def _text(value: Any) -> str:
    """A member that is absent is an object of its own in the SDK."""
    return value if isinstance(value, str) else ""


def _resources() -> Any:
    try:
        return import_module("sagemaker.core.resources")
    except ImportError as error:
        raise ConfigurationError("sdk = '3' needs the SDK: pip install 'sagemaker>=3'") from error
