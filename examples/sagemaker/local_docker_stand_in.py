"""SDK 2's own local mode (`instance_type="local"`) without Docker, by a stand-in that is first on PATH.

    PATH=$(textgen-endpoint local docker-stand-in):$PATH python local_docker_stand_in.py file:///path/model.tar.gz

The SDK wants model data, gives up after 120 s, and neither streams nor raises what the container refuses:
`textgen-endpoint local up` (see local_first.py) has none of these limits.
"""

import os
import sys

from sagemaker.deserializers import JSONDeserializer
from sagemaker.huggingface import HuggingFaceModel
from sagemaker.local import LocalSession
from sagemaker.serializers import JSONSerializer

session = LocalSession()
session.config = {"local": {"serving_port": int(os.environ.get("PORT", "8080"))}}
model = HuggingFaceModel(
    image_uri="textgen-endpoint",
    model_data=sys.argv[1],
    env={},
    role="arn:aws:iam::123456789012:role/any",
    code_location="s3://never/used",  # else the SDK asks AWS for a bucket
    sagemaker_session=session,
)
predictor = model.deploy(1, "local", serializer=JSONSerializer(), deserializer=JSONDeserializer())
print(predictor.predict({"inputs": "Once upon a time", "parameters": {"max_new_tokens": 40}}))
predictor.delete_endpoint()
