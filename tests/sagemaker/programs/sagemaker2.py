"""SDK 2 as it is: several deployments at once, since each deploy() sleeps half a minute before it first looks.

Arguments: image, role, model data in S3, a bucket, seconds between two looks (0: the SDK's own). Prints {case: result}.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import sagemaker
from sagemaker.async_inference import AsyncInferenceConfig
from sagemaker.deserializers import JSONDeserializer
from sagemaker.exceptions import ObjectNotExistedError, PollingTimeoutError
from sagemaker.huggingface import HuggingFaceModel
from sagemaker.iterators import LineIterator
from sagemaker.serializers import JSONSerializer

from sagemaker_sdk_ext import TextGenModel

image, role, model_data, bucket, poll_s = sys.argv[1:]
LIMIT_S = 60
GREEDY = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 12}}
LOCAL = {"DEVICE": "cpu", "NUM_THREADS": "1"}
JSON = {"serializer": JSONSerializer(), "deserializer": JSONDeserializer()}
ON_ONE = {"initial_instance_count": 1, "instance_type": "ml.g5.xlarge"}


def deploy(model, session, **arguments):
    """deploy() as it is, or what it does with the one number that it takes no argument for."""
    if float(poll_s) == 0:
        return model.deploy(**arguments)
    predictor = model.deploy(wait=False, **arguments)
    session.wait_for_endpoint(predictor.endpoint_name, poll=float(poll_s))
    return predictor


def gone(session, name):
    try:
        status = session.sagemaker_client.describe_endpoint(EndpointName=name)["EndpointStatus"]
    except session.sagemaker_client.exceptions.ClientError:
        return True
    return status == "Deleting"


def environment_model(session):
    """Image and environment: predict, predict_stream, delete."""
    model = HuggingFaceModel(
        image_uri=image, env={"HF_MODEL_ID": "demo", **LOCAL}, role=role, sagemaker_session=session
    )
    predictor = deploy(model, session, endpoint_name="sdk2-environment", **ON_ONE, **JSON)
    answer = predictor.predict(GREEDY)
    lines = [
        line.decode() for line in predictor.predict_stream({**GREEDY, "stream": True}, iterator=LineIterator)
    ]
    predictor.delete_model()
    predictor.delete_endpoint()
    return {"answer": answer, "lines": lines, "gone": gone(session, predictor.endpoint_name)}


def archive_model(session):
    """model.tar.gz in S3, asynchronously."""
    model = HuggingFaceModel(
        image_uri=image, model_data=model_data, env=LOCAL, role=role, sagemaker_session=session
    )
    outputs = AsyncInferenceConfig(
        output_path=f"s3://{bucket}/sdk2-out", failure_path=f"s3://{bucket}/sdk2-failed"
    )
    predictor = deploy(
        model, session, endpoint_name="sdk2-archive", async_inference_config=outputs, **ON_ONE, **JSON
    )
    answer = predictor.predict_async(GREEDY, input_path=f"s3://{bucket}/sdk2-in/body.json")
    # Its waiter also waits for the failure, for all of its attempts, when the answer has long come.
    for _ in range(LIMIT_S):
        try:
            result = answer.get_result()
        except (ObjectNotExistedError, PollingTimeoutError):
            time.sleep(1)
        else:
            break
    predictor.delete_endpoint()
    return {"answer": result}


def text_gen_model(session):
    """Our class."""
    model = TextGenModel(
        model_id="demo",
        image_uri=image,
        role=role,
        max_input_tokens=512,
        env=LOCAL,
        sagemaker_session=session,
    )
    predictor = model.deploy(endpoint_name="sdk2-textgen", **ON_ONE)
    text = predictor.generate("Once upon a time", max_new_tokens=12).text
    pieces = list(predictor.stream_text("Once upon a time", max_new_tokens=12))
    predictor.delete_endpoint()
    return {"text": text, "pieces": pieces}


CASES = (environment_model, archive_model, text_gen_model)
# Sessions are made one after the other: making boto3 clients is not safe among threads.
sessions = [sagemaker.Session(default_bucket=bucket) for _ in CASES]
with ThreadPoolExecutor(len(CASES)) as pool:
    futures = {
        case.__name__: pool.submit(case, session) for case, session in zip(CASES, sessions, strict=True)
    }
print("\n" + json.dumps({name: future.result() for name, future in futures.items()}))
