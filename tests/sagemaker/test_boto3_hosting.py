"""boto3 on the other kinds of hosting: asynchronous inference through S3, inference components, model data in S3."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError, WaiterError

from tests.sagemaker.conftest import (
    BUCKET,
    IMAGE,
    ROLE,
    Aws,
    Endpoint,
    create_endpoint,
    delete_endpoint,
    wait_in_service,
)

GREEDY = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 12}}
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def async_endpoint(aws: Aws) -> Iterator[Endpoint]:
    """Asynchronous, on an archive in S3."""
    output = {"S3OutputPath": f"s3://{BUCKET}/out", "S3FailurePath": f"s3://{BUCKET}/failed"}
    archive = {"ModelDataUrl": f"s3://{BUCKET}/archive/model.tar.gz", "Environment": {"DEVICE": "cpu"}}
    made = create_endpoint(aws, "async", container=archive, AsyncInferenceConfig={"OutputConfig": output})
    wait_in_service(aws, made.name)
    yield made
    delete_endpoint(aws, made.name)


def put(aws: Aws, key: str, body: Any) -> str:
    aws.client("s3").put_object(Bucket=BUCKET, Key=key, Body=json.dumps(body).encode())
    return f"s3://{BUCKET}/{key}"


def get_when_there(aws: Aws, uri: str) -> bytes:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    s3, deadline_s = aws.client("s3"), time.monotonic() + LIMIT_S
    while True:
        try:
            content: bytes = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
            return content
        except s3.exceptions.NoSuchKey:
            assert time.monotonic() < deadline_s, f"{uri} never came"
            time.sleep(0.1)


def invoke_async(aws: Aws, endpoint: Endpoint, location: str, **arguments: Any) -> Any:
    return aws.client("sagemaker-runtime").invoke_endpoint_async(
        EndpointName=endpoint.name, InputLocation=location, ContentType="application/json", **arguments
    )


def test_an_asynchronous_invocation_writes_its_output(aws: Aws, async_endpoint: Endpoint) -> None:
    reply = invoke_async(aws, async_endpoint, put(aws, "in/good.json", GREEDY), InferenceId="abc")
    assert reply["ResponseMetadata"]["HTTPStatusCode"] == 202
    assert reply["InferenceId"] == "abc"
    assert reply["OutputLocation"].startswith(f"s3://{BUCKET}/out/")
    (answer,) = json.loads(get_when_there(aws, reply["OutputLocation"]))
    assert answer["generated_text"].startswith(GREEDY["inputs"])


def test_an_asynchronous_failure_writes_its_reason(aws: Aws, async_endpoint: Endpoint) -> None:
    wrong = put(aws, "in/wrong.json", {"inputs": "x", "parameters": {"max_new_tokens": -1}})
    reply = invoke_async(aws, async_endpoint, wrong)
    assert reply["FailureLocation"].startswith(f"s3://{BUCKET}/failed/")
    assert "max_new_tokens" in get_when_there(aws, reply["FailureLocation"]).decode()


@pytest.fixture(scope="module")
def component(aws: Aws) -> Iterator[tuple[str, str]]:
    """An endpoint without models, and one component on it: their names."""
    sagemaker = aws.client("sagemaker")
    variant = {
        "VariantName": "AllTraffic",
        "InstanceType": "ml.g5.12xlarge",
        "InitialInstanceCount": 1,
        "ManagedInstanceScaling": {"Status": "ENABLED", "MinInstanceCount": 1, "MaxInstanceCount": 2},
        "RoutingConfig": {"RoutingStrategy": "LEAST_OUTSTANDING_REQUESTS"},
    }
    sagemaker.create_endpoint_config(
        EndpointConfigName="shelf", ExecutionRoleArn=ROLE, ProductionVariants=[variant]
    )
    sagemaker.create_endpoint(EndpointName="shelf", EndpointConfigName="shelf")
    wait_in_service(aws, "shelf")
    specification = {
        "Container": {"Image": IMAGE, "Environment": {"HF_MODEL_ID": "demo", "DEVICE": "cpu"}},
        "ComputeResourceRequirements": {
            "MinMemoryRequiredInMb": 1024,
            "NumberOfAcceleratorDevicesRequired": 1,
        },
        "StartupParameters": {"ContainerStartupHealthCheckTimeoutInSeconds": 120},
    }
    sagemaker.create_inference_component(
        InferenceComponentName="story",
        EndpointName="shelf",
        VariantName="AllTraffic",
        Specification=specification,
        RuntimeConfig={"CopyCount": 1},
    )
    wait_component(aws, "story", "InService")
    yield "shelf", "story"
    sagemaker.delete_inference_component(InferenceComponentName="story")
    wait_component(aws, "story", "gone")
    sagemaker.delete_endpoint(EndpointName="shelf")
    waiter = sagemaker.get_waiter("endpoint_deleted")
    waiter.wait(EndpointName="shelf", WaiterConfig={"Delay": 0.2, "MaxAttempts": 200})


def wait_component(aws: Aws, name: str, wanted: str) -> Any:
    sagemaker, deadline_s = aws.client("sagemaker"), time.monotonic() + LIMIT_S
    while True:
        try:
            described = sagemaker.describe_inference_component(InferenceComponentName=name)
        except ClientError as error:
            assert error.response["Error"]["Code"] == "ValidationException"
            described = {"InferenceComponentStatus": "gone"}
        status = described["InferenceComponentStatus"]
        if status == wanted:
            return described
        assert status != "Failed", described["FailureReason"]
        assert time.monotonic() < deadline_s, f"{name} is {status}, not {wanted}"
        time.sleep(0.1)


def test_a_component_is_invoked_by_its_name(aws: Aws, component: tuple[str, str]) -> None:
    endpoint, name = component
    runtime = aws.client("sagemaker-runtime")
    reply = runtime.invoke_endpoint(
        EndpointName=endpoint,
        InferenceComponentName=name,
        Body=json.dumps(GREEDY),
        ContentType="application/json",
    )
    assert json.loads(reply["Body"].read())[0]["generated_text"]
    with pytest.raises(ClientError) as raised:
        runtime.invoke_endpoint(EndpointName=endpoint, Body=json.dumps(GREEDY))
    assert raised.value.response["Error"]["Code"] == "ValidationError"
    described = aws.client("sagemaker").describe_inference_component(InferenceComponentName=name)
    assert described["RuntimeConfig"]["CurrentCopyCount"] == 1
    listed = aws.client("sagemaker").list_inference_components(EndpointNameEquals=endpoint)
    assert [item["InferenceComponentName"] for item in listed["InferenceComponents"]] == [name]


@pytest.mark.full
def test_a_component_scales_to_none_and_back(aws: Aws, component: tuple[str, str]) -> None:
    endpoint, name = component
    sagemaker, runtime = aws.client("sagemaker"), aws.client("sagemaker-runtime")

    def copies(count: int) -> None:
        sagemaker.update_inference_component_runtime_config(
            InferenceComponentName=name, DesiredRuntimeConfig={"CopyCount": count}
        )
        deadline_s = time.monotonic() + LIMIT_S
        while wait_component(aws, name, "InService")["RuntimeConfig"]["CurrentCopyCount"] != count:
            assert time.monotonic() < deadline_s

    copies(0)
    with pytest.raises(ClientError) as raised:
        runtime.invoke_endpoint(EndpointName=endpoint, InferenceComponentName=name, Body=json.dumps(GREEDY))
    assert raised.value.response["Error"]["Code"] in ("ValidationError", "ModelNotReadyException")
    copies(1)
    reply = runtime.invoke_endpoint(
        EndpointName=endpoint, InferenceComponentName=name, Body=json.dumps(GREEDY)
    )
    assert reply["Body"].read()


@pytest.mark.full
def test_an_uncompressed_prefix(aws: Aws) -> None:
    source = {"S3Uri": f"s3://{BUCKET}/files/", "S3DataType": "S3Prefix", "CompressionType": "None"}
    container = {"ModelDataSource": {"S3DataSource": source}, "Environment": {"DEVICE": "cpu"}}
    made = create_endpoint(aws, "prefix", container=container)
    wait_in_service(aws, made.name)
    reply = aws.client("sagemaker-runtime").invoke_endpoint(EndpointName="prefix", Body=json.dumps(GREEDY))
    assert json.loads(reply["Body"].read())[0]["generated_text"]
    delete_endpoint(aws, made.name)


def test_model_data_that_is_not_there_fails_the_endpoint(aws: Aws) -> None:
    create_endpoint(aws, "absent", container={"ModelDataUrl": f"s3://{BUCKET}/nowhere/model.tar.gz"})
    with pytest.raises(WaiterError):
        wait_in_service(aws, "absent")
    reason = aws.client("sagemaker").describe_endpoint(EndpointName="absent")["FailureReason"]
    assert f"s3://{BUCKET}/nowhere/model.tar.gz" in reason
    delete_endpoint(aws, "absent")
