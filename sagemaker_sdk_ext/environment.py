"""The only reader of the process environment in this package."""

from __future__ import annotations

import os

IMAGE_REPOSITORY = "TEXTGEN_IMAGE_REPOSITORY"
IMAGE_ACCOUNT = "TEXTGEN_IMAGE_ACCOUNT"


def region() -> str | None:
    return _value("AWS_REGION") or _value("AWS_DEFAULT_REGION")


def image_repository() -> str | None:
    """A whole repository URI, as `buildspec.yml` pushes to."""
    return _value(IMAGE_REPOSITORY)


def image_account() -> str | None:
    """The AWS account whose ECR holds the image."""
    return _value(IMAGE_ACCOUNT)


def bearer_token() -> str | None:
    """A ready token for the OpenAI route."""
    return _value("AWS_BEARER_TOKEN_SAGEMAKER")


def runtime_endpoint_url() -> str | None:
    """Where AWS clients are redirected for the `sagemaker-runtime` service."""
    return _value("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME") or _value("AWS_ENDPOINT_URL")


def _value(name: str) -> str | None:
    return os.environ.get(name, "").strip() or None
