"""The commands `textgen-endpoint local …`. Imports of the server happen when a command runs, so that `--help` is quick."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from local_mode import settings

app = typer.Typer(
    name="local",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""SageMaker hosting on this machine: the control plane, the runtime API and real containers.

\b
Examples:
  textgen-endpoint local up
  textgen-endpoint local ls
  textgen-endpoint local logs my-endpoint -f
  textgen-endpoint local down""",
)

_EXTRA = ("starlette", "uvicorn", "httpx", "boto3")
_STOP_LIMIT_S = 60.0

StateDir = Annotated[
    Path | None,
    typer.Option(help="Where resources, logs and model files are kept.", show_default="in XDG_STATE_HOME"),
]


@app.command()
def up(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = settings.DEFAULT_PORT,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    state_dir: StateDir = None,
    backend: Annotated[
        settings.BackendName, typer.Option(help="What runs containers: child processes or Docker.")
    ] = "auto",
    region: Annotated[
        str | None, typer.Option(help="Of ARNs and log names.", show_default="AWS_REGION or us-east-1")
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            help="Break invocations on purpose: NAME[=VALUE][@ENDPOINT][%PROBABILITY]; again for more. "
            "See `textgen-endpoint local faults`."
        ),
    ] = None,
) -> None:
    """Start the emulator; Ctrl-C stops it and its containers. Endpoints come back with the next start.

    \b
    Examples:
      textgen-endpoint local up
      textgen-endpoint local up --port 0 --state-dir ./state
      textgen-endpoint local up --fault latency=300 --fault break-stream=2@chat%10
      textgen-endpoint local up --backend docker

    \b
    Then, in the shell of the client:
      export AWS_ENDPOINT_URL_SAGEMAKER=http://127.0.0.1:8090
      export AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=http://127.0.0.1:8090
    """
    _need_extra()
    from local_mode.control.emulator import EmulatorFailed, run

    environment = settings.process_environment()
    chosen = settings.Settings(
        state_dir=_state_dir(state_dir),
        region=region or settings.default_region(environment),
        backend=backend,
        faults=tuple(fault or ()),
        environment=environment,
    )
    try:
        run(chosen, host=host, port=port, say=typer.echo)
    except EmulatorFailed as error:
        raise _failed(str(error)) from error


@app.command()
def down(state_dir: StateDir = None) -> None:
    """Stop the emulator that uses a state folder, and its containers."""
    from local_mode.control.state_folder import StateFolder

    folder = StateFolder(_state_dir(state_dir))
    running = folder.running()
    if running is None:
        typer.echo(f"no emulator uses {folder.path}")
        return
    os.kill(running.pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_LIMIT_S
    while folder.running() is not None:
        if time.monotonic() > deadline:
            raise _failed(f"process {running.pid} has not ended within {_STOP_LIMIT_S:g} s")
        time.sleep(0.05)
    typer.echo(f"stopped {running.url}")


@app.command("ls")
def list_endpoints(state_dir: StateDir = None) -> None:
    """List endpoints and inference components with their status."""
    from local_mode.control.inspection import status_lines
    from local_mode.control.resources import StateUnreadable

    try:
        for line in status_lines(_state_dir(state_dir)):
            typer.echo(line)
    except StateUnreadable as error:
        raise _failed(str(error)) from error


@app.command()
def logs(
    endpoint: Annotated[str, typer.Argument(help="An endpoint, or an inference component.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is added.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Print what the containers of an endpoint have printed.

    \b
    Examples:
      textgen-endpoint local logs my-endpoint
      textgen-endpoint local logs my-endpoint -f
    """
    from local_mode.control.inspection import log_lines
    from local_mode.control.state_folder import StateFolder

    found = False
    try:
        for line in log_lines(StateFolder(_state_dir(state_dir)).logs, endpoint, follow=follow):
            found = True
            typer.echo(line)
    except KeyboardInterrupt as interrupt:
        raise typer.Exit(130) from interrupt
    if not found:
        raise _failed(f"there is no log of {endpoint}: `textgen-endpoint local ls` tells what there is")


@app.command()
def reset(
    state_dir: StateDir = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Forget all resources, logs and model files of a state folder."""
    from local_mode.control.state_folder import FolderTaken, StateFolder

    folder = StateFolder(_state_dir(state_dir))
    if not yes:
        typer.confirm(f"remove all endpoints, models and logs in {folder.path}?", abort=True)
    try:
        folder.clear()
    except FolderTaken as error:
        raise _failed(str(error)) from error


@app.command("docker-stand-in")
def docker_stand_in(
    folder: Annotated[
        Path | None, typer.Argument(help="Where to put it.", show_default="in this Python environment")
    ] = None,
) -> None:
    """Print a folder with an executable `docker` for the SDKs' instance_type="local" where there is no Docker.

    \b
    Example:
      PATH=$(textgen-endpoint local docker-stand-in):$PATH python deploy.py
    """
    from local_mode.docker_stand_in import install

    try:
        typer.echo(install(folder.absolute() if folder else None))
    except OSError as error:
        raise _failed(f"{error}: name a folder that can be written to") from error


@app.command()
def faults() -> None:
    """Tell what `local up --fault` can break."""
    _need_extra()
    from local_mode.runtime import SYNTAX_HELP, faults_help

    typer.echo(f"--fault {SYNTAX_HELP}\n\n{faults_help()}")


def _state_dir(given: Path | None) -> Path:
    return given.absolute() if given else settings.default_state_dir(settings.process_environment())


def _need_extra() -> None:
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise _failed(f"{', '.join(missing)} not installed: pip install 'textgen-endpoint[local]'")


def _failed(message: str) -> typer.Exit:
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(1)


if __name__ == "__main__":
    sys.exit(app())
