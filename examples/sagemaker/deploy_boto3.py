"""Deploy, ask, delete with boto3 alone.

On AWS:           TEXTGEN_IMAGE=<account>.dkr.ecr.<region>.amazonaws.com/textgen-endpoint:<tag> \
                  SAGEMAKER_ROLE=arn:aws:iam::<account>:role/<name>  python deploy_boto3.py
On this machine:  `textgen-endpoint local up` in another shell; export the two variables that it prints.
"""

import json
import os

import boto3

IMAGE = os.environ.get("TEXTGEN_IMAGE", "textgen-endpoint")  # the emulator takes any image
ROLE = os.environ.get("SAGEMAKER_ROLE", "arn:aws:iam::123456789012:role/sagemaker")
NAME = os.environ.get("ENDPOINT_NAME", "textgen-boto3-example")

sagemaker = boto3.client("sagemaker")
runtime = boto3.client("sagemaker-runtime")

model = {"Image": IMAGE, "Environment": {"HF_MODEL_ID": os.environ.get("HF_MODEL_ID", "demo")}}
variant = {
    "VariantName": "AllTraffic",
    "ModelName": NAME,
    "InitialInstanceCount": 1,
    "InstanceType": "ml.g5.xlarge",
    "ContainerStartupHealthCheckTimeoutInSeconds": 900,
}
sagemaker.create_model(ModelName=NAME, PrimaryContainer=model, ExecutionRoleArn=ROLE)
sagemaker.create_endpoint_config(EndpointConfigName=NAME, ProductionVariants=[variant])
sagemaker.create_endpoint(EndpointName=NAME, EndpointConfigName=NAME)
sagemaker.get_waiter("endpoint_in_service").wait(
    EndpointName=NAME, WaiterConfig={"Delay": 5, "MaxAttempts": 360}
)

question = {"messages": [{"role": "user", "content": "Tell me a story about a fox."}], "max_tokens": 60}
reply = runtime.invoke_endpoint(EndpointName=NAME, ContentType="application/json", Body=json.dumps(question))
print(json.load(reply["Body"])["choices"][0]["message"]["content"])

sagemaker.delete_endpoint(EndpointName=NAME)
sagemaker.delete_endpoint_config(EndpointConfigName=NAME)
sagemaker.delete_model(ModelName=NAME)
