"""SDK 2's local mode: deploy, predict, delete. Arguments: model data as file://, a port, the body as JSON."""

import json
import sys

from sagemaker.deserializers import JSONDeserializer
from sagemaker.huggingface import HuggingFaceModel
from sagemaker.local import LocalSession
from sagemaker.serializers import JSONSerializer

model_data, port, body = sys.argv[1:]
session = LocalSession()
session.config = {"local": {"serving_port": int(port)}}
model = HuggingFaceModel(
    image_uri="123456789012.dkr.ecr.us-east-1.amazonaws.com/textgen-endpoint:latest",
    model_data=model_data,
    env={"SERVED_MODEL_NAME": "from-the-archive"},
    role="arn:aws:iam::123456789012:role/sagemaker",
    code_location="s3://not-asked/for",  # else the SDK asks STS and S3 for a bucket that it then does not use
    sagemaker_session=session,
)
predictor = model.deploy(
    initial_instance_count=1,
    instance_type="local",
    serializer=JSONSerializer(),
    deserializer=JSONDeserializer(),
)
try:
    answer = predictor.predict(json.loads(body))
finally:
    predictor.delete_endpoint()
print("\n" + json.dumps({"answer": answer}))
