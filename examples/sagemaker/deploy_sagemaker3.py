"""Deploy with SDK 3 (`pip install 'sagemaker>=3'`): ModelBuilder passes an image and its environment through.

Variables as in deploy_sagemaker2.py. SDK 3 asks IAM what the role may do; SAGEMAKER_VALIDATE_ROLE=false spares that.
ModelBuilder's own time limit does not reach the endpoint: a model that loads for minutes wants TextGenModel, which is
at the end of this file and creates the same resources.
"""

import json
import os

from sagemaker.core.helper.session_helper import Session
from sagemaker.serve import ModelBuilder

from sagemaker_sdk_ext import TextGenModel

IMAGE = os.environ.get("TEXTGEN_IMAGE", "textgen-endpoint")
ROLE = os.environ.get("SAGEMAKER_ROLE", "arn:aws:iam::123456789012:role/sagemaker")
MODEL = os.environ.get("HF_MODEL_ID", "demo")
session = Session(default_bucket=os.environ.get("SAGEMAKER_BUCKET"))

builder = ModelBuilder(
    image_uri=IMAGE,
    env_vars={"HF_MODEL_ID": MODEL},
    role_arn=ROLE,
    instance_type="ml.g5.xlarge",
    sagemaker_session=session,
)
model = builder.build()
endpoint = builder.deploy(endpoint_name="textgen-sdk3-example")
story = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 40}}
reply = endpoint.invoke(body=json.dumps(story), content_type="application/json")
print(json.loads(reply.body.read())[0]["generated_text"])
endpoint.delete()
model.delete()

predictor = TextGenModel(model_id=MODEL, image_uri=IMAGE, role=ROLE, sagemaker_session=session).deploy(
    instance_type="ml.g5.xlarge", container_startup_health_check_timeout=900
)
for text in predictor.stream_text("Once upon a time", max_new_tokens=40):
    print(text, end="", flush=True)
print()
session.sagemaker_client.delete_endpoint(EndpointName=predictor.endpoint_name)
