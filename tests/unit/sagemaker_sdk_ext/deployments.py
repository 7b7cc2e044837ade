"""Deployments to test with, and a `sagemaker` client that takes every request."""

from __future__ import annotations

from typing import Any

import boto3

from sagemaker_sdk_ext import Autoscaling, ComponentResources, Deployment, TextGenModel

ROLE = "arn:aws:iam::123456789012:role/hosting"
IMAGE = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/textgen-endpoint:1"


def boto_session() -> Any:
    return boto3.session.Session(
        aws_access_key_id="test", aws_secret_access_key="test", region_name="eu-west-1"
    )


def deployment(**changes: Any) -> Deployment:
    settings: dict[str, Any] = {
        "model_name": "m",
        "endpoint_name": "e",
        "image_uri": IMAGE,
        "environment": {"HF_MODEL_ID": "demo"},
        "role_arn": ROLE,
        "instance_type": "ml.g6.2xlarge",
    }
    return Deployment(**{**settings, **changes})


DEPLOYMENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cpu": {"instance_type": "ml.c6i.2xlarge", "volume_size_gb": 40, "kms_key": "k"},
    "archive": {"model_data": "s3://b/model.tar.gz", "enable_network_isolation": True},
    "prefix": {
        "model_data": "s3://b/prefix",
        "vpc_config": {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]},
        "tags": [{"Key": "team", "Value": "x"}],
        "routing": {"RoutingStrategy": "PREFIX_AWARE", "PrefixAwareRoutingConfig": {"PrefixLength": 2048}},
        "autoscaling": Autoscaling(max_copies=4),
    },
    "async": {
        "asynchronous": {"OutputConfig": {"S3OutputPath": "s3://b/out"}},
        "autoscaling": Autoscaling(max_copies=2),
        "scale_to_zero": True,
    },
    "component": {
        "component_name": "c",
        "resources": ComponentResources(num_accelerators=2, num_cpus=3, memory_mb=4096, copies=2),
        "autoscaling": Autoscaling(max_copies=3),
        "scale_to_zero": True,
        "startup_timeout_s": 900,
    },
}


class FakeClient:
    """A `sagemaker` client that keeps what it is asked and brings everything into service."""

    def __init__(self, status: str = "InService", failing: str = "") -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.status = status
        self.failing = failing

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "meta":
            raise AttributeError(name)

        def call(**request: Any) -> dict[str, Any]:
            self.sent.append((name, request))
            if name == self.failing:
                raise PermissionError(name)
            return {
                "EndpointStatus": self.status,
                "InferenceComponentStatus": self.status,
                "FailureReason": "no ping",
                "PolicyARN": "arn:policy",
            }

        return call

    @property
    def created(self) -> list[tuple[str, dict[str, Any]]]:
        return [(name, request) for name, request in self.sent if name.startswith("create_")]


class Sdk2Session:
    """The parts of `sagemaker.Session` that are used; SDK 2's `Predictor` is not needed for a class of one's own."""

    def __init__(self, client: FakeClient) -> None:
        self.sagemaker_client = client
        self.boto_session = boto_session()

    def expand_role(self, role: str) -> str:
        return role if "/" in role else f"arn:aws:iam::123456789012:role/{role}"


class PlainSession:
    def __init__(self, client: FakeClient) -> None:
        self.sagemaker_client = client
        self.boto_session = boto_session()


def model(session: Any, sdk: str, **changes: Any) -> TextGenModel:
    settings: dict[str, Any] = {
        "role": ROLE,
        "image_uri": IMAGE,
        "env": {"HF_MODEL_ID": "demo", "MyOwn_Key": "x"},
        "name": "m",
        "predictor_cls": lambda *args, **kwargs: (args, kwargs),
    }
    return TextGenModel(sagemaker_session=session, sdk=sdk, **{**settings, **changes})
