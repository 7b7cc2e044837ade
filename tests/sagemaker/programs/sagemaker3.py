"""SDK 3 as it is: ModelBuilder, the core resources, inference components, and our class, side by side.

Arguments: image, role, a bucket. Prints {case: result}.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import boto3
from sagemaker.core.helper.session_helper import Session
from sagemaker.core.resources import Endpoint, EndpointConfig, InferenceComponent, Model
from sagemaker.core.shapes import (
    ContainerDefinition,
    InferenceComponentComputeResourceRequirements,
    InferenceComponentContainerSpecification,
    InferenceComponentRuntimeConfig,
    InferenceComponentSpecification,
    ProductionVariant,
)
from sagemaker.serve import ModelBuilder

from sagemaker_sdk_ext import TextGenModel

image, role, bucket = sys.argv[1:]
ENVIRONMENT = {"HF_MODEL_ID": "demo", "DEVICE": "cpu", "NUM_THREADS": "1"}
BODY = json.dumps({"inputs": "Once upon a time", "parameters": {"max_new_tokens": 12}})
JSON = {"content_type": "application/json", "accept": "application/json"}


def model_builder():
    """Pass-through: an image and its environment."""
    builder = ModelBuilder(
        image_uri=image,
        env_vars=ENVIRONMENT,
        role_arn=role,
        instance_type="ml.g5.xlarge",
        sagemaker_session=Session(default_bucket=bucket),
    )
    model = builder.build(model_name="sdk3-builder")
    endpoint = builder.deploy(endpoint_name="sdk3-builder", initial_instance_count=1)
    answer = json.loads(endpoint.invoke(body=BODY, **JSON).body.read())
    endpoint.delete()
    model.delete()
    return {"answer": answer}


def core_resources():
    """Each resource by itself."""
    container = ContainerDefinition(image=image, environment=ENVIRONMENT)
    model = Model.create(model_name="sdk3-core", primary_container=container, execution_role_arn=role)
    variant = ProductionVariant(
        variant_name="AllTraffic",
        model_name="sdk3-core",
        initial_instance_count=1,
        instance_type="ml.g5.xlarge",
        container_startup_health_check_timeout_in_seconds=120,
    )
    config = EndpointConfig.create(endpoint_config_name="sdk3-core", production_variants=[variant])
    endpoint = Endpoint.create(endpoint_name="sdk3-core", endpoint_config_name="sdk3-core")
    endpoint.wait_for_status("InService", poll=1)
    reply = endpoint.invoke(body=BODY, custom_attributes="trace=1", **JSON)
    answer = json.loads(reply.body.read())
    listed = [item.endpoint_name for item in Endpoint.get_all(name_contains="sdk3-core")]
    endpoint.delete()
    endpoint.wait_for_delete(poll=1)
    config.delete()
    model.delete()
    return {"answer": answer, "variant": reply.invoked_production_variant, "listed": listed}


def inference_component():
    """A component on an endpoint of its own."""
    variant = ProductionVariant(
        variant_name="AllTraffic", initial_instance_count=1, instance_type="ml.g5.12xlarge"
    )
    EndpointConfig.create(
        endpoint_config_name="sdk3-shelf", production_variants=[variant], execution_role_arn=role
    )
    endpoint = Endpoint.create(endpoint_name="sdk3-shelf", endpoint_config_name="sdk3-shelf")
    endpoint.wait_for_status("InService", poll=1)
    component = InferenceComponent.create(
        inference_component_name="sdk3-story",
        endpoint_name="sdk3-shelf",
        variant_name="AllTraffic",
        specification=InferenceComponentSpecification(
            container=InferenceComponentContainerSpecification(image=image, environment=ENVIRONMENT),
            compute_resource_requirements=InferenceComponentComputeResourceRequirements(
                min_memory_required_in_mb=1024, number_of_accelerator_devices_required=1
            ),
        ),
        runtime_config=InferenceComponentRuntimeConfig(copy_count=1),
    )
    component.wait_for_status("InService", poll=1)
    reply = endpoint.invoke(body=BODY, inference_component_name="sdk3-story", **JSON)
    answer = json.loads(reply.body.read())
    component.delete()
    component.wait_for_delete(poll=1)
    endpoint.delete()
    return {"answer": answer}


def text_gen_model():
    """Our class."""
    model = TextGenModel(
        model_id="demo",
        image_uri=image,
        role=role,
        max_input_tokens=512,
        env={"DEVICE": "cpu", "NUM_THREADS": "1"},
        sagemaker_session=boto3.session.Session(),
    )
    predictor = model.deploy(instance_type="ml.g5.xlarge", endpoint_name="sdk3-textgen", poll_s=1.0)
    text = predictor.generate("Once upon a time", max_new_tokens=12).text
    pieces = list(predictor.stream_text("Once upon a time", max_new_tokens=12))
    Endpoint.get("sdk3-textgen").delete()
    return {"text": text, "pieces": pieces}


CASES = (model_builder, core_resources, inference_component, text_gen_model)
with ThreadPoolExecutor(len(CASES)) as pool:
    futures = {case.__name__: pool.submit(case) for case in CASES}
print("\n" + json.dumps({name: future.result() for name, future in futures.items()}))
