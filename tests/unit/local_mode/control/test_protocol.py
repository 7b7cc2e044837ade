"""Requests and errors as AWS words them, whatever the operation."""

from __future__ import annotations

import pytest

from local_mode.control.protocol import BotocoreTooOld, ControlPlane
from tests.unit.local_mode.control.conftest import IMAGE, Caller, Refused

PATTERN = "[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}"


def refusal(caller: Caller, operation: str, **members: object) -> Refused:
    with pytest.raises(Refused) as caught:
        caller(operation, **members)
    assert caught.value.status == 400
    return caught.value


def test_a_name_of_wrong_letters(caller: Caller) -> None:
    error = refusal(caller, "CreateEndpoint", EndpointName="my_endpoint", EndpointConfigName="c")
    assert error.code == "ValidationException"
    assert error.message == (
        "1 validation error detected: Value 'my_endpoint' at 'endpointName' failed to satisfy constraint: "
        f"Member must satisfy regular expression pattern: {PATTERN}"
    )


def test_all_faults_are_told_at_once(caller: Caller) -> None:
    error = refusal(caller, "CreateEndpoint", EndpointName="e" * 64)
    assert error.message == (
        "2 validation errors detected: Value null at 'endpointConfigName' failed to satisfy constraint: Member must not "
        f"be null; Value '{'e' * 64}' at 'endpointName' failed to satisfy constraint: Member must have length less than "
        "or equal to 63"
    )


@pytest.mark.parametrize(
    ("variant", "told"),
    [
        (
            {"InitialInstanceCount": 0},
            "Value '0' at 'productionVariants.1.member.initialInstanceCount' failed to satisfy constraint: Member must "
            "have value greater than or equal to 1",
        ),
        (
            {"ContainerStartupHealthCheckTimeoutInSeconds": 3601},
            "Value '3601' at 'productionVariants.1.member.containerStartupHealthCheckTimeoutInSeconds' failed to satisfy "
            "constraint: Member must have value less than or equal to 3600",
        ),
        (
            {"RoutingConfig": {"RoutingStrategy": "FASTEST"}},
            "Value 'FASTEST' at 'productionVariants.1.member.routingConfig.routingStrategy' failed to satisfy constraint: "
            "Member must satisfy enum value set: [LEAST_OUTSTANDING_REQUESTS, RANDOM",
        ),
        ({"InstanceTyp": "ml.g5.xlarge"}, "Value at 'productionVariants.1.member.instanceTyp'"),
    ],
)
def test_faults_inside_name_their_place(caller: Caller, variant: dict[str, object], told: str) -> None:
    variants = [{"VariantName": "v", "InstanceType": "ml.g5.xlarge"} | variant]
    error = refusal(caller, "CreateEndpointConfig", EndpointConfigName="c", ProductionVariants=variants)
    assert error.code == "ValidationException"
    assert told in error.message


def test_map_values_are_held_to_their_shape(caller: Caller) -> None:
    container = {"Image": IMAGE, "Environment": {"1BAD": "x", "HF_TOKEN": "canary", "GOOD": "x" * 100_000}}
    error = refusal(caller, "CreateModel", ModelName="m", PrimaryContainer=container)
    assert (
        "at 'primaryContainer.environment' failed to satisfy constraint: Map keys must satisfy"
        in error.message
    )
    assert "{1BAD, HF_TOKEN, GOOD}" in error.message
    assert "canary" not in error.message and len(error.message) < 2000


@pytest.mark.parametrize(("value", "kind"), [(True, "bool"), ("1", "str"), ([1], "list")])
def test_a_wrong_type_cannot_be_read(caller: Caller, value: object, kind: str) -> None:
    error = refusal(caller, "ListEndpoints", MaxResults=value)
    assert (error.code, error.message) == (
        "SerializationException",
        f"'maxResults' must be a integer, not {kind}",
    )


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_object(caller: Caller, body: bytes) -> None:
    with pytest.raises(Refused) as caught:
        caller.raw("SageMaker.ListEndpoints", body)
    assert caught.value.code == "SerializationException"


def test_null_is_as_if_not_there(caller: Caller) -> None:
    assert caller("ListEndpoints", NameContains=None) == {"Endpoints": []}
    error = refusal(caller, "DescribeModel", ModelName=None)
    assert "Value null at 'modelName'" in error.message


def test_a_file_address_stands_for_s3(caller: Caller) -> None:
    caller(
        "CreateModel",
        ModelName="a",
        PrimaryContainer={"Image": IMAGE, "ModelDataUrl": "file:///tmp/model.tar.gz"},
    )
    error = refusal(
        caller, "CreateModel", ModelName="b", PrimaryContainer={"Image": IMAGE, "ModelDataUrl": "/tmp/m"}
    )
    assert "must satisfy regular expression pattern: (https|s3)://" in error.message


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (
            "SageMaker.CreateTransformJob",
            "CreateTransformJob is not emulated. Emulated here: AddTags, CreateEndpoint,",
        ),
        ("SageMaker.CreateEverything", "CreateEverything is not an operation of SageMaker"),
        ("DynamoDB_20120810.ListTables", "'DynamoDB_20120810.ListTables' is not an operation of SageMaker"),
        ("", "is not an operation of SageMaker"),
    ],
)
def test_what_is_not_here_is_said(caller: Caller, target: str, told: str) -> None:
    with pytest.raises(Refused) as caught:
        caller.raw(target, b"{}")
    assert caught.value.code == "UnknownOperationException"
    assert told in caught.value.message


def test_operations_that_the_service_model_lacks_are_told_before_any_call() -> None:
    with pytest.raises(BotocoreTooOld, match="does not know CreateFuture: pip install -U boto3"):
        ControlPlane({"CreateFuture": dict, "CreateModel": dict})
