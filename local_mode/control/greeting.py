"""What the emulator prints when it is ready: lines to paste. Reads no environment."""

from __future__ import annotations

_EXAMPLE = """\
import boto3
sm, role = boto3.client("sagemaker"), "arn:aws:iam::123456789012:role/any"
sm.create_model(ModelName="demo", ExecutionRoleArn=role,
                PrimaryContainer={"Image": "any", "Environment": {"HF_MODEL_ID": "demo"}})
sm.create_endpoint_config(EndpointConfigName="demo", ProductionVariants=[
    {"VariantName": "all", "ModelName": "demo", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}])
sm.create_endpoint(EndpointName="demo", EndpointConfigName="demo")
sm.get_waiter("endpoint_in_service").wait(EndpointName="demo", WaiterConfig={"Delay": 1})
answer = boto3.client("sagemaker-runtime").invoke_endpoint(
    EndpointName="demo", ContentType="application/json", Body=b'{"inputs": "Once upon a time"}')
print(answer["Body"].read().decode())"""


def greeting(url: str, *, region: str, state_dir: str, has_credentials: bool) -> str:
    """For a terminal: variables for the shell, then an example in Python."""
    variables = [
        f"export AWS_ENDPOINT_URL_SAGEMAKER={url}",
        f"export AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME={url}",
        f"export AWS_DEFAULT_REGION={region}",
    ]
    if not has_credentials:
        variables.append("# boto3 wants some credentials, though nobody checks them here:")
        variables.append("export AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local")
    return "\n".join(
        (
            f"SageMaker on this machine: {url}   (state in {state_dir})",
            f"Playground, for a browser:  {url}/",
            "",
            *variables,
            "",
            _EXAMPLE,
            "",
        )
    )
