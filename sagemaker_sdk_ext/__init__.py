"""Deploying the image from SageMaker's SDKs and boto3. Knows the AWS APIs, never the engine: imports nothing of serving."""
