"""Plain boto3: every request goes to the `sagemaker` client."""

from __future__ import annotations

import re
from typing import Any

from sagemaker_sdk_ext.backends import Line, Request
from sagemaker_sdk_ext.errors import ConfigurationError


class PlainBackend:
    """`session` is a boto3 session, or a `sagemaker.Session` whose clients are used; None: boto3's default."""

    line: Line = "boto3"

    def __init__(self, session: Any = None) -> None:
        self._boto = boto_session(session)
        own = getattr(session, "sagemaker_client", None)
        self._client = own if own is not None else self._boto.client("sagemaker")

    @property
    def region(self) -> str | None:
        meta = getattr(self._client, "meta", None)
        region = getattr(meta, "region_name", None) or self._boto.region_name
        return str(region) if region else None

    def role_arn(self, role: str) -> str:
        return role_arn(self._boto, role)

    def create(self, operation: str, request: Request) -> None:
        getattr(self._client, method_name(operation))(**request)

    delete = create

    def endpoint_status(self, name: str) -> tuple[str, str]:
        found = self._client.describe_endpoint(EndpointName=name)
        return found["EndpointStatus"], found.get("FailureReason", "")

    def component_status(self, name: str) -> tuple[str, str]:
        found = self._client.describe_inference_component(InferenceComponentName=name)
        return found["InferenceComponentStatus"], found.get("FailureReason", "")

    def service(self, name: str) -> Any:
        return self._boto.client(name, region_name=self.region)


def boto_session(session: Any) -> Any:
    """The boto3 session of an SDK's session, or the one that was given, or a new one."""
    if session is not None:
        return getattr(session, "boto_session", None) or session
    try:
        import boto3
    except ImportError as error:
        raise ConfigurationError("boto3 is needed to deploy: pip install boto3") from error
    return boto3.session.Session()


def role_arn(boto: Any, role: str) -> str:
    """The ARN of a role that is given by its ARN or by its name."""
    return role if "/" in role else str(boto.client("iam").get_role(RoleName=role)["Role"]["Arn"])


def method_name(operation: str) -> str:
    """boto3's method of an operation: CreateEndpointConfig -> create_endpoint_config."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", operation).lower()
