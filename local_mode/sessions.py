"""Clients of a running emulator, and an emulator for the length of a `with`. Leaves this process's environment alone."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_mode import settings
from local_mode.control.state_folder import StateFolder
from local_mode.server_process import ServerProcess

DEFAULT_BUCKET = "textgen-endpoint-local"

_OURS = ("sagemaker", "sagemaker-runtime")
_DUMMY = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}
# A long generation must not be cut by the client before the platform does it, nor be sent three times.
_RUNTIME_READ_TIMEOUT_S = 70


class NotRunning(Exception):
    """There is no emulator to talk to. The message says how to start one."""


@dataclass(frozen=True, slots=True)
class LocalSession:
    """One emulator as clients see it."""

    url: str
    region: str

    def boto3(self) -> Any:
        """A `boto3.Session` whose SageMaker clients talk to the emulator; those of other services are as ever.

        Without credentials in the environment it signs with made-up ones: the emulator does not look.
        """
        import boto3

        url = self.url

        class Session(boto3.Session):  # type: ignore[misc]
            def client(self, service_name: str, *args: Any, **kwargs: Any) -> Any:
                if service_name in _OURS:
                    kwargs.setdefault("endpoint_url", url)
                return super().client(service_name, *args, **kwargs)

        has_credentials = settings.has_credentials(settings.process_environment())
        keys = {} if has_credentials else {name.lower(): value for name, value in _DUMMY.items()}
        return Session(region_name=self.region, **keys)

    def client(self, service: str, **kwargs: Any) -> Any:
        """A boto3 client. Runtime clients wait as long as the platform does and send each request once."""
        if service == "sagemaker-runtime" and "config" not in kwargs:
            from botocore.config import Config

            kwargs["config"] = Config(
                read_timeout=_RUNTIME_READ_TIMEOUT_S, retries={"total_max_attempts": 1}, tcp_keepalive=True
            )
        return self.boto3().client(service, **kwargs)

    def sagemaker2(self, *, default_bucket: str = DEFAULT_BUCKET) -> Any:
        """A `sagemaker.Session` of SDK 2.x. A bucket is named because to find one it would ask STS at Amazon."""
        sagemaker = importlib.import_module("sagemaker")  # in an environment of its own, where SDK 3 is not
        return sagemaker.Session(
            boto_session=self.boto3(),
            sagemaker_client=self.client("sagemaker"),
            sagemaker_runtime_client=self.client("sagemaker-runtime"),
            default_bucket=default_bucket,
        )

    def environment(self) -> dict[str, str]:
        """Variables for a process that shall talk to the emulator with no change of its code, as SDK 3.x must."""
        variables = {f"AWS_ENDPOINT_URL_{service.replace('-', '_').upper()}": self.url for service in _OURS}
        variables |= {"AWS_REGION": self.region, "AWS_DEFAULT_REGION": self.region}
        variables["SAGEMAKER_VALIDATE_ROLE"] = "false"  # SDK 3 would ask IAM
        return variables if settings.has_credentials(settings.process_environment()) else variables | _DUMMY


def session(*, port: int | None = None, state_dir: Path | str | None = None) -> LocalSession:
    """The emulator at a port of this machine, or the one that uses a state folder (by default the user's own).

    Raises `NotRunning`, but with `port`, which is taken as it is.
    """
    environment = settings.process_environment()
    if port is not None:
        return LocalSession(f"http://127.0.0.1:{port}", settings.default_region(environment))
    folder = StateFolder(Path(state_dir) if state_dir else settings.default_state_dir(environment))
    running = folder.running()
    if running is None:
        raise NotRunning(f"no emulator uses {folder.path}: start one with `textgen-endpoint local up`")
    return LocalSession(running.url, running.region)


@contextlib.contextmanager
def running(
    *,
    port: int = 0,
    state_dir: Path | str | None = None,
    faults: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
) -> Iterator[LocalSession]:
    """An emulator in a child process; with its containers it has ended when the block is left.

    Without `state_dir` nothing of it is left either. `environment` replaces this process's; `options` are further
    ones of `textgen-endpoint local up`. Raises `ServerFailed`.
    """
    folder = Path(state_dir) if state_dir else Path(tempfile.mkdtemp(prefix="textgen-local-"))
    command = [
        sys.executable,
        "-m",
        "local_mode.cli",
        "up",
        "--port",
        str(port),
        "--state-dir",
        str(folder),
        *options,
    ]
    for fault in faults:
        command += ["--fault", fault]
    given = settings.process_environment() if environment is None else environment
    try:
        with ServerProcess({**given, "PYTHONUNBUFFERED": "1"}, command=command) as server:
            server.wait_log("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=", limit_s=60.0)
            yield session(state_dir=folder)
    finally:
        if state_dir is None:
            shutil.rmtree(folder, ignore_errors=True)
