"""The JSON lines between a comparison and an engine without HTTP, with a runner whose engine only counts."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from benchmarks.peers.contracts import EngineFailed, Request, Settings, Workload
from benchmarks.peers.engine_process import EngineProcess, generations
from benchmarks.peers.environments import OwnEnvironment
from benchmarks.peers.runner_engine import runner_engine
from benchmarks.peers.runners.protocol import run_batcher, run_waves

RUNNER = "tests.unit.benchmarks.fake_runner"


def engine_in(folder):
    own = OwnEnvironment("own", folder, lambda: "1")
    return runner_engine("counting", own, RUNNER)


def closed(count, num_tokens, concurrency=None):
    return Workload(tuple(Request((1, 2), num_tokens) for _ in range(count)), concurrency)


def test_a_runner_answers_workload_after_workload(tmp_path):
    with engine_in(tmp_path).start(Path("noisy"), Settings()) as running:
        assert 0 < running.ready_s <= running.first_token_s
        for num_tokens in (3, 5):
            workload = closed(4, num_tokens, concurrency=2)
            measured = running.run(workload)
            assert measured.complaints(workload) == []
            assert [got.token_ids for got in measured.requests] == [
                [100 * index + step for step in range(num_tokens)] for index in range(4)
            ]
            assert measured.num_tokens == 4 * num_tokens
            assert measured.client_cpu_s == 0
            for got in measured.requests:
                assert got.start_s <= got.first_token_s == got.token_s[0] <= got.token_s[-1] == got.end_s
                assert got.end_s <= measured.wall_s
        pid = running.pid
    assert not Path(f"/proc/{pid}").exists()
    assert "a library prints this" in (tmp_path / "counting.log").read_text()


def test_another_number_of_tokens_is_told(tmp_path):
    with engine_in(tmp_path).start(Path("short"), Settings()) as running:
        workload = closed(3, 4)
        assert running.run(workload).complaints(workload) == ["request 1: 1 tokens instead of 4"]


@pytest.mark.parametrize(
    ("weights", "message"), [("dies", "no such weights"), ("babbles", "no 'requests' in the runner's answer")]
)
def test_a_runner_that_fails_says_why(tmp_path, weights, message):
    with pytest.raises(EngineFailed, match=message):
        engine_in(tmp_path).start(Path(weights), Settings())


class Scripted:
    """Ends each request at its first step; notes how many were open at once."""

    def __init__(self):
        self.open, self.most_open, self.added = [], 0, []

    def add(self, index, prompt, num_output_tokens):
        self.added.append((index, time.perf_counter()))
        self.open.append(index)
        self.most_open = max(self.most_open, len(self.open))

    def step(self):
        return [(self.open.pop(0), [7], True)]


def as_job(requests, concurrency):
    return {
        "requests": [
            {"prompt_ids": [1] * prompt, "num_output_tokens": new, "arrival_s": arrival}
            for prompt, new, arrival in requests
        ],
        "concurrency": concurrency,
    }


def test_no_more_requests_are_open_than_allowed():
    batcher = Scripted()
    answer = run_batcher(batcher, as_job([(4, 1, 0.0)] * 6, concurrency=2))
    assert batcher.most_open == 2
    assert [one["token_ids"] for one in answer["requests"]] == [[7]] * 6


def test_a_request_is_not_handed_over_before_it_arrives():
    batcher = Scripted()
    begin_s = time.perf_counter()
    answer = run_batcher(batcher, as_job([(4, 1, 0.0), (4, 1, 0.05)], concurrency=None))
    assert batcher.added[1][1] - begin_s >= 0.05
    assert answer["requests"][1]["start_s"] >= 0.05


class Echo:
    def __init__(self):
        self.batches = []

    def generate(self, prompts, num_output_tokens, told):
        self.batches.append(len(prompts))
        for _ in range(num_output_tokens):
            told()
        return [[0] * num_output_tokens for _ in prompts]


def test_waves_have_the_size_of_the_concurrency():
    waves = Echo()
    answer = run_waves(waves, as_job([(4, 3, 0.0)] * 5, concurrency=2))
    assert waves.batches == [2, 2, 1]
    for one in answer["requests"]:
        assert one["num_tokens"] == 3
        assert len(one["token_s"]) == 3
        assert one["first_token_s"] == one["token_s"][0]
    assert answer["requests"][4]["start_s"] >= answer["requests"][0]["end_s"]


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([(4, 3, 0.0), (4, 3, 1.0)], "no open loop"),
        ([(4, 3, 0.0), (5, 3, 0.0)], "of one length"),
        ([(4, 3, 0.0), (4, 2, 0.0)], "of one length"),
    ],
)
def test_waves_refuse_what_they_cannot_do(requests, message):
    with pytest.raises(ValueError, match=message):
        run_waves(Echo(), as_job(requests, concurrency=2))


def test_the_runner_prints_json_only(tmp_path):
    """What a library writes to standard output ends up with the log."""
    command = [sys.executable, "-m", RUNNER, "noisy", json.dumps({})]
    log = tmp_path / "log"
    with EngineProcess(command, log=log, folder=Path.cwd(), has_pipes=True) as process:
        to_runner, from_runner = process.pipes
        assert json.loads(from_runner.readline()) == {"ready": True}
        to_runner.write(json.dumps(as_job([(1, 2, 0.0)], 1)).encode() + b"\n")
        to_runner.flush()
        assert json.loads(from_runner.readline())["requests"][0]["num_tokens"] == 2
        assert process.cpu_s() > 0
        with pytest.raises(EngineFailed, match="ended with status 0"):
            to_runner.close()
            from_runner.read()
            while True:
                process.check_alive()


def become(pids, states):
    """Waits until each of `pids` is in one of these states of /proc/PID/stat: T is stopped, Z and X have ended."""
    deadline_s = time.monotonic() + 10
    while found := [state for pid in pids if (state := state_of(pid)) not in states]:
        assert time.monotonic() < deadline_s, found


def state_of(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


@pytest.fixture
def family(tmp_path):
    """A process, its child and its grandchild, each of which waits for the next."""
    command = ["sh", "-c", "sh -c 'sleep 600; true'; true"]
    with EngineProcess(command, log=tmp_path / "log", folder=tmp_path) as process:
        deadline_s = time.monotonic() + 10
        while len(generations(process.pid)) < 3 and time.monotonic() < deadline_s:
            process.check_alive()
        # A shell that has just made a child by vfork waits for its exec, whatever signals come.
        become([pid for generation in generations(process.pid) for pid in generation], "S")
        yield process


def test_a_paused_engine_is_still_and_goes_on(family):
    tree = [pid for generation in generations(family.pid) for pid in generation]
    assert len(tree) == 3
    for _ in range(2):
        family.pause()
        family.pause()
        become(tree, "T")
        family.resume()
        become(tree, "SR")


def test_a_paused_engine_ends_when_it_is_closed(family):
    tree = [pid for generation in generations(family.pid) for pid in generation]
    family.pause()
    started_s = time.perf_counter()
    family.close()
    assert time.perf_counter() - started_s < 10, "it was told to end, and not killed after a wait"
    become(tree, "ZX")


def test_a_runner_answers_after_a_pause(tmp_path):
    with engine_in(tmp_path).start(Path("counts"), Settings()) as running:
        running.pause()
        running.resume()
        assert running.run(closed(2, 3)).num_tokens == 6
