"""What public load generators say is understood, and a run that is none is told from one that is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import load_generators
from benchmarks.load_generators import ClientFailed, Load, PublicClient, Seen, read_guidellm, read_vllm
from benchmarks.peers.environments import PipEnvironment
from benchmarks.public_clients import run_public

LOAD = Load(
    port=80, model=Path("m"), served_name="m", streams=2, num_requests=4, prompt_tokens=8, new_tokens=8
)


def guidellm_file(*, num_done: int, errors: list[str]) -> str:
    requests = {
        "successful": [{}] * num_done,
        "errored": [{"info": {"error": error}} for error in errors],
    }
    metrics = {
        "output_tokens_per_second": {"successful": {"mean": 461.5}},
        "time_to_first_token_ms": {"successful": {"median": 700.0}},
        "inter_token_latency_ms": {"successful": {"median": 16.5}},
    }
    return json.dumps({"benchmarks": [{"metrics": metrics, "requests": requests}]})


def test_what_guidellm_writes(tmp_path: Path) -> None:
    (tmp_path / "benchmarks.json").write_text(guidellm_file(num_done=3, errors=["400", "500"]))
    assert read_guidellm(tmp_path) == Seen(3, 461.5, 700.0, 16.5, "400")


def test_what_vllm_bench_writes(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(
        '{"completed": 4, "output_throughput": 614.0, "median_ttft_ms": 814.0, "median_itl_ms": 19.4}'
    )
    assert read_vllm(tmp_path) == Seen(4, 614.0, 814.0, 19.4)


def client(program: str, **fields: Any) -> PublicClient:
    """A Python program that runs in the folder of its results."""
    environment = PipEnvironment("fake", Path("nowhere"), "fake", ("fake==1",))
    return PublicClient(
        "fake", environment, lambda load, folder: [sys.executable, "-c", program], read_guidellm, **fields
    )


def test_a_run_of_all_requests_counts() -> None:
    text = guidellm_file(num_done=4, errors=[])
    command, seen = client(
        f"import os; open('benchmarks.json', 'w').write({text!r}); assert os.environ['LEVEL'] == '3'",
        variables={"LEVEL": "3"},
    ).run(LOAD)
    assert seen.tokens_per_s == 461.5
    assert command[0] == sys.executable


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("raise SystemExit('no such tokenizer')", "ended with 1:\nno such tokenizer"),
        (
            f"open('benchmarks.json', 'w').write({guidellm_file(num_done=1, errors=['400 BAD REQUEST'])!r})",
            "1 of 4 requests were answered: 400 BAD REQUEST",
        ),
    ],
)
def test_another_run_does_not(program: str, why: str) -> None:
    with pytest.raises(ClientFailed, match=why):
        client(program).run(LOAD)


def test_a_client_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_generators, "_LIMIT_S", 0.3)
    with pytest.raises(ClientFailed, match=r"did not end within 0\.3 s"):
        client("import time; time.sleep(60)").run(LOAD)


def test_a_record_has_a_command_for_any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path(sys.executable).parent))
    text = guidellm_file(num_done=4, errors=[])
    run = run_public(client(f"open('benchmarks.json', 'w').write({text!r})"), LOAD, 1)
    assert run.command.startswith(f"$HOME/{Path(sys.executable).name} -c ") and not run.error


def test_known_clients_ask_for_exactly_this_load() -> None:
    for one in load_generators.public_clients():
        line = " ".join(one.command(LOAD, Path("out")))
        assert "http://127.0.0.1:80" in line
        assert "/v1/completions" in line
        assert {"guidellm": "streams=2", "vllm": "--max-concurrency 2"}[one.name.split()[0]] in line
