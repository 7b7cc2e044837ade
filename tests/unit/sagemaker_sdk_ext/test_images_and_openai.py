"""Image URIs are never guessed; clients for the OpenAI route have a valid token and the right address."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest

from sagemaker_sdk_ext import ConfigurationError, bearer_token, get_textgen_image_uri, openai_client
from sagemaker_sdk_ext.images import LATEST_VERSION
from sagemaker_sdk_ext.openai_route import BearerTokens, openai_base_url
from serving.version import VERSION
from tests.unit.sagemaker_sdk_ext.runtime_server import Answer, Runtime, serve

ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/textgen-endpoint"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME",
        "AWS_BEARER_TOKEN_SAGEMAKER",
        "TEXTGEN_IMAGE_ACCOUNT",
        "TEXTGEN_IMAGE_REPOSITORY",
    ):
        monkeypatch.delenv(name, raising=False)


def session() -> Any:
    return boto3.session.Session(
        aws_access_key_id="AKID", aws_secret_access_key="secret", region_name="eu-west-1"
    )


def test_image_uris(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LATEST_VERSION == VERSION
    assert get_textgen_image_uri(region="eu-west-1", account="123456789012") == f"{ECR}:{VERSION}"
    assert get_textgen_image_uri("textgen-cpu", session(), account="123456789012").endswith(f":{VERSION}-cpu")
    china = get_textgen_image_uri(region="cn-north-1", account="123456789012", version="9", cpu=True)
    assert china.endswith(".cn-north-1.amazonaws.com.cn/textgen-endpoint:9-cpu")
    assert get_textgen_image_uri(repository="host:5000/team/image") == f"host:5000/team/image:{VERSION}"
    monkeypatch.setenv("TEXTGEN_IMAGE_REPOSITORY", "registry/x")
    assert get_textgen_image_uri() == f"registry/x:{VERSION}"
    monkeypatch.setenv("TEXTGEN_IMAGE_REPOSITORY", "")
    monkeypatch.setenv("TEXTGEN_IMAGE_ACCOUNT", "123456789012")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert get_textgen_image_uri() == f"{ECR}:{VERSION}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"region": "eu-west-1"}, "buildspec.yml"),
        ({"account": "123", "region": "eu-west-1"}, "12 digits"),
        ({"account": "123456789012"}, "region is unknown"),
        ({"account": "123456789012", "region": "Europe"}, "no AWS region"),
        ({"repository": "a/b:tag"}, "version="),
        ({"backend": "lmi"}, "textgen-cpu"),
    ],
)
def test_an_image_that_is_not_known_is_an_error(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        get_textgen_image_uri(**arguments)


def test_a_bearer_token_is_a_presigned_url() -> None:
    token = bearer_token("eu-west-1", lifetime_s=600, boto_session=session())
    assert token.startswith("sagemaker-api-key-")
    url = urlsplit("https://" + base64.b64decode(token.removeprefix("sagemaker-api-key-")).decode())
    query = parse_qs(url.query)
    assert url.netloc == "sagemaker.amazonaws.com" and url.path == "/"
    assert query["Action"] == ["CallWithBearerToken"] and query["Version"] == ["1"]
    assert query["X-Amz-Expires"] == ["600"] and "/eu-west-1/sagemaker/" in query["X-Amz-Credential"][0]
    assert query["X-Amz-Signature"][0]


def test_tokens_are_renewed_before_they_end() -> None:
    now, made = [0.0], []

    def make(lifetime_s: int) -> str:
        made.append(lifetime_s)
        return f"token-{len(made)}"

    tokens = BearerTokens(make, lifetime_s=100, clock=lambda: now[0])
    assert tokens() == tokens() == "token-1"
    now[0] = 79.0
    assert tokens() == "token-1"
    now[0] = 80.0
    assert tokens() == "token-2" and made == [100, 100]
    with pytest.raises(ConfigurationError, match="lifetime_s = 99999"):
        BearerTokens(make, lifetime_s=99_999)


def test_addresses_of_the_route() -> None:
    assert openai_base_url("ep", region="eu-west-1") == (
        "https://runtime.sagemaker.eu-west-1.amazonaws.com/endpoints/ep/openai/v1"
    )
    assert openai_base_url("ep", component="ic", region="r", endpoint_url="http://127.0.0.1:1/") == (
        "http://127.0.0.1:1/endpoints/ep/inference-components/ic/openai/v1"
    )


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with serve() as found:
        yield found


def test_the_client_speaks_through_the_route(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    completion = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    }
    answer = Answer(json.dumps(completion).encode(), headers={"Content-Type": "application/json"})
    runtime.answers = [answer, answer]
    monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", runtime.url)
    with openai_client("ep", "ic", "eu-west-1", boto_session=session()) as client:
        reply = client.chat.completions.create(model="", messages=[{"role": "user", "content": "x"}])
    assert reply.choices[0].message.content == "hi"
    assert runtime.asked[0].path == "/endpoints/ep/inference-components/ic/openai/v1/chat/completions"
    assert runtime.asked[0].headers["authorization"].startswith("Bearer sagemaker-api-key-")
    with openai_client("ep", base_url=f"{runtime.url}/v1", token="k") as client:
        client.chat.completions.create(model="", messages=[{"role": "user", "content": "x"}])
    assert runtime.asked[1].path == "/v1/chat/completions"
    assert runtime.asked[1].headers["authorization"] == "Bearer k"


def test_a_missing_region_is_named() -> None:
    bare = boto3.session.Session(aws_access_key_id="a", aws_secret_access_key="b")
    with pytest.raises(ConfigurationError, match="region"):
        openai_client("ep", boto_session=bare)
