"""What the parts of the SageMaker emulator are to each other: roles and plain data, no behaviour.

`control` keeps resources and speaks the control plane's protocol, `hosting` runs containers for them, `runtime` carries
invocations to those containers. All of it runs on one asyncio loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Kind = Literal["model", "endpoint-config", "endpoint", "inference-component"]
Record = dict[str, Any]
"""A resource as its Describe operation shows it, in the service model's member names; times are epoch seconds.

An endpoint begins as Creating with `ProductionVariants` whose `CurrentInstanceCount` is 0; a component's image is
`Specification.Container.DeployedImage.SpecifiedImage`. What begins with an underscore is kept, and shown to nobody:
an endpoint's `_Deployed` holds its `config` and `models` as they were deployed, since AWS lets both be deleted then."""


class ServiceError(Exception):
    """An error that the caller of an AWS operation gets. `code` is the name of the service model's error shape."""

    def __init__(self, code: str, message: str, *, status: int = 400, **members: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.members = members
        """Further members of the error's shape, such as `OriginalStatusCode`."""


class ContainerFailed(Exception):
    """A container cannot be started. The message is fit for `FailureReason`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelData:
    """Where model files come from: `uri` is s3://… or file://…; a prefix is a folder, otherwise one archive."""

    uri: str
    is_prefix: bool
    is_compressed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """One container to run."""

    name: str
    """`<endpoint>/<variant>/<copy>`, or `<endpoint>/<component>/<copy>`: unique among running containers."""
    image: str
    environment: Mapping[str, str]
    hostname: str = "primary"
    """The container's name within its endpoint, as `TargetContainerHostname` and error messages give it."""
    model_data: ModelData | None = None
    additional_model_data: Mapping[str, ModelData] = field(default_factory=dict)
    """By channel name."""
    network_isolation: bool = False
    num_accelerators: int | None = None


class Container(Protocol):
    """A started container. It may not be ready yet: `/ping` says."""

    @property
    def base_url(self) -> str:
        """`http://127.0.0.1:<port>`"""
        ...

    @property
    def base_dir(self) -> str:
        """What the container sees as /opt/ml."""
        ...

    @property
    def ending(self) -> str | None:
        """How it ended, in words; None while it runs."""
        ...

    async def stop(self, *, grace_s: float = 30.0) -> None:
        """SIGTERM, SIGKILL after `grace_s`; returns when nothing of it runs. Harmless when it has ended."""
        ...


class Backend(Protocol):
    """Something that runs containers: child processes, or Docker."""

    async def start(
        self, spec: ContainerSpec, *, model_dir: Path, channels: Mapping[str, Path], log: Path
    ) -> Container:
        """Start it; its output is appended to `log`. Raises `ContainerFailed`."""
        ...


class Resources(Protocol):
    """The one store of resources; every change is on disk when the call returns."""

    def add(self, kind: Kind, name: str, record: Record) -> None:
        """Raises `ServiceError` (ValidationException) when the name is taken; names differ by more than case."""
        ...

    def get(self, kind: Kind, name: str) -> Record:
        """A copy. Raises `ServiceError` (ValidationException, *Could not find …*)."""
        ...

    def change(self, kind: Kind, name: str, **members: Any) -> Record:
        """Set members (None removes one) and LastModifiedTime; returns the new record."""
        ...

    def remove(self, kind: Kind, name: str) -> None: ...

    def all(self, kind: Kind) -> list[Record]: ...


class Hosting(Protocol):
    """Makes running containers follow the resources. Calls return at once; progress is written to the resources."""

    async def start(self) -> None:
        """Bring back what the resources say was running (after a restart of the emulator)."""
        ...

    async def stop(self) -> None:
        """Stop every container; resources keep their state."""
        ...

    def endpoint_created(self, name: str) -> None: ...

    def endpoint_updated(self, name: str, *, config_name: str) -> None:
        """The endpoint, now Updating, shall move to another configuration, also named in its `PendingDeploymentSummary`
        (which ends with the move); the old containers serve until the new ones are in service."""
        ...

    def endpoint_deleted(self, name: str) -> None:
        """Stop its containers, then remove the resource."""
        ...

    def endpoint_rescaled(self, name: str) -> None:
        """DesiredWeight or DesiredInstanceCount of the record's ProductionVariants have changed, and it is Updating: make
        them current, then InService."""
        ...

    def component_created(self, name: str) -> None: ...

    def component_updated(self, name: str) -> None: ...

    def component_deleted(self, name: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where one invocation goes."""

    base_url: str
    variant: str
    hostname: str
    log_stream_arn: str
    adapter: str | None = None
    """Set when the component is an adapter: the value of X-Amzn-SageMaker-Adapter-Identifier for its container."""


class Routing(Protocol):
    """Finds the container for an invocation."""

    def target(
        self,
        endpoint: str,
        *,
        variant: str | None = None,
        component: str | None = None,
        hostname: str | None = None,
        session_id: str | None = None,
    ) -> Target:
        """Raises `ServiceError` (ValidationError) for an endpoint, variant, component or container that is unknown, missing
        or not in service, with AWS's texts. A known session goes where it was opened. Each target is `finished` once."""
        ...

    def finished(self, target: Target) -> None:
        """The invocation is over, however it went: LEAST_OUTSTANDING_REQUESTS counts it no longer."""
        ...

    def opened_session(self, session_id: str, target: Target) -> None: ...

    def closed_session(self, session_id: str) -> None: ...


class ObjectStorage(Protocol):
    """Files by URI: s3:// through boto3 where AWS_ENDPOINT_URL_S3 (or AWS) answers, file:// on this disk."""

    async def read(self, uri: str, *, limit_bytes: int) -> tuple[bytes, str | None]:
        """Content and content type. Raises `ServiceError` (ValidationError): no such object, over the limit, no answer."""
        ...

    async def write(self, uri: str, content: bytes, *, content_type: str | None = None) -> None:
        """Raises `ServiceError` (ValidationError) when it cannot be stored."""
        ...
