"""The three ways to send a deployment's requests: SDK 2, SDK 3, plain boto3. Each imports its SDK when it is made."""

from __future__ import annotations

from importlib import metadata
from typing import Any, Literal, Protocol

from sagemaker_sdk_ext.errors import ConfigurationError

Line = Literal["2", "3", "boto3"]
Request = dict[str, Any]


class Backend(Protocol):
    """Sends requests as they are, and reads how far SageMaker is."""

    line: Line

    @property
    def region(self) -> str | None: ...

    def role_arn(self, role: str) -> str:
        """The ARN of a role's name or ARN."""
        ...

    def create(self, operation: str, request: Request) -> None:
        """`operation` is CreateModel, CreateEndpointConfig, CreateEndpoint or CreateInferenceComponent."""
        ...

    def delete(self, operation: str, request: Request) -> None:
        """DeleteModel, DeleteEndpointConfig, DeleteEndpoint or DeleteInferenceComponent."""
        ...

    def endpoint_status(self, name: str) -> tuple[str, str]:
        """EndpointStatus and FailureReason."""
        ...

    def component_status(self, name: str) -> tuple[str, str]:
        """InferenceComponentStatus and FailureReason."""
        ...

    def service(self, name: str) -> Any:
        """A boto3 client of another service, with the same credentials and region."""
        ...


def choose_line(sdk: str | None, session: Any) -> Line:
    """What was asked for, else what the session belongs to, else the SDK that is installed, else boto3."""
    if sdk is not None:
        if sdk not in ("2", "3", "boto3"):
            raise ConfigurationError(f"sdk = {sdk!r} must be '2', '3' or 'boto3'")
        return "2" if sdk == "2" else "3" if sdk == "3" else "boto3"
    if session is not None:
        module = type(session).__module__
        if module.startswith("boto3."):
            return _installed_line()
        if module.startswith("sagemaker.core") or module.startswith("sagemaker_core"):
            return "3"
        if module.startswith("sagemaker."):
            return "2"
    return _installed_line()


def _installed_line() -> Line:
    try:
        major = metadata.version("sagemaker").partition(".")[0]
    except metadata.PackageNotFoundError:
        return "boto3"
    return "2" if major == "2" else "3" if major == "3" else "boto3"


def create_backend(line: Line, session: Any, instance_type: str) -> Backend:
    """Raises `ConfigurationError` when the SDK of `line` is not installed."""
    if line == "2":
        from sagemaker_sdk_ext.backends.sdk2 import Sdk2Backend

        return Sdk2Backend(session, instance_type)
    if line == "3":
        from sagemaker_sdk_ext.backends.sdk3 import Sdk3Backend

        return Sdk3Backend(session)
    from sagemaker_sdk_ext.backends.plain import PlainBackend

    return PlainBackend(session)
