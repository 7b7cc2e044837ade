"""Log lines: one per event, readable by machines, and no text of unforeseen exceptions where that is asked for."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator

import pytest

from serving import logs

Lines = Callable[[], list[str]]
NASTY = 'a "quoted" = \n\r\t\x1b[31m \x85 \u2028 \ud800 é 模 \\'


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Lines]]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def configure(**options: object) -> Lines:
        output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        monkeypatch.setattr("sys.stdout", output)
        logs.configure("api", **options)  # type: ignore[arg-type]
        return lambda: output.buffer.getvalue().decode().splitlines()  # type: ignore[attr-defined]

    yield configure
    root.handlers[:], root.level = handlers, level


@pytest.mark.parametrize("json_output", [True, False])
def test_one_event_is_one_line(configured: Callable[..., Lines], json_output: bool) -> None:
    lines = configured(json_output=json_output)
    logger = logging.getLogger("serving.test")
    logs.event(logger, logging.INFO, "a " + NASTY, text=NASTY, seconds=1 / 3, nothing=None, empty="", count=3)
    logger.debug("not at this level")
    (line,) = lines()
    if json_output:
        entry = json.loads(line)
        assert entry["level"] == "INFO" and entry["process"] == "api"
        assert (entry["seconds"], entry["nothing"], entry["empty"], entry["count"]) == (0.333333, None, "", 3)
        assert entry["text"] == NASTY
    else:
        assert " INFO api a " in line
        assert ' seconds=0.3333 empty="" count=3' in line and "nothing" not in line
        assert line.isprintable()


@pytest.mark.parametrize("json_output", [True, False])
@pytest.mark.parametrize("shown", [True, False])
def test_the_text_of_exceptions_can_stay_out(
    configured: Callable[..., Lines], json_output: bool, shown: bool
) -> None:
    lines = configured(json_output=json_output, exception_text=shown)
    try:
        try:
            int("canary1")
        except ValueError as error:
            raise KeyError("canary2") from error
    except KeyError:
        logging.getLogger("serving.test").exception("it broke")
    (line,) = lines()
    assert "ValueError" in line and "KeyError" in line and "test_logs.py" in line
    # The line of code that failed is shown either way; what it was called with is not.
    assert ("invalid literal for int() with base 10: 'canary1'" in line) is shown
    assert line.count("canary2") == (2 if shown else 1)


def test_libraries_do_not_log_their_requests(configured: Callable[..., Lines]) -> None:
    lines = configured(level="debug")
    logging.getLogger("urllib3.connectionpool").debug("authorization: canary")
    logging.getLogger("botocore.auth").info("token canary")
    logging.getLogger("serving.x").debug("ours")
    assert [line.rpartition(" ")[2] for line in lines()] == ["ours"]
