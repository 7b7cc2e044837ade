"""The examples as they are: the environment alone sends them to the emulator."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from local_mode import docker_stand_in
from tests.sagemaker.conftest import (
    BUCKET,
    IMAGE,
    ROLE,
    ROOT,
    Aws,
    create_endpoint,
    delete_endpoint,
    interpreter,
    wait_in_service,
)
from tests.sagemaker.test_docker_stand_in import free_port

EXAMPLES = ROOT / "examples" / "sagemaker"
SETTINGS = {"TEXTGEN_IMAGE": IMAGE, "SAGEMAKER_ROLE": ROLE, "SAGEMAKER_BUCKET": BUCKET}


def run(aws: Aws, name: str, *arguments: str, line: str = "boto3", **environment: str) -> str:
    """What the example prints. Fails the test when it fails."""
    program = aws.start(
        EXAMPLES / name, *arguments, line=line, **{**SETTINGS, "PYTHONPATH": str(ROOT), **environment}
    )
    output, _ = program.process.communicate(timeout=240)
    assert program.process.returncode == 0, f"{name}:\n{output[-2000:]}\n{program.log.read_text()[-4000:]}"
    return output


def test_every_example_is_run_here() -> None:
    here = Path(__file__).read_text()
    names = [path.name for path in EXAMPLES.glob("*.py")]
    assert names and [name for name in names if f'"{name}"' not in here] == []


def test_deploy_with_boto3(aws: Aws) -> None:
    assert len(run(aws, "deploy_boto3.py").strip()) > 20
    assert aws.client("sagemaker").list_models(NameContains="textgen-boto3-example")["Models"] == []


@pytest.fixture(scope="module")
def endpoint(aws: Aws) -> Iterator[str]:
    made = create_endpoint(aws, "for-examples")
    wait_in_service(aws, made.name)
    yield made.name
    delete_endpoint(aws, made.name)


@pytest.mark.full
def test_stream_with_boto3(aws: Aws, endpoint: str) -> None:
    assert len(run(aws, "stream_boto3.py", endpoint, "Tell me a story.").strip()) > 20


@pytest.mark.full
def test_asynchronous_inference(aws: Aws) -> None:
    lines = run(aws, "async_inference.py", AWS_ENDPOINT_URL_S3=aws.moto_url).splitlines()
    assert len([line for line in lines if line.startswith(f"s3://{BUCKET}/answers/")]) == 3


def test_local_first(aws: Aws, client_environment: Mapping[str, str]) -> None:
    """By itself: no variable points anywhere."""
    environment = {**client_environment, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [interpreter("boto3"), str(EXAMPLES / "local_first.py")],
        env=environment,
        cwd=aws.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(done.stdout.strip()) > 20


@pytest.mark.full
def test_deploy_with_sdk2(aws: Aws) -> None:
    output = run(aws, "deploy_sagemaker2.py", line="sagemaker2")
    assert "Once upon a time" in output
    assert output.count("\ndata:") > 5


@pytest.mark.full
def test_deploy_with_sdk3(aws: Aws) -> None:
    output = run(aws, "deploy_sagemaker3.py", line="sagemaker3")
    assert "Once upon a time" in output


@pytest.mark.full
def test_local_mode_of_sdk2_without_docker(aws: Aws, model_archive: Path, tmp_path: Path) -> None:
    stand_in = docker_stand_in.install(tmp_path / "bin")
    shutil.copy(model_archive, tmp_path)
    output = run(
        aws,
        "local_docker_stand_in.py",
        f"file://{tmp_path}/model.tar.gz",
        line="sagemaker2",
        PATH=f"{stand_in}{os.pathsep}{aws.environment['PATH']}",
        PORT=str(free_port()),
    )
    assert "generated_text" in output
