"""What is told of a state folder while an emulator runs, and when none does."""

from __future__ import annotations

from pathlib import Path

from local_mode.control.inspection import log_lines, status_lines
from tests.unit.local_mode.control.conftest import Caller


def write(path: Path, text: str, *, mode: str = "a") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(mode, encoding="utf-8") as file:
        file.write(text)


def test_status_of_endpoints_and_their_components(caller: Caller, tmp_path: Path) -> None:
    caller.model()
    caller.config(model=None)
    caller.endpoint()
    caller.component(status="Failed")
    caller.resources.change("inference-component", "ic", FailureReason="no ping")
    head, *rows = status_lines(tmp_path)
    assert head == f"no emulator uses {tmp_path}: states are the last ones"
    assert [row.split(maxsplit=2) for row in rows] == [["e", "InService"], ["ic", "Failed", "no ping"]]


def test_a_folder_without_endpoints(tmp_path: Path) -> None:
    assert [*status_lines(tmp_path)][1:] == ["no endpoints"]
    assert [*tmp_path.iterdir()] == []


def test_one_log_is_printed_as_it_is_and_several_with_their_names(tmp_path: Path) -> None:
    group = tmp_path / "aws/sagemaker/Endpoints/e"
    write(group / "all/i-1.log", "one\ntwo, not ended")
    assert [*log_lines(tmp_path, "e", follow=False)] == ["one", "two, not ended"]
    write(group / "all/i-2.log", "three\n")
    assert [*log_lines(tmp_path, "e", follow=False)] == [
        "[aws/sagemaker/Endpoints/e/all/i-1] one",
        "[aws/sagemaker/Endpoints/e/all/i-1] two, not ended",
        "[aws/sagemaker/Endpoints/e/all/i-2] three",
    ]
    assert [*log_lines(tmp_path, "other", follow=False)] == []


def test_following_gives_whole_lines_once_and_goes_on_after_rotation(tmp_path: Path) -> None:
    log = tmp_path / "aws/sagemaker/InferenceComponents/ic/all/i-1.log"
    write(log, "one\ntw")
    lines = log_lines(tmp_path, "ic", follow=True)
    assert next(lines) == "one"
    write(log, "o\nthree\n")
    assert [next(lines), next(lines)] == ["two", "three"]
    write(log, "new\n", mode="w")
    assert next(lines) == "new"
    lines.close()
