"""SDK 3's local mode: deploy, invoke, delete. Arguments: model data as file://, a port, the body as JSON."""

import json
import sys

from sagemaker.core.local import LocalSession

model_data, port, body = sys.argv[1:]
session = LocalSession()
session.config = {"local": {"serving_port": int(port)}}
client = session.sagemaker_client
client.create_model(
    ModelName="local",
    PrimaryContainer={
        "Image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/textgen-endpoint:latest",
        "ModelDataUrl": model_data,
        "Environment": {"SERVED_MODEL_NAME": "from-the-archive"},
    },
)
variant = {
    "VariantName": "AllTraffic",
    "ModelName": "local",
    "InitialInstanceCount": 1,
    "InstanceType": "local",
}
client.create_endpoint_config("local", [variant])
client.create_endpoint("local", "local")
try:
    status = client.describe_endpoint("local")["EndpointStatus"]
    reply = session.sagemaker_runtime_client.invoke_endpoint(
        body, "local", ContentType="application/json", Accept="application/json"
    )
    answer = json.loads(reply["Body"].read())
finally:
    client.delete_endpoint("local")
print("\n" + json.dumps({"answer": answer, "status": status}))
