"""Importing a handler's script: which hooks are found, and the one line for each script that cannot be used."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.errors import ModelError
from serving.handler.script import load


@pytest.fixture(autouse=True)
def _import_state() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def script(folder: Path, text: str, name: str = "inference.py") -> Path:
    (folder / name).write_text(text)
    return folder / name


INPUT = "def input_fn(data, content_type):\n    return data\n"
OUTPUT = "def output_fn(prediction, accept):\n    return 'x'\n"


@pytest.mark.parametrize(
    ("text", "hooks"),
    [(INPUT, {"input_fn"}), (OUTPUT, {"output_fn"}), (INPUT + OUTPUT, {"input_fn", "output_fn"})],
)
def test_hooks_are_found(tmp_path: Path, text: str, hooks: set[str]) -> None:
    assert set(load(script(tmp_path, text))) == hooks


@pytest.mark.parametrize(
    ("parameters", "takes_context"),
    [
        ("data, content_type", False),
        ("data, content_type='application/json'", False),
        ("data, content_type, context", True),
        ("data, content_type, ctx", True),
        ("data, content_type, context=None", True),
        ("data, content_type, indent=2", False),
        ("data, content_type, **options", False),
        ("*arguments", False),
        ("body, kind, /", False),
    ],
)
def test_a_third_parameter_is_the_context(tmp_path: Path, parameters: str, takes_context: bool) -> None:
    hooks = load(script(tmp_path, f"def input_fn({parameters}):\n    return {{}}\n"))
    assert hooks["input_fn"].takes_context is takes_context


@pytest.mark.parametrize(
    "parameters", ["", "data", "a, b, c, d", "data, content_type, *, model", "**options"]
)
def test_other_parameters_are_refused(tmp_path: Path, parameters: str) -> None:
    with pytest.raises(ModelError, match=r"define output_fn\(prediction, accept\[, context\]\)"):
        load(script(tmp_path, f"def output_fn({parameters}):\n    return {{}}\n"))


def test_what_the_engine_does_is_refused_by_name(tmp_path: Path) -> None:
    text = INPUT + "def model_fn(folder): ...\nfrom json import loads as predict_fn\n"
    with pytest.raises(
        ModelError, match=r"inference\.py defines model_fn, predict_fn: this server's own engine"
    ):
        load(script(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x = 1\n", "defines neither input_fn nor output_fn"),
        ("input_fn = 3\n", "input_fn is no function"),
        ("async def input_fn(data, content_type): ...\n", "input_fn is asynchronous"),
        ("x = 1\nx = 1 / 0\n", r"inference\.py, line 2: .*ZeroDivisionError: division by zero"),
        ("x = 1\ndef f(:\n", r"inference\.py, line 2: .*SyntaxError"),
        ("import sys\nsys.exit('no')\n", r"inference\.py, line 2: .*SystemExit: no"),
        (
            "x = 1\n\nimport no_such_package\n",
            r"line 3: ModuleNotFoundError: .*'no_such_package'; nothing is installed",
        ),
        ("\0", r"inference\.py.*null bytes"),
    ],
)
def test_a_script_that_cannot_be_used(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ModelError, match=problem) as caught:
        load(script(tmp_path, text))
    assert "\n" not in caught.value.message and str(tmp_path) in caught.value.message


def test_an_error_in_a_module_beside_it_names_the_line_of_the_script(tmp_path: Path) -> None:
    script(tmp_path, "raise KeyError('a\\nb')\n", "broken_part.py")
    with pytest.raises(ModelError, match=r"inference\.py, line 1: .*KeyError: ") as caught:
        load(script(tmp_path, "import broken_part\n" + INPUT))
    assert "\n" not in caught.value.message


def test_modules_beside_it_are_found_first_and_libraries_stay(tmp_path: Path) -> None:
    script(tmp_path, "WORD = 'beside'\n", "words_beside.py")
    text = "import json as library\nfrom words_beside import WORD\ninput_fn = lambda data, kind: library.dumps(WORD)\n"
    hook = load(script(tmp_path, text, "json.py"))["input_fn"]
    assert hook.function("", "") == '"beside"'
