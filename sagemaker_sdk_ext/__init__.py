"""Deploying the image from SageMaker's SDKs and boto3. Knows the AWS APIs; imports nothing of `serving`."""
