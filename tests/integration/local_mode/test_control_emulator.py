"""The emulator as its users run it: one process with real containers, through restarts, kills and a wrong word."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import local_mode
from local_mode.cli import app
from local_mode.control.greeting import greeting
from local_mode.server_process import ServerFailed, ServerProcess

ROLE = "arn:aws:iam::123456789012:role/any"
QUICKLY = {"Delay": 0.2, "MaxAttempts": 300}
READY = r"AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=http://127\.0\.0\.1:(\d+)"
LOCAL = (sys.executable, "-m", "serving.cli", "local")


@contextmanager
def up(state_dir: Path, *options: str) -> Iterator[ServerProcess]:
    command = [*LOCAL, "up", "--port", "0", "--state-dir", str(state_dir), *options]
    with ServerProcess({**os.environ, "PYTHONUNBUFFERED": "1"}, command=command) as server:
        server.wait_log(READY, limit_s=60)
        yield server


def failed_up(*options: str) -> str:
    """What `up` says when it does not start."""
    ran = subprocess.run([*LOCAL, "up", *options], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 1
    return ran.stderr


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def deploy(sagemaker: Any, name: str) -> None:
    container = {"Image": "any", "Environment": {"HF_MODEL_ID": "demo", "DEVICE": "cpu", "NUM_THREADS": "1"}}
    sagemaker.create_model(ModelName=name, ExecutionRoleArn=ROLE, PrimaryContainer=container)
    variant = {
        "VariantName": "all",
        "ModelName": name,
        "InstanceType": "ml.m5.large",
        "InitialInstanceCount": 1,
    }
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    in_service(sagemaker, name)


def in_service(sagemaker: Any, name: str) -> None:
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=name, WaiterConfig=QUICKLY)


def answer(local: local_mode.LocalSession, name: str) -> bytes:
    body = b'{"inputs": "Once upon a time", "parameters": {"max_new_tokens": 4}}'
    reply = local.client("sagemaker-runtime").invoke_endpoint(
        EndpointName=name, ContentType="application/json", Body=body
    )
    content: bytes = reply["Body"].read()
    return content


def test_endpoints_come_back_after_an_end_and_after_a_kill(tmp_path: Path) -> None:
    with up(tmp_path):
        local = local_mode.session(state_dir=tmp_path)
        deploy(local.client("sagemaker"), "kept")
        first = answer(local, "kept")
        stopped = command("down", "--state-dir", str(tmp_path))
        assert (stopped.exit_code, stopped.stdout) == (0, f"stopped {local.url}\n")
    with pytest.raises(local_mode.NotRunning, match="local up"):
        local_mode.session(state_dir=tmp_path)
    with up(tmp_path) as server:
        local = local_mode.session(state_dir=tmp_path)
        in_service(local.client("sagemaker"), "kept")
        assert answer(local, "kept") == first
        os.kill(server.pid, 9)
        server.wait(30)
    with up(tmp_path):
        local = local_mode.session(state_dir=tmp_path)
        in_service(local.client("sagemaker"), "kept")
        assert answer(local, "kept") == first
        sagemaker = local.client("sagemaker")
        sagemaker.delete_endpoint(EndpointName="kept")
        sagemaker.get_waiter("endpoint_deleted").wait(EndpointName="kept", WaiterConfig=QUICKLY)
    assert "no endpoints" in command("ls", "--state-dir", str(tmp_path)).stdout


def test_what_it_prints_can_be_pasted(tmp_path: Path) -> None:
    with up(tmp_path) as server:
        url = local_mode.session(state_dir=tmp_path).url
        printed = greeting(url, region="us-east-1", state_dir=str(tmp_path), has_credentials=False)
        shell, _, python = printed.partition("import boto3\n")
        (tmp_path / "example.py").write_text("import boto3\n" + python)
        exports = "".join(line + "\n" for line in shell.splitlines() if line.startswith("export"))
        ran = subprocess.run(
            ["sh", "-c", f'{exports} exec "$0" "$1"', sys.executable, str(tmp_path / "example.py")],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        assert "generated_text" in ran.stdout
        assert ran.stdout not in server.log
        listed = command("ls", "--state-dir", str(tmp_path)).stdout
        assert listed.splitlines()[0] == f"emulator at {url}"
        assert listed.splitlines()[1].split() == ["demo", "InService"]
        assert "engine ready" in command("logs", "demo", "--state-dir", str(tmp_path)).stdout
        assert server.log.count("operation=CreateEndpoint ") == 1
        assert "POST /" not in server.log


def test_one_emulator_for_one_folder(tmp_path: Path) -> None:
    with up(tmp_path):
        url = local_mode.session(state_dir=tmp_path).url
        second = failed_up("--port", "0", "--state-dir", str(tmp_path))
        assert second.endswith("or give another --state-dir\n")
        assert url in second
        refused = command("reset", "--yes", "--state-dir", str(tmp_path))
        assert refused.exit_code == 1
        assert "local down" in refused.stderr
        taken = failed_up("--port", url.rpartition(":")[2], "--state-dir", str(tmp_path / "other"))
        assert "give another --port, or 0 for a free one" in taken
    (tmp_path / "mine.txt").write_text("not the emulator's")
    assert command("reset", "--yes", "--state-dir", str(tmp_path)).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_signal_is_a_clean_end(tmp_path: Path) -> None:
    with up(tmp_path) as server:
        server.terminate()
        assert server.wait(30) == 0


def test_wrong_words_are_told_at_once(tmp_path: Path) -> None:
    folder = ("--state-dir", str(tmp_path))
    assert "unknown fault 'nonsense'; there are" in failed_up("--port", "0", "--fault", "nonsense", *folder)
    assert "break-stream" in command("faults").stdout
    assert command("down", *folder).stdout == f"no emulator uses {tmp_path}\n"
    missing = command("logs", "nothing", *folder)
    assert (missing.exit_code, missing.stderr) == (
        1,
        "error: there is no log of nothing: `textgen-endpoint local ls` tells what there is\n",
    )


def test_a_missing_extra_is_named() -> None:
    hide = "import sys; sys.modules['uvicorn'] = None; from serving.cli import main; sys.argv[1:] = ['local', 'up']; main()"
    ran = subprocess.run(
        [sys.executable, "-c", hide], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 1
    assert ran.stderr == "error: uvicorn not installed: pip install 'textgen-endpoint[local]'\n"


def test_help_imports_no_server() -> None:
    heavy = ("starlette", "uvicorn", "httpx", "boto3")
    show = f"import sys, serving.cli; print([name for name in {heavy} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "[]\n"


def test_an_emulator_for_the_length_of_a_with() -> None:
    before = dict(os.environ)
    with local_mode.running(faults=["model-not-ready@nowhere"]) as local:
        assert local.client("sagemaker").list_endpoints()["Endpoints"] == []
        assert local.environment()["AWS_ENDPOINT_URL_SAGEMAKER"] == local.url
        assert local.boto3().client("s3").meta.endpoint_url != local.url
    assert dict(os.environ) == before


def test_one_that_does_not_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "resources.sqlite").write_bytes(b"no database" * 1000)
    with (
        pytest.raises(ServerFailed, match="cannot be read .*remove it, or use another state folder"),
        local_mode.running(state_dir=tmp_path),
    ):
        pass
