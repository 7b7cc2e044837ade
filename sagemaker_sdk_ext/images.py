"""The URI of the container image in somebody's own registry. There is no public one, and none is ever guessed."""

from __future__ import annotations

import re
from typing import Any

from sagemaker_sdk_ext import environment
from sagemaker_sdk_ext.errors import ConfigurationError

LATEST_VERSION = "0.1.0"
"""Of the server whose options this package knows; the two are released together."""
DEFAULT_REPOSITORY_NAME = "textgen-endpoint"

_ACCOUNT = re.compile(r"[0-9]{12}")
_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-[0-9]+")
_BACKENDS = ("textgen", "textgen-cpu")
_DOMAINS = {"cn-": "amazonaws.com.cn"}


def get_textgen_image_uri(
    backend: str = "textgen",
    session: Any = None,
    region: str | None = None,
    *,
    version: str | None = None,
    cpu: bool = False,
    account: str | None = None,
    repository: str | None = None,
) -> str:
    """The image's URI. `backend` is `textgen` or `textgen-cpu` (the same as `cpu=True`); `session` gives the region.

    `repository` is a repository's whole URI; else `account` and the region make an ECR URI, with the repository name of
    `buildspec.yml`'s example. Both default to TEXTGEN_IMAGE_REPOSITORY and TEXTGEN_IMAGE_ACCOUNT.
    Raises `ConfigurationError` when neither is given: pushing the image is up to its user.
    """
    if backend not in _BACKENDS:
        raise ConfigurationError(f"backend = {backend!r} is unknown; it is one of {', '.join(_BACKENDS)}")
    tag = (version or LATEST_VERSION) + ("-cpu" if cpu or backend == "textgen-cpu" else "")
    repository = repository or (environment.image_repository() if account is None else None)
    if repository is not None:
        if ":" in repository.rpartition("/")[2]:
            raise ConfigurationError(f"repository = {repository!r} has a tag; give it as version=")
        return f"{repository}:{tag}"
    account = account or environment.image_account()
    if account is None:
        raise ConfigurationError(
            "where is the image? There is no public registry: push it to yours with AWS CodeBuild and buildspec.yml "
            "(set IMAGE_REPOSITORY there), or with `make image CUDA=1` and `docker push`; then give image_uri=, "
            f"repository= or account=, or set {environment.IMAGE_REPOSITORY}"
        )
    if not _ACCOUNT.fullmatch(account):
        raise ConfigurationError(f"account = {account!r} is not an AWS account id of 12 digits")
    return f"{account}.dkr.ecr.{_region(session, region)}/{DEFAULT_REPOSITORY_NAME}:{tag}"


def _region(session: Any, region: str | None) -> str:
    """The region with its registry domain."""
    found = region or getattr(session, "boto_region_name", None) or getattr(session, "region_name", None)
    found = found or environment.region()
    if found is None:
        raise ConfigurationError(
            "the image's region is unknown; give region= or a session, or set AWS_REGION"
        )
    if not _REGION.fullmatch(found):
        raise ConfigurationError(f"region = {found!r} is no AWS region such as eu-west-1")
    domain = next((name for prefix, name in _DOMAINS.items() if found.startswith(prefix)), "amazonaws.com")
    return f"{found}.{domain}"
