"""SageMaker, S3 and STS on this machine, and client programs that run against them in an SDK's own environment.

The emulator is the command a user types; S3, STS, IAM and Logs are moto's server. Programs are told where everything
is by environment variables alone, as unmodified clients are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from local_mode.server_process import ServerProcess

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).with_name("programs")
REGION = "us-east-1"
ROLE = "arn:aws:iam::123456789012:role/textgen"
IMAGE = f"123456789012.dkr.ecr.{REGION}.amazonaws.com/textgen-endpoint:latest"
BUCKET = "textgen-models"
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
SDK_CONFIG = """\
SchemaVersion: "1.0"
SageMaker:
  PythonSDK:
    Modules:
      TelemetryOptOut: true
"""
PROGRAM_LIMIT_S = 240.0


def interpreter(line: str) -> str:
    """Python of an SDK line's environment, or this one for "boto3"."""
    if line == "boto3":
        return sys.executable
    python = ROOT / f".venv-{line}" / "bin" / "python"
    if not (python.parents[1] / ".made-from").is_file():
        pytest.fail(f"there is no environment {python.parents[1].name}; make it with: make sdk-environments")
    return str(python)


@dataclass(frozen=True)
class Program:
    """A client program that has been started. It prints one JSON object in its last line."""

    process: subprocess.Popen[str]
    log: Path

    def result(self, limit_s: float = PROGRAM_LIMIT_S) -> Any:
        """What it printed. Fails the test when the program failed."""
        try:
            output, _ = self.process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            self.end()
            pytest.fail(f"{self.process.args} took more than {limit_s} s:\n{self.log.read_text()[-6000:]}")
        if self.process.returncode != 0:
            pytest.fail(f"{self.process.args} failed:\n{output[-3000:]}\n{self.log.read_text()[-6000:]}")
        return json.loads(output.strip().splitlines()[-1])

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@dataclass(frozen=True)
class Aws:
    """The two servers, and the environment of a client that is to use them."""

    sagemaker_url: str
    moto_url: str
    environment: Mapping[str, str]
    folder: Path
    model_archive: Path
    """The demo model as model.tar.gz; also s3://BUCKET/archive/model.tar.gz, and unpacked at s3://BUCKET/files/."""
    clients: dict[str, Any] = field(default_factory=dict)
    """Those made so far: to read a service's model takes longer than most tests."""

    def client(self, service: str) -> Any:
        if service not in self.clients:
            self.clients[service] = self._new_client(service)
        return self.clients[service]

    def _new_client(self, service: str) -> Any:
        url = self.sagemaker_url if service.startswith("sagemaker") else self.moto_url
        session = boto3.session.Session("test", "test", region_name=REGION)
        config = Config(retries={"total_max_attempts": 1}, read_timeout=70)
        return session.client(service, endpoint_url=url, config=config)

    def start(self, program: str | Path, *arguments: str, line: str = "boto3", **environment: str) -> Program:
        """`program` is a file of programs/, or a path."""
        path = PROGRAMS / program
        log = self.folder / f"{path.stem}-{os.urandom(4).hex()}.log"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [interpreter(line), str(path), *arguments],
                env={**self.environment, **environment},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        return Program(process, log)


