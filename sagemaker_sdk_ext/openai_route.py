"""Clients of the OpenAI library for SageMaker's OpenAI-compatible route. Knows how its bearer tokens are made."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable
from typing import Any

from sagemaker_sdk_ext import environment
from sagemaker_sdk_ext.errors import ConfigurationError

MAX_TOKEN_S = 12 * 3600
_PREFIX = "sagemaker-api-key-"
_HOST = "sagemaker.amazonaws.com"


class BearerTokens:
    """Gives a valid token each time it is called; a new one is made before the last fifth of a token's life."""

    def __init__(
        self, make: Callable[[int], str], *, lifetime_s: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not 60 <= lifetime_s <= MAX_TOKEN_S:
            raise ConfigurationError(f"lifetime_s = {lifetime_s} must lie in 60 to {MAX_TOKEN_S} seconds")
        self._make = make
        self._lifetime_s = lifetime_s
        self._clock = clock
        self._lock = threading.Lock()
        self._token = ""
        self._renew_at = float("-inf")

    def __call__(self) -> str:
        with self._lock:
            now = self._clock()
            if now >= self._renew_at:
                self._token = self._make(self._lifetime_s)
                self._renew_at = now + 0.8 * self._lifetime_s
            return self._token


def bearer_token(
    region: str | None = None, *, lifetime_s: int = MAX_TOKEN_S, boto_session: Any = None
) -> str:
    """A token for the OpenAI route: a presigned CallWithBearerToken URL in base64. It acts for its maker's credentials.

    Raises `ConfigurationError` when there are no credentials or no region.
    """
    session = _session(boto_session)
    from botocore.auth import SigV4QueryAuth
    from botocore.awsrequest import AWSRequest

    where = _region(region, session)
    credentials = session.get_credentials()
    if credentials is None:
        raise ConfigurationError(
            "there are no AWS credentials to make a bearer token from; configure them, or give token="
        )
    request = AWSRequest(
        method="POST",
        url=f"https://{_HOST}/",
        headers={"host": _HOST},
        params={"Action": "CallWithBearerToken"},
    )
    # Frozen: a refresh between the signer's reads would mix two sets of keys.
    SigV4QueryAuth(credentials.get_frozen_credentials(), "sagemaker", where, expires=lifetime_s).add_auth(
        request
    )
    url = request.url.removeprefix("https://") + "&Version=1"
    return _PREFIX + base64.b64encode(url.encode()).decode()


def openai_base_url(
    endpoint_name: str, *, component: str | None = None, region: str, endpoint_url: str | None = None
) -> str:
    """`endpoint_url` is where the runtime service is, such as an emulator; absent: AWS."""
    host = (endpoint_url or f"https://runtime.sagemaker.{region}.amazonaws.com").rstrip("/")
    place = f"/inference-components/{component}" if component else ""
    return f"{host}/endpoints/{endpoint_name}{place}/openai/v1"


def openai_client(
    endpoint_name: str,
    component: str | None = None,
    region: str | None = None,
    *,
    base_url: str | None = None,
    token: str | Callable[[], str] | None = None,
    lifetime_s: int = MAX_TOKEN_S,
    boto_session: Any = None,
    asynchronous: bool = False,
    **options: Any,
) -> Any:
    """An `openai.OpenAI`, or an `openai.AsyncOpenAI`, whose token is renewed before it ends.

    `base_url` replaces the whole address, for containers without SageMaker; `AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME` its host.
    `token` replaces ours. `options` are the client's. The request's `model` may be any text. Only chat completions are
    routed. Raises `ConfigurationError` when the openai library or a region is missing.
    """
    try:
        import openai
    except ImportError as error:
        raise ConfigurationError("openai_client needs the library: pip install 'openai>=2'") from error

    if base_url is None:
        endpoint_url = environment.runtime_endpoint_url()
        where = region or "" if endpoint_url else _region(region, _session(boto_session))
        base_url = openai_base_url(
            endpoint_name, component=component, region=where, endpoint_url=endpoint_url
        )
    given = token or environment.bearer_token()
    if given is None:
        given = BearerTokens(
            lambda seconds: bearer_token(region, lifetime_s=seconds, boto_session=boto_session),
            lifetime_s=lifetime_s,
        )
    # A generation that failed half-way is not repeated unasked.
    settings: dict[str, Any] = {"max_retries": 0, **options}
    if asynchronous:
        return openai.AsyncOpenAI(base_url=base_url, api_key=_awaitable(given), **settings)
    return openai.OpenAI(base_url=base_url, api_key=given, **settings)


def _awaitable(token: str | Callable[[], str]) -> Any:
    if isinstance(token, str):
        return token

    async def get() -> str:
        return token()

    return get


def _session(boto_session: Any) -> Any:
    if boto_session is not None:
        return boto_session
    try:
        import boto3
    except ImportError as error:
        raise ConfigurationError("boto3 is needed to make a bearer token: pip install boto3") from error
    return boto3.session.Session()


def _region(region: str | None, session: Any) -> str:
    found = region or session.region_name or environment.region()
    if not found:
        raise ConfigurationError("the endpoint's region is unknown; give region=, or set AWS_REGION")
    return str(found)
