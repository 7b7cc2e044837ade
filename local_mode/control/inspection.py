"""What a state folder tells without asking the emulator: endpoints, and the logs of their containers. Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from pathlib import Path

from local_mode.control.arns import Arns
from local_mode.control.resources import FILE_NAME, SqliteResources
from local_mode.control.state_folder import StateFolder

_POLL_S = 0.2
_GROUPS = ("aws/sagemaker/Endpoints", "aws/sagemaker/InferenceComponents")


def status_lines(state_dir: Path) -> Iterator[str]:
    """A table of endpoints and, indented below each, its components. Raises `StateUnreadable`."""
    running = StateFolder(state_dir).running()
    yield (
        f"emulator at {running.url}" if running else f"no emulator uses {state_dir}: states are the last ones"
    )
    if not (state_dir / FILE_NAME).is_file():
        yield "no endpoints"
        return
    resources = SqliteResources(state_dir, Arns(running.region if running else ""))
    try:
        endpoints = resources.all("endpoint")
        components = resources.all("inference-component")
    finally:
        resources.close()
    if not endpoints:
        yield "no endpoints"
    for endpoint in endpoints:
        name = endpoint["EndpointName"]
        yield _row(name, endpoint["EndpointStatus"], endpoint.get("FailureReason", ""))
        for component in components:
            if component["EndpointName"] == name:
                yield _row(
                    f"  {component['InferenceComponentName']}",
                    component["InferenceComponentStatus"],
                    component.get("FailureReason", ""),
                )


def log_lines(logs: Path, name: str, *, follow: bool) -> Generator[str, None, None]:
    """Lines of all containers of an endpoint or component, file by file; with `follow` then as they come, for ever."""
    read_bytes: dict[Path, int] = {}
    while True:
        paths = sorted(path for group in _GROUPS for path in (logs / group / name).rglob("*.log"))
        for path in paths:
            prefix = f"[{path.relative_to(logs).with_suffix('')}] " if len(paths) > 1 else ""
            for line in _new_lines(path, read_bytes, whole=follow):
                yield prefix + line
        if not follow:
            return
        time.sleep(_POLL_S)


def _new_lines(path: Path, read_bytes: dict[Path, int], *, whole: bool) -> Iterator[str]:
    """What was added since the last time; with `whole` only as far as the last line's end."""
    start = read_bytes.get(path, 0)
    with path.open("rb") as file:
        if file.seek(0, 2) < start:  # it was rotated
            start = 0
        file.seek(start)
        content = file.read()
    if whole:
        content = content[: content.rfind(b"\n") + 1]
    read_bytes[path] = start + len(content)
    yield from content.decode("utf-8", "replace").splitlines()


def _row(name: str, status: str, reason: str) -> str:
    return f"{name:<40} {status:<12} {reason}".rstrip()
