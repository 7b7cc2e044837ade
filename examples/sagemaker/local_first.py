"""The whole of it on this machine, with nothing else running: an emulator, an endpoint, a streamed answer.

Needs `pip install 'textgen-endpoint[local]'`, no AWS account, no Docker, no GPU.
"""

import local_mode
from sagemaker_sdk_ext import TextGenModel, TextGenPredictor

with local_mode.running() as local:
    model = TextGenModel(
        model_id="demo",
        image_uri="textgen-endpoint",
        role="arn:aws:iam::123456789012:role/any",
        sagemaker_session=local.boto3(),
        sdk="boto3",
    )
    model.deploy(instance_type="ml.g5.xlarge", endpoint_name="first", poll_s=0.5)

    predictor = TextGenPredictor("first", client=local.client("sagemaker-runtime"))
    for text in predictor.stream_text(
        [{"role": "user", "content": "Tell me a story about a fox."}], max_tokens=60, temperature=0
    ):
        print(text, end="", flush=True)
    print()
