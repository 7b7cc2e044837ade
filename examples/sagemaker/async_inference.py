"""Asynchronous inference: the answer comes to S3, and may take up to an hour.

Variables as in deploy_boto3.py, and SAGEMAKER_BUCKET, where answers go. On this machine S3 needs a stand-in, such as
moto's server: export AWS_ENDPOINT_URL_S3 for this program and for the emulator.
"""

import os

import boto3

from sagemaker_sdk_ext import TextGenModel

bucket = os.environ["SAGEMAKER_BUCKET"]
model = TextGenModel(
    model_id=os.environ.get("HF_MODEL_ID", "demo"),
    image_uri=os.environ.get("TEXTGEN_IMAGE", "textgen-endpoint"),
    role=os.environ.get("SAGEMAKER_ROLE", "arn:aws:iam::123456789012:role/sagemaker"),
)
predictor = model.deploy(
    instance_type="ml.g5.xlarge",
    async_inference_config={"OutputConfig": {"S3OutputPath": f"s3://{bucket}/answers/"}},
)

pending = [predictor.generate_async(f"Once upon a time there were {n}", max_new_tokens=40) for n in (2, 3, 4)]
for generation in pending:
    print(generation.output_location)
    print(generation.result(timeout_s=3600).text)

boto3.client("sagemaker").delete_endpoint(EndpointName=predictor.endpoint_name)
