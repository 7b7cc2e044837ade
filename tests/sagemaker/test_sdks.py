"""Both lines of the SDK as they are, and our class on each of them and on boto3.

The programs start together. SDK 2 sleeps half a minute in every deploy(), with the full counts only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.sagemaker.conftest import BUCKET, IMAGE, ROLE, Aws, Program

PROMPT = "Once upon a time"
ARCHIVE = f"s3://{BUCKET}/archive/model.tar.gz"


@pytest.fixture(scope="module")
def programs(aws: Aws, request: pytest.FixtureRequest, full: bool) -> Iterator[dict[str, Program]]:
    """By the name of the file, each that a selected test asks for."""
    wanted = {name for item in request.session.items for name in ARGUMENTS if name in item.fixturenames}
    more = {"sagemaker2": ["0" if full else "0.5"]}
    started = {
        name: aws.start(f"{name}.py", *ARGUMENTS[name], *more.get(name, []), line=LINES.get(name, "boto3"))
        for name in sorted(wanted)
    }
    yield started
    for program in started.values():
        program.end()


ARGUMENTS = {
    "sagemaker2": (IMAGE, ROLE, ARCHIVE, BUCKET),
    "sagemaker3": (IMAGE, ROLE, BUCKET),
    "textgen_boto3": (IMAGE, ROLE, BUCKET),
}
LINES = {"sagemaker2": "sagemaker2", "sagemaker3": "sagemaker3"}


@pytest.fixture(scope="module")
def sagemaker2(programs: dict[str, Program]) -> Any:
    return programs["sagemaker2"].result()


@pytest.fixture(scope="module")
def sagemaker3(programs: dict[str, Program]) -> Any:
    return programs["sagemaker3"].result()


@pytest.fixture(scope="module")
def textgen_boto3(programs: dict[str, Program]) -> Any:
    return programs["textgen_boto3"].result()


def test_text_gen_model_on_boto3(textgen_boto3: Any) -> None:
    assert textgen_boto3["text"]
    assert "".join(textgen_boto3["pieces"]) == textgen_boto3["text"]
    assert textgen_boto3["chat"] in ("stop", "length")
    assert textgen_boto3["in_session"] == textgen_boto3["text"]
    assert textgen_boto3["later"] == textgen_boto3["text"]
    assert "max_new_tokens" in textgen_boto3["refused"]
    assert textgen_boto3["variant"]["InstanceType"] == "ml.g5.xlarge"


def test_sdk2_deploys_predicts_streams_and_deletes(sagemaker2: Any) -> None:
    result = sagemaker2["environment_model"]
    (answer,) = result["answer"]
    assert answer["generated_text"].startswith(PROMPT)
    assert [line for line in result["lines"] if line and not line.startswith("data:")] == []
    assert len([line for line in result["lines"] if line]) == 12
    assert result["gone"]


def test_sdk2_on_an_archive_asynchronously(sagemaker2: Any) -> None:
    (answer,) = sagemaker2["archive_model"]["answer"]
    assert answer["generated_text"].startswith(PROMPT)


def test_text_gen_model_on_sdk2(sagemaker2: Any) -> None:
    result = sagemaker2["text_gen_model"]
    assert result["text"]
    assert "".join(result["pieces"]) == result["text"]


@pytest.mark.full
@pytest.mark.parametrize("case", ["model_builder", "core_resources", "inference_component"])
def test_sdk3(case: str, sagemaker3: Any) -> None:
    (answer,) = sagemaker3[case]["answer"]
    assert answer["generated_text"].startswith(PROMPT)


@pytest.mark.full
def test_sdk3_lists_and_names_the_variant(sagemaker3: Any) -> None:
    assert sagemaker3["core_resources"]["listed"] == ["sdk3-core"]
    assert sagemaker3["core_resources"]["variant"] == "AllTraffic"


@pytest.mark.full
def test_text_gen_model_on_sdk3(sagemaker3: Any) -> None:
    result = sagemaker3["text_gen_model"]
    assert result["text"]
    assert "".join(result["pieces"]) == result["text"]
