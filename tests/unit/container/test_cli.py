"""The command line: flags from the table, help that teaches, errors in one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from container import entrypoint, variables
from serving import cli
from serving.version import VERSION


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The environments that `serve` would have started the container with."""
    started: list[dict[str, str]] = []

    def run(argv: Sequence[str], environ: Mapping[str, str], programs: Any = None) -> int:
        assert list(argv) == ["serve"]
        started.append(dict(environ))
        return 7

    monkeypatch.setattr(entrypoint, "main", run)
    monkeypatch.setattr(cli, "process_environment", lambda: {"SM_NUM_GPUS": "8", "PATH": "/bin"})
    return started


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments)


def test_version() -> None:
    assert invoke("--version").output == f"{VERSION}\n"


def test_serve_lays_flags_over_the_environment(served: list[dict[str, str]]) -> None:
    result = invoke("serve", "--model-id", "demo", "--num-shard", "2", "--json-output", "--no-prefix-caching")
    assert result.exit_code == 7
    assert served == [
        {
            "MODEL_ID": "demo",
            "NUM_SHARD": "2",
            "JSON_OUTPUT": "true",
            "PREFIX_CACHING": "false",
            "PATH": "/bin",
        }
    ]


def test_serve_without_flags_is_the_environment(served: list[dict[str, str]]) -> None:
    assert invoke("serve").exit_code == 7
    assert served == [{"SM_NUM_GPUS": "8", "PATH": "/bin"}]


def test_help_shows_every_flag_and_examples() -> None:
    text = invoke("serve", "--help").output
    for variable in variables.VARIABLES:
        assert f"--{variable.flag}" in text
    assert "textgen-endpoint serve --model-id demo" in text
    assert "curl localhost:8080/invocations" in text
    assert "textgen-endpoint generate" in invoke("--help").output
    assert "--max-new-tokens" in invoke("generate", "--help").output


def test_unknown_flags_and_bad_hosts_are_refused(served: list[dict[str, str]]) -> None:
    assert invoke("serve", "--max-tokens", "3").exit_code == 2
    refused = invoke("serve", "--hostname", "localhost")
    assert refused.exit_code == 1 and "allowed: an IP address" in refused.output
    assert served == []


def test_generate_says_what_is_wrong_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "process_environment", lambda: {})
    result = invoke("generate", "hello", "--model-id", "/no/such/folder")
    assert result.exit_code == 1
    assert result.output.startswith("error: MODEL_ID=/no/such/folder is neither a folder")
    assert result.output.count("\n") == 1


def test_the_container_and_the_command_never_import_torch() -> None:
    code = (
        "import sys; import container.entrypoint, container.fetch_model, container.s3_source, container.hub_source, "
        "container.api_worker, serving.cli; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_plan_says_what_fits_and_its_status_tells(tmp_path: Path, demo_model_dir: Path) -> None:
    assert invoke("plan", "demo").exit_code == 0
    fits = invoke("plan", str(demo_model_dir), "--instance-type", "ml.g6.xlarge")
    assert fits.exit_code == 0
    assert "LlamaForCausalLM" in fits.stdout and "ml.g6.xlarge" in fits.stdout
    too_long = invoke("plan", str(demo_model_dir), "--max-total-tokens", "100000")
    assert too_long.exit_code == 1
    assert invoke("plan", str(tmp_path)).exit_code == 2
