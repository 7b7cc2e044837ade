"""Downloads from the Hub, by the same process that PID 1 starts, against a Hub on the loopback interface."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from container.model_source import ModelFiles
from serving.config import Stage
from tests.unit.container.hub_server import COMMIT, REPO, FakeHub

MODEL = {
    "config.json": b"{}",
    "model.safetensors": b"w" * 50_000,
    "tokenizer.json": b'{"a": 1}',
    "chat_template.jinja": b"{{ x }}",
}
UNWANTED = {"pytorch_model.bin": b"pickle", "modeling.py": b"code", "original/weights.safetensors": b"again"}


@dataclass
class Fetched:
    returncode: int
    stages: list[Stage]
    files: ModelFiles | None
    output: str


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub({**MODEL, **UNWANTED}) as server:
        yield server


def fetch(hub: FakeHub, folder: Path, **environ: str) -> Fetched:
    reader, writer = os.pipe()
    run_dir = folder / "run"
    run_dir.mkdir(exist_ok=True)
    completed = subprocess.run(
        [
            sys.executable,
            "-W",
            "error::ResourceWarning",
            "-m",
            "container.fetch_model",
            "--run-dir",
            str(run_dir),
            "--stage-fd",
            str(writer),
        ],
        env={
            "PATH": os.environ["PATH"],
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_MODEL_ID": REPO,
            "SAGEMAKER_BASE_DIR": str(folder),
            **environ,
        },
        pass_fds=(writer,),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(writer)
    with open(reader, "rb") as stream:
        stages = [msgspec.json.decode(line, type=Stage) for line in stream]
    result = run_dir / "model.json"
    files = msgspec.json.decode(result.read_bytes(), type=ModelFiles) if result.exists() else None
    return Fetched(completed.returncode, stages, files, completed.stdout)


def test_one_commit_is_looked_up_and_every_file_comes_from_it(hub: FakeHub, tmp_path: Path) -> None:
    fetched = fetch(hub, tmp_path, HF_MODEL_REVISION="main", HF_TOKEN="hf_canary")
    assert fetched.returncode == 0, fetched.output
    assert fetched.files is not None
    folder = Path(fetched.files.model_dir)
    assert {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == MODEL
    assert fetched.files.revision == COMMIT
    assert fetched.stages[0] == Stage(stage="downloading", detail="0 %")
    assert fetched.stages[-1] == Stage(stage="downloading", detail="100 %")
    downloads = [path for path, _ in hub.requests if "/resolve/" in path]
    assert downloads and all(f"/resolve/{COMMIT}/" in path for path in downloads)
    assert all(token == "Bearer hf_canary" for _, token in hub.requests)
    assert "hf_canary" not in fetched.output


def test_a_cached_model_is_found_offline(hub: FakeHub, tmp_path: Path) -> None:
    first = fetch(hub, tmp_path)
    num_requests = len(hub.requests)
    second = fetch(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert first.files == second.files is not None
    assert len(hub.requests) == num_requests


def test_offline_without_a_cache(hub: FakeHub, tmp_path: Path) -> None:
    fetched = fetch(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert (fetched.returncode, hub.requests) == (1, [])
    assert "HF_HUB_OFFLINE is set" in fetched.stages[-1].detail


def test_a_passing_fault_is_tried_again(hub: FakeHub, tmp_path: Path) -> None:
    hub.faults[f"/api/models/{REPO}"] = [503]
    hub.faults[f"/api/models/{REPO}/revision/main"] = [503]
    fetched = fetch(hub, tmp_path)
    assert fetched.returncode == 0, fetched.output


@pytest.mark.parametrize(
    ("status", "environ", "said"),
    [
        (401, {}, "set HF_TOKEN if it is private"),
        (403, {"HF_TOKEN": "hf_canary"}, "HF_TOKEN may read it"),
        (404, {"HF_MODEL_REVISION": "gone"}, "revision gone does not exist"),
    ],
)
def test_refusals_are_one_line_with_the_fix(
    hub: FakeHub, tmp_path: Path, status: int, environ: dict[str, str], said: str
) -> None:
    if "HF_MODEL_REVISION" not in environ:
        for path in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/main"):
            hub.faults[path] = [status] * 9
    fetched = fetch(hub, tmp_path, **environ)
    assert fetched.returncode == 1
    failed = fetched.stages[-1]
    assert failed.stage == "failed" and said in failed.detail and "\n" not in failed.detail
    assert "hf_canary" not in failed.detail + fetched.output


def test_a_name_the_hub_does_not_know(hub: FakeHub, tmp_path: Path) -> None:
    fetched = fetch(hub, tmp_path, HF_MODEL_ID="nobody/nothing")
    assert "nobody/nothing: the Hub shows us no such model (404)" in fetched.stages[-1].detail


def test_weights_in_another_format_are_named(hub: FakeHub, tmp_path: Path) -> None:
    del hub.files["model.safetensors"]
    del hub.files["original/weights.safetensors"]
    fetched = fetch(hub, tmp_path)
    assert "lacks config.json or *.safetensors" in fetched.stages[-1].detail


def test_damaged_weights_are_refused_and_not_kept(hub: FakeHub, tmp_path: Path) -> None:
    hub.corrupt.add("model.safetensors")
    fetched = fetch(hub, tmp_path)
    assert fetched.returncode == 1
    assert "arrived with SHA-256" in fetched.stages[-1].detail
    hub.corrupt.clear()
    assert fetch(hub, tmp_path).returncode == 0


def test_a_connection_that_breaks_half_way(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut_once.add("model.safetensors")
    fetched = fetch(hub, tmp_path)
    assert fetched.returncode == 0, fetched.output
    assert fetched.files is not None
    assert (Path(fetched.files.model_dir) / "model.safetensors").read_bytes() == MODEL["model.safetensors"]


def test_the_token_does_not_follow_a_redirect_to_another_host(hub: FakeHub, tmp_path: Path) -> None:
    with FakeHub(MODEL) as storage:
        hub.elsewhere = storage.address
        fetched = fetch(hub, tmp_path, HF_TOKEN="hf_canary")
    assert fetched.returncode == 0, fetched.output
    assert storage.requests and {token for _, token in storage.requests} == {""}
