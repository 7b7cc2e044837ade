"""The process that downloads or unpacks a model for PID 1, so that no network library runs inside it.

Writes `Stage` lines to the given descriptor and, at the end, `model.json` into the run directory.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType

import msgspec

from container.archive import unpack
from container.environment import Environment, process_environment
from container.folders import cache_folder
from container.model_source import MODEL_FILES_FILE, ModelFiles, ModelSource, model_folder
from container.plan import make_plan
from container.progress import Report
from serving import logs
from serving.config import Stage
from serving.errors import ModelError, StartupError


def fetch(source: ModelSource, environment: Environment, report: Report) -> ModelFiles:
    """A local folder with the model of `source`. Raises `StartupError` that says what to do."""
    if source.kind == "local":
        return ModelFiles(model_dir=source.location)
    if source.kind == "hub":
        from container.hub_source import fetch_hub

        token = environment.hf_token
        return fetch_hub(
            source.location,
            revision=environment.config.model.revision,
            token=token.reveal() if token else None,
            cache=None if environment.hf_home_chosen else cache_folder(environment.caches) / "hub",
            report=report,
        )
    cache = cache_folder(environment.caches)
    if source.kind == "s3":
        from container.s3_source import fetch_s3

        return ModelFiles(model_dir=str(fetch_s3(source.location, cache, report)))
    folder = model_folder(unpack(Path(source.location), cache, report))
    if folder is None:
        raise ModelError(f"{source.location} holds no config.json; pack a model in Hugging Face format")
    return ModelFiles(model_dir=str(folder))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--stage-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _leave)

    def report(stage: Stage) -> None:
        os.write(options.stage_fd, msgspec.json.encode(stage) + b"\n")

    try:
        plan = make_plan(process_environment())
        environment = plan.environment
        runtime = environment.config.runtime
        logs.configure("download", level=runtime.log_level, json_output=runtime.json_logs)
        files = fetch(plan.source, environment, report)
    except StartupError as error:
        report(Stage(stage="failed", detail=error.message))
        return 1
    (options.run_dir / MODEL_FILES_FILE).write_bytes(msgspec.json.encode(files))
    return 0


def _leave(_number: int, _frame: FrameType | None) -> None:
    """Unwind, so that half-filled folders are removed."""
    raise SystemExit(1)


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except SystemExit:
        code = 1
    sys.stdout.flush()
    os._exit(code)  # download threads must not keep a finished process
