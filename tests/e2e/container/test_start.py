"""Starts: the platform's argument and none, variables that are empty, and those that must fail in one line."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from local_mode.server_process import SERVE_COMMAND, ServerFailed, ServerProcess
from tests.e2e.conftest import LIMIT_S, serving, story
from tests.e2e.container.conftest import CONTRACT_NAMES
from tests.e2e.container.host import obedient
from tests.e2e.native_calls import ask

ENTRY = [sys.executable, "-m", "container.entrypoint"]
Mounted = tuple[dict[str, str], Path]


def failing(environment: dict[str, str], command: Sequence[str] = SERVE_COMMAND, **settings: str) -> str:
    """The one line that a start ends with."""
    with ServerProcess({**environment, **settings}, command=command) as server:
        with pytest.raises(ServerFailed):
            server.wait_log("never printed", limit_s=LIMIT_S)
        assert server.wait(LIMIT_S) == 1
        lines = server.log.splitlines()
    assert " ERROR container failed " in lines[-1] and "Traceback" not in server.log
    assert len(lines[-1]) < 1024
    return lines[-1]


def test_the_argument_is_serve_or_nothing(container: ServerProcess, by_hand: ServerProcess) -> None:
    assert list(SERVE_COMMAND) == [*ENTRY, "serve"]
    for server in (container, by_hand):
        assert server.ping()[0] == 200


def test_train_is_refused(mounted: Mounted) -> None:
    refused = subprocess.run(
        [*ENTRY, "train"], env=mounted[0], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert refused.returncode == 1
    (line,) = (refused.stdout + refused.stderr).splitlines()
    assert "'train'; allowed: serve, or nothing" in line


def test_empty_variables_are_unset_ones(by_hand: ServerProcess) -> None:
    """The SDK sends SAGEMAKER_PROGRAM="" and others; all of the contract's are there and empty."""
    assert len(CONTRACT_NAMES) > 75
    set_by = re.findall(r" container setting +\S+ +\S+ +from (\S+)", by_hand.log)
    assert sorted(set_by) == ["DEVICE", "HOSTNAME", "MODEL_ID", "NUM_THREADS", "PORT"]
    assert not re.search(r" WARNING ", by_hand.log)
    assert ask(by_hand, "POST", "/invocations", story(4)).status == 200


def test_no_variables_at_all_name_what_to_set(mounted: Mounted, tmp_path: Path) -> None:
    bare = {name: text for name, text in mounted[0].items() if name in ("PATH", "PYTEST_LEAK_TAG")}
    line = failing(bare, SAGEMAKER_BASE_DIR=str(tmp_path))
    assert "HF_MODEL_ID unset" in line and "set HF_MODEL_ID to a Hub id" in line


def test_starts_that_must_not_happen(mounted: Mounted, tmp_path: Path) -> None:
    environment, base = mounted
    assert "inference component" in failing(environment, SAGEMAKER_MULTI_MODEL="true")
    conflict = failing(environment, SM_NUM_GPUS="1", OPTION_TENSOR_PARALLEL_DEGREE="2")
    assert "SM_NUM_GPUS=1 and OPTION_TENSOR_PARALLEL_DEGREE=2 are one setting" in conflict
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "weights.pkl").touch()
    secured = failing(
        environment,
        SAGEMAKER_SECURE_MODE="true",
        SAGEMAKER_SECURITY_CONTROLS="DISALLOW_PICKLE_FILES",
        SAGEMAKER_UNTRUSTED_CHANNELS=f"{base / 'model'},{tmp_path / 'extra'}",
    )
    assert "DISALLOW_PICKLE_FILES" in secured and "weights.pkl" in secured
    offline = {"SAGEMAKER_BASE_DIR": str(tmp_path), "HF_HOME": str(tmp_path), "HF_MODEL_ID": "owner/name"}
    named = failing(environment, **offline, HF_HUB_OFFLINE="1")
    assert "owner/name" in named and "HF_HUB_OFFLINE" in named


def test_values_that_operators_get_wrong(mounted: Mounted, tmp_path: Path, full: bool) -> None:
    environment, _ = mounted
    nowhere = {"SAGEMAKER_BASE_DIR": str(tmp_path)}
    wrong: tuple[tuple[dict[str, str], str], ...] = (
        ({"API_WORKERS": "100000"}, "API_WORKERS=100000 is not valid"),
        ({"NUM_THREADS": "100000"}, "NUM_THREADS=100000 is not valid"),
        ({"SM_NUM_GPUS": "999"}, "SM_NUM_GPUS"),
        ({"MAX_TOTAL_TOKENS": "999999"}, "MAX_TOTAL_TOKENS"),
        ({"MODEL_ID": "x" * 1024}, "MODEL_ID"),
        ({**nowhere, "HF_MODEL_ID": "x" * 1024}, "HF_MODEL_ID"),
        ({"SAGEMAKER_BASE_DIR": "/" + "x" * 1024}, "SAGEMAKER_BASE_DIR"),
        ({"SAGEMAKER_PROGRAM": "x" * 1024}, "SAGEMAKER_PROGRAM"),
        ({"MAX_BEST_OF": '{"a": ' * 170}, "MAX_BEST_OF"),
        ({"QUANTIZE": "q" * 1024}, "QUANTIZE"),
        ({"MAX_BEST_OF": "1\n2"}, "MAX_BEST_OF"),
    )
    for settings, told in wrong if full else wrong[2:5]:
        assert told in failing(environment, **settings), settings


def test_a_model_folder_that_cannot_be_read(
    mounted: Mounted, endless_model_dir: Path, tmp_path: Path
) -> None:
    """Whoever else it belongs to: the line names the file, and is not about what the file might be."""
    model = tmp_path / "model"
    shutil.copytree(endless_model_dir, model)
    settings, command = {"SAGEMAKER_BASE_DIR": str(tmp_path)}, [*obedient(), *SERVE_COMMAND]
    for name in ("tokenizer.json", "config.json", "model.safetensors"):
        (model / name).chmod(0)
        line = failing(mounted[0], command, **settings)
        assert f"{model / name}: Permission denied" in line and "must be readable" in line
        (model / name).chmod(0o644)
    model.chmod(0)
    try:
        assert "Permission denied" in failing(mounted[0], command, **settings)
    finally:
        model.chmod(0o755)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to("../blobs/0123")
    assert "a link that leads nowhere" in failing(mounted[0], **settings)


def test_an_archive_brings_its_own_settings(
    endless_model_dir: Path, mounted: Mounted, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    properties = tmp_path / "serving.properties"
    # LMI's own examples name the folder that the properties lie in.
    properties.write_text(
        f"engine=Python\noption.model_id={tmp_path / 'model'}\noption.max_model_len=96\n"
        "option.served_model_name=archived\n"
    )
    with tarfile.open(tmp_path / "model" / "model.tar.gz", "w:gz") as archive:
        for path in (*endless_model_dir.iterdir(), properties):
            archive.add(path, path.name)
    with serving(mounted[0], SAGEMAKER_BASE_DIR=str(tmp_path), HF_HOME=str(tmp_path / "cache")) as server:
        assert re.search(r"limits\.max_total_tokens +96 +from option\.max_model_len in ", server.log)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT_S)
        connection.request("GET", "/info")
        assert json.loads(connection.getresponse().read())["max_total_tokens"] == 96
        chat = {"model": "archived", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(chat), {"content-type": "application/json"}
        )
        assert connection.getresponse().status == 200
        connection.close()
