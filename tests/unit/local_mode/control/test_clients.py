"""What clients of the emulator are given, and what the environment says to it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

import local_mode
from local_mode import settings
from local_mode.control.state_folder import FolderTaken, Running, StateFolder, url_of

URL = "http://127.0.0.1:8090"


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_only_sagemaker_is_here() -> None:
    session = local_mode.session(port=8090).boto3()
    assert session.client("sagemaker").meta.endpoint_url == URL
    assert session.client("sagemaker-runtime").meta.endpoint_url == URL
    assert session.client("s3").meta.endpoint_url == "https://s3.amazonaws.com"
    assert session.client("sagemaker", endpoint_url="http://other").meta.endpoint_url == "http://other"
    assert session.get_credentials().access_key == "local"


def test_a_runtime_client_sends_once_and_waits() -> None:
    config = local_mode.session(port=8090).client("sagemaker-runtime").meta.config
    assert config.read_timeout >= 70
    assert config.retries["total_max_attempts"] == 1


def test_credentials_that_are_there_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    local = local_mode.session(port=8090)
    assert local.boto3().get_credentials().access_key == "mine"
    assert local.environment() == {
        "AWS_ENDPOINT_URL_SAGEMAKER": URL,
        "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": URL,
        "AWS_REGION": "eu-west-1",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "SAGEMAKER_VALIDATE_ROLE": "false",
    }


def test_without_credentials_made_up_ones_are_exported() -> None:
    environment = local_mode.session(port=8090).environment()
    assert environment["AWS_ACCESS_KEY_ID"] == environment["AWS_SECRET_ACCESS_KEY"] == "local"


def test_the_session_finds_the_emulator_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(local_mode.NotRunning, match="textgen-endpoint local up"):
        local_mode.session(state_dir=tmp_path)
    with StateFolder(tmp_path).taken(host="127.0.0.1", port=8090, region="eu-west-1"):
        assert local_mode.session(state_dir=tmp_path) == local_mode.LocalSession(URL, "eu-west-1")
    with pytest.raises(local_mode.NotRunning):
        local_mode.session(state_dir=tmp_path)


def test_a_folder_has_one_emulator(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "new")
    assert folder.running() is None
    with folder.taken(host="::1", port=1, region="r"):
        assert folder.running() == Running(pid=os.getpid(), host="::1", port=1, region="r")
        with (
            pytest.raises(FolderTaken, match=rf"at http://\[::1\]:1 \(process {os.getpid()}\) uses"),
            folder.taken(host="h", port=2, region="r"),
        ):
            pass
        assert folder.running() == Running(pid=os.getpid(), host="::1", port=1, region="r")
    assert folder.running() is None
    folder.clear()
    assert not folder.path.exists()


def test_whoever_only_looks_at_a_folder_does_not_keep_an_emulator_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = StateFolder(tmp_path)
    looking = os.open(tmp_path / "emulator.lock", os.O_RDONLY | os.O_CREAT)
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr(StateFolder, "running", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
    with folder.taken(host="h", port=1, region="r"):
        pass
    os.close(looking)


def test_a_reset_removes_model_data_without_write_permission(tmp_path: Path) -> None:
    sealed = tmp_path / "state" / "model-data" / "m-1" / "0"
    (sealed / "model").mkdir(parents=True)
    (sealed / "model" / "config.json").touch(0o444)
    (sealed / "model").chmod(0o555)
    StateFolder(tmp_path / "state").clear()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = StateFolder(tmp_path / "file" / "state")
    assert folder.running() is None
    with (
        pytest.raises(FolderTaken, match="file/state cannot be written .* give another --state-dir"),
        folder.taken(host="h", port=1, region="r"),
    ):
        pass


def test_addresses() -> None:
    assert url_of("127.0.0.1", 80) == "http://127.0.0.1:80"
    assert url_of("::1", 80) == "http://[::1]:80"


@pytest.mark.parametrize(
    ("environment", "state_dir"),
    [
        ({"HOME": "/home/me"}, "/home/me/.local/state/textgen-endpoint/local"),
        ({"HOME": "/home/me", "XDG_STATE_HOME": "/state"}, "/state/textgen-endpoint/local"),
        ({"HOME": "/home/me", "XDG_STATE_HOME": "state"}, "/home/me/.local/state/textgen-endpoint/local"),
    ],
)
def test_the_state_folder_is_the_users(environment: dict[str, str], state_dir: str) -> None:
    assert settings.default_state_dir(environment) == Path(state_dir)


@pytest.mark.parametrize(
    ("environment", "region"),
    [
        ({}, "us-east-1"),
        ({"AWS_DEFAULT_REGION": "eu-west-1"}, "eu-west-1"),
        ({"AWS_DEFAULT_REGION": "eu-west-1", "AWS_REGION": "eu-north-1"}, "eu-north-1"),
    ],
)
def test_the_region_is_the_environments(environment: dict[str, str], region: str) -> None:
    assert settings.default_region(environment) == region