@pytest.fixture(scope="session")
def model_archive(demo_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "model.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name in MODEL_FILES:
            archive.add(demo_model_dir / name, arcname=name)
    return path


@pytest.fixture(scope="session")
def client_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What every client gets, wherever its endpoints are; nothing of the machine's own AWS settings."""
    home = tmp_path_factory.mktemp("home")
    (home / "sagemaker.yaml").write_text(SDK_CONFIG)
    leak_tag = {name: value for name, value in os.environ.items() if name == "PYTEST_LEAK_TAG"}
    return {
        **leak_tag,
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "NUM_THREADS": "1",
        "DEVICE": "cpu",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "SAGEMAKER_USER_CONFIG_OVERRIDE": str(home / "sagemaker.yaml"),
        "SAGEMAKER_SUPPRESS_V2_WARNING": "1",
        "SAGEMAKER_VALIDATE_ROLE": "false",
    }


@pytest.fixture(scope="session")
def moto_url(demo_model_dir: Path, model_archive: Path) -> Iterator[str]:
    """S3, STS, IAM and Logs, with the demo model in a bucket; a process of its own, since `mock_aws` in any test of
    this process empties moto's accounts."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with ServerProcess(os.environ, command=command) as server:
        url = server.wait_log(r"Running on (http://127\.0\.0\.1:\d+)", limit_s=60.0)[1]
        s3 = boto3.session.Session("test", "test", region_name=REGION).client("s3", endpoint_url=url)
        s3.create_bucket(Bucket=BUCKET)
        s3.upload_file(str(model_archive), BUCKET, "archive/model.tar.gz")
        for name in MODEL_FILES:
            s3.upload_file(str(demo_model_dir / name), BUCKET, f"files/{name}")
        s3.close()
        yield url


@pytest.fixture(scope="session")
def aws(
    moto_url: str,
    model_archive: Path,
    client_environment: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Aws]:
    folder = tmp_path_factory.mktemp("sagemaker")
    environment = {**client_environment, "AWS_ENDPOINT_URL": moto_url}
    command = [sys.executable, "-m", "serving.cli", "local", "up", "--port", "0"]
    command += ["--state-dir", str(folder / "state")]
    with ServerProcess(environment, command=command) as emulator:
        url = emulator.wait_log(r"\bAWS_ENDPOINT_URL_SAGEMAKER=(\S+)", limit_s=60.0)[1]
        redirected = {"AWS_ENDPOINT_URL_SAGEMAKER": url, "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": url}
        aws = Aws(url, moto_url, {**environment, **redirected}, folder, model_archive)
        yield aws
        for client in aws.clients.values():
            client.close()


@dataclass(frozen=True)
class Endpoint:
    """An endpoint of one variant on one model, made with boto3; all three carry one name."""

    name: str
    started_s: float

    def describe(self, aws: Aws) -> Any:
        return aws.client("sagemaker").describe_endpoint(EndpointName=self.name)


def create_endpoint(
    aws: Aws, name: str, *, container: Mapping[str, Any] | None = None, **config: Any
) -> Endpoint:
    """Does not wait. `container` is merged into the PrimaryContainer, `config` into the endpoint configuration."""
    sagemaker = aws.client("sagemaker")
    environment = {"HF_MODEL_ID": "demo", "DEVICE": "cpu", "NUM_THREADS": "1"}
    primary = {"Image": IMAGE, "Environment": environment, **(container or {})}
    sagemaker.create_model(ModelName=name, ExecutionRoleArn=ROLE, PrimaryContainer=primary)
    create_config(aws, name, model=name, **config)
    started_s = time.monotonic()
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    return Endpoint(name, started_s)


def create_config(
    aws: Aws, name: str, *, model: str, variant: Mapping[str, Any] | None = None, **config: Any
) -> None:
    variants = [
        {
            "VariantName": "AllTraffic",
            "ModelName": model,
            "InitialInstanceCount": 1,
            "InstanceType": "ml.g5.xlarge",
            **(variant or {}),
        }
    ]
    aws.client("sagemaker").create_endpoint_config(
        EndpointConfigName=name, ProductionVariants=variants, **config
    )


def wait_in_service(aws: Aws, name: str) -> None:
    """The waiter as users call it, polled faster. Raises `WaiterError`."""
    waiter = aws.client("sagemaker").get_waiter("endpoint_in_service")
    waiter.wait(EndpointName=name, WaiterConfig={"Delay": 0.2, "MaxAttempts": 450})


def delete_endpoint(aws: Aws, name: str) -> None:
    """The endpoint and what `create_endpoint` made with it; returns when it is gone."""
    sagemaker = aws.client("sagemaker")
    sagemaker.delete_endpoint(EndpointName=name)
    waiter = sagemaker.get_waiter("endpoint_deleted")
    waiter.wait(EndpointName=name, WaiterConfig={"Delay": 0.2, "MaxAttempts": 200})
    sagemaker.delete_endpoint_config(EndpointConfigName=name)
    sagemaker.delete_model(ModelName=name)
