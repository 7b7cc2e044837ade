"""Deploy with SDK 2 (`pip install 'sagemaker<3'`): its HuggingFaceModel takes the image as it takes any other.

Variables as in deploy_boto3.py; on this machine SAGEMAKER_BUCKET as well, an S3 bucket that the SDK may look at.
"""

import os

import sagemaker
from sagemaker.deserializers import JSONDeserializer
from sagemaker.huggingface import HuggingFaceModel
from sagemaker.iterators import LineIterator
from sagemaker.serializers import JSONSerializer

model = HuggingFaceModel(
    image_uri=os.environ.get("TEXTGEN_IMAGE", "textgen-endpoint"),
    env={"HF_MODEL_ID": os.environ.get("HF_MODEL_ID", "demo")},
    role=os.environ.get("SAGEMAKER_ROLE", "arn:aws:iam::123456789012:role/sagemaker"),
    sagemaker_session=sagemaker.Session(default_bucket=os.environ.get("SAGEMAKER_BUCKET")),
)
predictor = model.deploy(
    initial_instance_count=1,
    instance_type="ml.g5.xlarge",
    container_startup_health_check_timeout=900,
    serializer=JSONSerializer(),
    deserializer=JSONDeserializer(),
)

story = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 40}}
print(predictor.predict(story)[0]["generated_text"])
for line in predictor.predict_stream({**story, "stream": True}, iterator=LineIterator):
    print(line.decode())

predictor.delete_model()
predictor.delete_endpoint()
