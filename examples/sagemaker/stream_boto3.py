"""Stream from an endpoint that exists: `python stream_boto3.py my-endpoint "Tell me a story."`

Parts arrive cut anywhere, even within a character or a line; the predictor puts them together, and says when a
stream broke off. On AWS and on this machine alike (see deploy_boto3.py).
"""

import sys

from sagemaker_sdk_ext import TextGenPredictor

endpoint, question = sys.argv[1:]
predictor = TextGenPredictor(endpoint)
for text in predictor.stream_text([{"role": "user", "content": question}], max_tokens=200):
    print(text, end="", flush=True)
print()
