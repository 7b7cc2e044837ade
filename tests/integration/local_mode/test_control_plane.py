"""The control plane as unmodified boto3 sees it."""

from __future__ import annotations

import datetime
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, WaiterError

from local_mode.sessions import LocalSession
from tests.integration.local_mode.control_plane_server import REGION, QuickHosting, control_plane

ARN = f"arn:aws:sagemaker:{REGION}:123456789012"
ROLE = "arn:aws:iam::123456789012:role/any"
VARIANT = {"VariantName": "all", "InstanceType": "ml.g5.xlarge", "InitialInstanceCount": 1}
QUICKLY = {"Delay": 0.05, "MaxAttempts": 200}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalSession, QuickHosting]]:
    with control_plane(tmp_path_factory.mktemp("state")) as both:
        yield both


@pytest.fixture(scope="module")
def sagemaker(served: tuple[LocalSession, QuickHosting]) -> Any:
    client = served[0].client("sagemaker")
    client.create_model(
        ModelName="m",
        ExecutionRoleArn=ROLE,
        PrimaryContainer={"Image": "any", "Environment": {"HF_MODEL_ID": "demo"}},
    )
    for name in ("c", "c2"):
        client.create_endpoint_config(
            EndpointConfigName=name, ProductionVariants=[VARIANT | {"ModelName": "m"}]
        )
    return client


def test_the_life_of_an_endpoint_with_waiters(sagemaker: Any) -> None:
    created = sagemaker.create_endpoint(
        EndpointName="Life", EndpointConfigName="c", Tags=[{"Key": "k", "Value": "v"}]
    )
    assert created["EndpointArn"] == f"{ARN}:endpoint/life"
    shown = sagemaker.describe_endpoint(EndpointName="Life")
    assert shown["EndpointStatus"] == "Creating"
    age = datetime.datetime.now(datetime.UTC) - shown["CreationTime"]
    assert abs(age) < datetime.timedelta(minutes=1)
    with pytest.raises(ClientError, match="Cannot update in-progress endpoint"):
        sagemaker.delete_endpoint(EndpointName="Life")
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="Life", WaiterConfig=QUICKLY)
    sagemaker.update_endpoint(EndpointName="Life", EndpointConfigName="c2")
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="Life", WaiterConfig=QUICKLY)
    assert sagemaker.describe_endpoint(EndpointName="Life")["EndpointConfigName"] == "c2"
    assert sagemaker.list_tags(ResourceArn=created["EndpointArn"])["Tags"] == [{"Key": "k", "Value": "v"}]
    sagemaker.delete_endpoint(EndpointName="Life")
    sagemaker.get_waiter("endpoint_deleted").wait(EndpointName="Life", WaiterConfig=QUICKLY)
    with pytest.raises(ClientError) as caught:
        sagemaker.describe_endpoint(EndpointName="Life")
    assert caught.value.response["Error"] == {
        "Code": "ValidationException",
        "Message": f'Could not find endpoint "{ARN}:endpoint/life".',
    }
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    assert caught.value.response["ResponseMetadata"]["RequestId"]


def test_the_waiter_tells_a_failure(sagemaker: Any) -> None:
    sagemaker.create_endpoint(EndpointName="bad", EndpointConfigName="c")
    with pytest.raises(WaiterError, match="Failed") as caught:
        sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="bad", WaiterConfig=QUICKLY)
    assert caught.value.last_response["FailureReason"] == "because"


def test_paginators_see_everything_once(sagemaker: Any) -> None:
    names = {f"page-{number:02}" for number in range(23)}
    for name in names:
        sagemaker.create_model(ModelName=name, PrimaryContainer={"Image": "any"})
    pages = sagemaker.get_paginator("list_models").paginate(NameContains="page-", SortBy="Name")
    found = [model["ModelName"] for page in pages for model in page["Models"]]
    assert found == sorted(names, reverse=True)
    since = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=1)
    assert sagemaker.list_models(CreationTimeAfter=since)["Models"] == []


def test_components_with_every_operation(sagemaker: Any) -> None:
    sagemaker.create_endpoint_config(
        EndpointConfigName="bare", ProductionVariants=[VARIANT], ExecutionRoleArn=ROLE
    )
    sagemaker.create_endpoint(EndpointName="bare", EndpointConfigName="bare")
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="bare", WaiterConfig=QUICKLY)
    specification = {"ModelName": "m", "ComputeResourceRequirements": {"MinMemoryRequiredInMb": 1024}}
    sagemaker.create_inference_component(
        InferenceComponentName="ic",
        EndpointName="bare",
        VariantName="all",
        Specification=specification,
        RuntimeConfig={"CopyCount": 1},
    )
    component_in_service(sagemaker)
    sagemaker.update_inference_component_runtime_config(
        InferenceComponentName="ic", DesiredRuntimeConfig={"CopyCount": 2}
    )
    shown = component_in_service(sagemaker)
    assert shown["RuntimeConfig"]["DesiredCopyCount"] == 2
    listed = sagemaker.list_inference_components(EndpointNameEquals="bare")["InferenceComponents"]
    assert [component["InferenceComponentName"] for component in listed] == ["ic"]
    sagemaker.delete_inference_component(InferenceComponentName="ic")


def component_in_service(sagemaker: Any) -> Any:
    shown = sagemaker.describe_inference_component(InferenceComponentName="ic")
    while shown["InferenceComponentStatus"] != "InService":
        shown = sagemaker.describe_inference_component(InferenceComponentName="ic")
    return shown


def test_another_operation_is_refused_by_name(sagemaker: Any) -> None:
    with pytest.raises(ClientError, match="DescribeTransformJob is not emulated. Emulated here: AddTags"):
        sagemaker.describe_transform_job(TransformJobName="t")


def test_another_service_is_told_where_it_is(served: tuple[LocalSession, QuickHosting]) -> None:
    local = served[0]
    with pytest.raises(ClientError, match="set only AWS_ENDPOINT_URL_SAGEMAKER"):
        local.client("sts", endpoint_url=local.url).get_caller_identity()
    with pytest.raises(ClientError, match="set only AWS_ENDPOINT_URL_SAGEMAKER"):
        local.client("dynamodb", endpoint_url=local.url).list_tables()


def test_deletes_answer_with_nothing(served: tuple[LocalSession, QuickHosting], sagemaker: Any) -> None:
    sagemaker.create_model(ModelName="gone", PrimaryContainer={"Image": "any"})
    connection = http.client.HTTPConnection(served[0].url.removeprefix("http://"))
    headers = {"X-Amz-Target": "SageMaker.DeleteModel", "Content-Type": "application/x-amz-json-1.1"}
    connection.request("POST", "/", json.dumps({"ModelName": "gone"}), headers)
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"")
    connection.request("GET", "/healthz")
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"ok")
    connection.close()


def test_parts_live_as_long_as_the_server(tmp_path: Path) -> None:
    with control_plane(tmp_path) as (local, hosting):
        local.client("sagemaker").list_models()
        assert hosting.events == ["start"]
    assert hosting.events == ["start", "stop"]
