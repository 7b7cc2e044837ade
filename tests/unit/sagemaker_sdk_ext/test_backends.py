"""The back ends send the same requests, each in its SDK's way."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from sagemaker_sdk_ext import ConfigurationError
from sagemaker_sdk_ext.backends import choose_line
from sagemaker_sdk_ext.backends.sdk3 import member_name, snake_case
from tests.unit.sagemaker_sdk_ext.deployments import (
    FakeClient,
    PlainSession,
    Sdk2Session,
    boto_session,
    model,
)


def _resources_module(client: FakeClient) -> types.ModuleType:
    """SDK 3's core resources as far as they matter: snake case in, the service's names out."""
    module = types.ModuleType("sagemaker.core.resources")
    spelled = {member_name(name): name for name in _member_names()}

    def pascal(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                spelled[key]: item if key == "environment" else pascal(item) for key, item in value.items()
            }
        return [pascal(item) for item in value] if isinstance(value, list) else value

    def resource(operation: str) -> type:
        def create(**values: Any) -> None:
            assert values.pop("session") is not None and values.pop("region") == "eu-west-1"
            getattr(client, f"create_{operation}")(**pascal(values))

        found = types.SimpleNamespace(
            endpoint_status="InService", inference_component_status="InService", failure_reason=object()
        )
        return type("Resource", (), {"create": staticmethod(create), "get": staticmethod(lambda **_: found)})

    for name, operation in {
        "Model": "model",
        "EndpointConfig": "endpoint_config",
        "Endpoint": "endpoint",
        "InferenceComponent": "inference_component",
    }.items():
        setattr(module, name, resource(operation))
    return module


def _member_names() -> set[str]:
    model = boto_session().client("sagemaker").meta.service_model
    names: set[str] = set()
    for operation in ("CreateModel", "CreateEndpointConfig", "CreateEndpoint", "CreateInferenceComponent"):
        pending = [model.operation_model(operation).input_shape]
        seen: set[str] = set()
        while pending:
            shape = pending.pop()
            if shape.name in seen:
                continue
            seen.add(shape.name)
            if shape.type_name == "structure":
                names |= set(shape.members)
                pending += shape.members.values()
            elif shape.type_name == "list":
                pending.append(shape.member)
    return names


@pytest.fixture
def sdk3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeClient]:
    client = FakeClient()
    monkeypatch.setitem(sys.modules, "sagemaker", types.ModuleType("sagemaker"))
    monkeypatch.setitem(sys.modules, "sagemaker.core", types.ModuleType("sagemaker.core"))
    monkeypatch.setitem(sys.modules, "sagemaker.core.resources", _resources_module(client))
    yield client


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"async_inference_config": "s3://b/out", "tags": {"a": "b"}},
        {
            "inference_component_name": "c",
            "resources": {"num_accelerators": 1, "num_cpus": 2, "memory_mb": 2048},
            "managed_instance_scaling": {
                "MaxInstanceCount": 2,
                "ScaleInPolicy": {"Strategy": "IDLE_RELEASE", "CooldownInMinutes": 5},
            },
            "data_capture_config": {
                "EnableCapture": True,
                "InitialSamplingPercentage": 5,
                "DestinationS3Uri": "s3://b/c",
                "CaptureOptions": [{"CaptureMode": "Input"}],
            },
        },
    ],
    ids=["plain", "async", "component"],
)
def test_all_back_ends_send_the_same_requests(sdk3: FakeClient, arguments: dict[str, Any]) -> None:
    plain, second = FakeClient(), FakeClient()
    common = {"instance_type": "ml.g6e.2xlarge", "endpoint_name": "e", **arguments}
    model(PlainSession(plain), "boto3").deploy(1, **common)
    model(boto_session(), "3").deploy(1, **common)
    with pytest.MonkeyPatch.context() as patch:
        fake = types.ModuleType("sagemaker")
        fake.Session = object  # type: ignore[attr-defined]
        patch.setitem(sys.modules, "sagemaker", fake)
        model(Sdk2Session(second), "2").deploy(1, **common)
    assert plain.created == second.created == sdk3.created
    assert [name for name, _ in plain.created][:3] == [
        "create_model",
        "create_endpoint_config",
        "create_endpoint",
    ]


def test_spelling_for_core_resources_is_reversible() -> None:
    names = _member_names()
    assert len({member_name(name) for name in names}) == len(names)
    assert member_name("S3DataSource") == "s3_data_source"
    assert member_name("VolumeSizeInGB") == "volume_size_in_gb"
    assert snake_case({"Environment": {"KeepMe": "1"}, "Tags": [{"Key": "a"}]}) == {
        "environment": {"KeepMe": "1"},
        "tags": [{"key": "a"}],
    }


def test_the_line_follows_argument_session_and_installation() -> None:
    assert choose_line("3", None) == "3"
    session_of_sdk2 = type("Session", (), {"__module__": "sagemaker.session"})()
    session_of_sdk3 = type("Session", (), {"__module__": "sagemaker.core.helper.session_helper"})()
    assert choose_line(None, session_of_sdk2) == "2"
    assert choose_line(None, session_of_sdk3) == "3"
    with pytest.raises(ConfigurationError, match="sdk = '4'"):
        choose_line("4", None)


def test_a_missing_sdk_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sagemaker", None)
    monkeypatch.setitem(sys.modules, "sagemaker.core", None)
    monkeypatch.setitem(sys.modules, "sagemaker.core.resources", None)
    for sdk, words in (("2", "sagemaker<3"), ("3", "sagemaker>=3")):
        with pytest.raises(ConfigurationError, match=words):
            model(None if sdk == "2" else boto_session(), sdk).deploy(1, "ml.g6.xlarge")
