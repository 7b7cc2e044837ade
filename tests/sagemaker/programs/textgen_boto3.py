"""Our class and its predictor without any SDK. Arguments: image, role, a bucket. Prints one result."""

import json
import sys

import boto3

from sagemaker_sdk_ext import RequestRefused, TextGenModel

image, role, bucket = sys.argv[1:]
model = TextGenModel(
    model_id="demo",
    image_uri=image,
    role=role,
    max_input_tokens=512,
    env={"DEVICE": "cpu", "NUM_THREADS": "1"},
    sdk="boto3",
)
predictor = model.deploy(
    instance_type="ml.g5.xlarge",
    endpoint_name="textgen-class-boto3",
    async_inference_config={"OutputConfig": {"S3OutputPath": f"s3://{bucket}/textgen"}},
    poll_s=0.5,
)
result = {"text": predictor.generate("Once upon a time", max_new_tokens=12).text}
result["pieces"] = list(predictor.stream_text("Once upon a time", max_new_tokens=12))
result["chat"] = predictor.chat([{"role": "user", "content": "Hi"}], max_tokens=8).finish_reason
with predictor.session() as session:
    result["in_session"] = session.generate("Once upon a time", max_new_tokens=12).text
result["later"] = predictor.generate_async("Once upon a time", max_new_tokens=12).result(interval_s=0.2).text
try:
    predictor.generate("Once", max_new_tokens=-1)
except RequestRefused as error:
    result["refused"] = str(error)
result["variant"] = model.requests.endpoint_config["ProductionVariants"][0]

sagemaker = boto3.client("sagemaker")
sagemaker.delete_endpoint(EndpointName="textgen-class-boto3")
print(json.dumps(result))
