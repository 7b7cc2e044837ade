"""A control plane over a fresh store, with a hosting that only notes what it was asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_mode.contracts import Record
from local_mode.control.arns import Arns
from local_mode.control.operations import operations
from local_mode.control.protocol import ControlPlane
from local_mode.control.resources import SqliteResources

ROLE = "arn:aws:iam::123456789012:role/endpoint"
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/textgen-endpoint:cpu"


class NotedHosting:
    """The `Hosting` role; `calls` is what was asked, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []

    async def start(self) -> None:
        self.calls.append(("start",))

    async def stop(self) -> None:
        self.calls.append(("stop",))

    def endpoint_created(self, name: str) -> None:
        self.calls.append(("endpoint_created", name))

    def endpoint_updated(self, name: str, *, config_name: str) -> None:
        self.calls.append(("endpoint_updated", name, config_name))

    def endpoint_rescaled(self, name: str) -> None:
        self.calls.append(("endpoint_rescaled", name))

    def endpoint_deleted(self, name: str) -> None:
        self.calls.append(("endpoint_deleted", name))

    def component_created(self, name: str) -> None:
        self.calls.append(("component_created", name))

    def component_updated(self, name: str) -> None:
        self.calls.append(("component_updated", name))

    def component_deleted(self, name: str) -> None:
        self.calls.append(("component_deleted", name))


class Refused(Exception):
    """The error of a call, as the protocol gives it."""

    def __init__(self, status: int, body: Record) -> None:
        super().__init__(body["message"])
        self.status = status
        self.code: str = body["__type"]
        self.message: str = body["message"]


class Caller:
    """Calls operations through the protocol: `caller("CreateModel", ModelName="m")`."""

    def __init__(self, resources: SqliteResources, hosting: NotedHosting) -> None:
        self.resources = resources
        self.hosting = hosting
        self._control = ControlPlane(operations(resources, hosting))

    def __call__(self, operation: str, /, **members: object) -> Record:
        return self.raw(f"SageMaker.{operation}", json.dumps(members).encode())

    def raw(self, target: str, body: bytes) -> Record:
        reply = self._control.call(target, body)
        content: Record = json.loads(reply.body or b"{}")
        if reply.status != 200:
            raise Refused(reply.status, content)
        return content

    def model(self, name: str = "m", **members: object) -> Record:
        container = {"Image": IMAGE, "Environment": {"HF_MODEL_ID": "demo"}}
        return self("CreateModel", **({"ModelName": name, "PrimaryContainer": container} | members))

    def config(self, name: str = "c", *, model: str | None = "m", **members: object) -> Record:
        variant: Record = {
            "VariantName": "AllTraffic",
            "InstanceType": "ml.g5.xlarge",
            "InitialInstanceCount": 1,
        }
        if model is not None:
            variant["ModelName"] = model
        return self(
            "CreateEndpointConfig",
            **(
                {"EndpointConfigName": name, "ProductionVariants": [variant], "ExecutionRoleArn": ROLE}
                | members
            ),
        )

    def endpoint(self, name: str = "e", *, config: str = "c", status: str = "InService") -> Record:
        """Create it, and let hosting's part be done."""
        reply = self("CreateEndpoint", EndpointName=name, EndpointConfigName=config)
        self.resources.change("endpoint", name, EndpointStatus=status)
        return reply

    def component(self, name: str = "ic", *, status: str = "InService", **members: object) -> Record:
        wanted = {
            "InferenceComponentName": name,
            "EndpointName": "e",
            "VariantName": "AllTraffic",
            "Specification": {
                "ModelName": "m",
                "ComputeResourceRequirements": {"MinMemoryRequiredInMb": 1024},
            },
            "RuntimeConfig": {"CopyCount": 1},
        } | members
        given = {member: value for member, value in wanted.items() if value is not None}
        reply = self("CreateInferenceComponent", **given)
        self.resources.change("inference-component", name, InferenceComponentStatus=status)
        return reply


@pytest.fixture
def caller(tmp_path: Path) -> Iterator[Caller]:
    resources = SqliteResources(tmp_path, Arns("us-east-1"))
    yield Caller(resources, NotedHosting())
    resources.close()
