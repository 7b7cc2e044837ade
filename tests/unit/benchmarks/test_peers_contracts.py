"""Workloads that mean something, what makes a run no measurement, and what the registry promises without any peer."""

from __future__ import annotations

import json

import pytest

from benchmarks.peers import conversions
from benchmarks.peers.__main__ import main
from benchmarks.peers.contracts import EngineFailed, Measured, Request, RequestTimes, Settings, Workload
from benchmarks.peers.environments import environments
from benchmarks.peers.registry import OURS, engines

REQUEST = Request((1, 2, 3), 4)


@pytest.mark.parametrize(
    ("requests", "concurrency", "message"),
    [
        ((), None, "at least one request"),
        ((REQUEST,), 0, "at least 1 or None for no limit, got 0"),
        ((Request((), 4),), None, "at least one prompt token"),
        ((Request((1,), 0),), None, "one output token"),
        ((Request((1,), 1, 2.0), Request((1,), 1, 1.0)), None, "in order of arrival"),
        ((Request((1,), 1, -1.0),), None, "none before 0"),
    ],
)
def test_a_workload_that_means_nothing_is_refused(requests, concurrency, message):
    with pytest.raises(ValueError, match=message):
        Workload(requests, concurrency)


def test_errors_and_other_counts_are_complaints():
    workload = Workload((REQUEST, REQUEST, REQUEST))
    results = [RequestTimes(num_tokens=4), RequestTimes(num_tokens=3), RequestTimes(error="gone")]
    measured = Measured(results, wall_s=2.0)
    assert measured.complaints(workload) == ["request 1: 3 tokens instead of 4", "request 2: gone"]
    assert measured.tokens_per_s == 3.5


def test_without_peers_every_engine_says_how_to_get_it(tmp_path):
    found = engines(tmp_path)
    assert found[OURS].why_not() is None
    for name, engine in found.items():
        if name.startswith("ours"):
            continue
        assert engine.version() == ""
        assert "python -m benchmarks.peers install" in (engine.why_not() or "")
        with pytest.raises(EngineFailed, match="not installed"):
            engine.start(tmp_path, Settings())


def test_an_environment_with_another_pin_is_renewed(tmp_path):
    environment = environments(tmp_path)["openvino"]
    environment.folder.mkdir()
    (environment.folder / "complete.json").write_text(json.dumps(["openvino-genai==1.0"]))
    assert "other versions" in environment.why_not()
    commands = []
    environment.install(commands.append)
    assert environment.why_not() is None
    assert environment.version() == "openvino-genai==2026.4.1"
    installs = [" ".join(line) for line in commands if "install" in line]
    assert all("constraints-cpu.txt" in line for line in installs)
    commands.clear()
    environment.install(commands.append)
    assert commands == []


def test_a_failed_install_is_not_complete(tmp_path):
    environment = environments(tmp_path)["openvino"]

    def fail(command):
        raise OSError("no network")

    with pytest.raises(OSError, match="no network"):
        environment.install(fail)
    assert "not installed" in environment.why_not()


def test_converted_weights_follow_the_content(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("one")
    made = []

    def command(target):
        made.append(target)
        return ["cp", str(model / "weights"), str(target)]

    def convert(recipe):
        return conversions._converted(model, recipe, "copy", command).read_text()

    assert [convert("a"), convert("a")] == ["one", "one"]
    assert len(made) == 1
    (model / "weights").write_text("other")
    assert convert("a") == "other"
    assert convert("b") == "other"
    assert len(made) == 3


def test_a_failed_conversion_shows_what_the_converter_said(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    with pytest.raises(EngineFailed, match="cannot convert this"):
        conversions._converted(
            model, "a", "x", lambda target: ["sh", "-c", "echo cannot convert this; exit 3"]
        )


def test_list_and_unknown_names(tmp_path, capsys):
    assert main(["list", "--dir", str(tmp_path)]) == 0
    assert "llama-server" in capsys.readouterr().out
    assert main(["install", "nothing-like-this", "--dir", str(tmp_path)]) == 2
    assert "unknown: nothing-like-this" in capsys.readouterr().out
    assert main(["try", "nothing-like-this", "--dir", str(tmp_path)]) == 2
    with pytest.raises(SystemExit):
        main(["try", "ours", "--repeats", "0"])
