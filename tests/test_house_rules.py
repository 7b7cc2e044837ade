"""The house rules, held: sizes, names, forbidden constructs, imports; and the rules can see. `make lint` has the rest."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests import house_rules
from tests.house_rules import EVERYTHING, ROOT, File, Rule

TORCH_FREE = (
    "container.entrypoint",
    "container.environment",
    "container.supervisor",
    "local_mode",
    "sagemaker_sdk_ext",
    "serving",
    "serving.api.app",
    "serving.batch",
    "serving.buckets",
    "serving.cli",
    "serving.config",
    "serving.engine.block_pool",
    "serving.engine.kv_cache",
    "serving.engine.request",
    "serving.engine.scheduler",
    "serving.engine.step_metrics",
    "serving.errors",
    "serving.grammar.admission",
    "serving.grammar.compiler",
    "serving.ipc.client",
    "serving.ipc.server",
    "serving.logs",
    "serving.messages",
    "serving.metrics",
    "serving.sampling_params",
    "serving.text.processor",
    "serving.tracing",
    "serving.version",
    "serving.vocabulary",
)

# What must never show in a tracked file: folders and sources of packages of the machine it was written on.
# The patterns are broken up so that this file does not find itself.
PRIVATE = re.compile(
    "|".join((r"(?<![\w.])/work" + r"/", "/opt/" + "pypi", "/opt/" + "wheels", r"(?<![\w.])/root" + r"/"))
)

# One line of code per way to break a rule, and for each rule one that looks alike and is right.
BROKEN = {
    "import pickle": "code_from_data",
    "from marshal import loads": "code_from_data",
    "def f():\n    import dill": "code_from_data",
    "import torch\nweights = torch.load('x')": "code_from_data",
    "eval('1')": "code_from_data",
    "from transformers import AutoTokenizer": "transformers",
    "import os\nos.environ['A']": "environment_reads",
    "import os\nos.getenv('A')": "environment_reads",
    "from os import environ": "environment_reads",
    "assert 1": "asserts",
    "try:\n    f()\nexcept:\n    g()": "broad_excepts",
    "try:\n    f()\nexcept (OSError, Exception):\n    g()": "broad_excepts",
    "try:\n    f()\nexcept BaseException:\n    g()": "broad_excepts",
    "import os\nos.fork()": "forks",
    "import multiprocessing\nmultiprocessing.get_context('fork')": "forks",
    "import multiprocessing\nmultiprocessing.Process()": "forks",
    "import triton": "eager_vendors",
    "class A:\n    import flash_attn": "eager_vendors",
    "x = 1  # TODO: more": "promises",
    "raise NotImplementedError": "promises",
}
RIGHT = (
    "import json\njson.loads('1')",
    "import os\nos.getpid()",
    "try:\n    f()\nexcept OSError:\n    g()",
    "try:\n    f()\nexcept BaseException:\n    g()\n    raise",
    "import multiprocessing\nmultiprocessing.get_context('spawn')",
    "def f():\n    import triton",
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import triton, pickle, transformers",
    "x = 'TODO'  # a list of things",
)


def _fail_with(findings: list[str], rule: str) -> None:
    if findings:
        pytest.fail(f"{rule}:\n  " + "\n  ".join(findings), pytrace=False)


def _run_tool(*arguments: str) -> None:
    tool = subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False, capture_output=True, text=True)
    if tool.returncode != 0:
        pytest.fail((tool.stdout + tool.stderr)[-6000:], pytrace=False)


def test_sizes() -> None:
    files = house_rules.python_files(*EVERYTHING)
    over = {place: what for file in files for place, what in house_rules.oversized(file)}
    excused = house_rules.SIZE_EXCEPTIONS
    too_large = [f"{place}: {what}" for place, what in over.items() if place not in excused]
    _fail_with(too_large, "find the missing idea")
    _fail_with([place for place in excused if place not in over], "exceptions that nothing needs any more")


def test_file_names() -> None:
    names = [file.name for file in house_rules.python_files(*EVERYTHING)]
    forbidden = house_rules.FORBIDDEN_FILE_NAMES
    _fail_with([n for n in names if n.rsplit("/", 1)[-1] in forbidden], "name the idea, not the drawer")


@pytest.mark.parametrize("rule", house_rules.RULES, ids=lambda rule: rule.__name__)
def test_product_keeps(rule: Rule) -> None:
    _fail_with(house_rules.findings(rule), "not in the product")


@pytest.mark.parametrize("source", BROKEN)
def test_a_broken_rule_is_found(source: str) -> None:
    file = File("serving/sample.py", source)
    assert {rule.__name__ for rule in house_rules.RULES if list(rule(file))} == {BROKEN[source]}


@pytest.mark.parametrize("source", RIGHT)
def test_what_is_right_is_left_alone(source: str) -> None:
    file = File("serving/sample.py", source)
    assert [what for rule in house_rules.RULES for what in rule(file)] == []


def test_exceptions_still_exist() -> None:
    listed = {place.split("::")[0] for place in house_rules.SIZE_EXCEPTIONS}
    listed |= {*house_rules.BROAD_EXCEPT, *house_rules.ENVIRONMENT_READERS}
    _fail_with(
        [name for name in sorted(listed) if name not in house_rules.tracked()], "exceptions for no file"
    )


def test_a_large_function_is_found() -> None:
    body = "\n".join("    x = 1" for _ in range(house_rules.MAX_FUNCTION_LINES))
    (place,) = house_rules.oversized(File("serving/models/sample.py", f"def f():\n{body}\n"))
    assert place == ("serving/models/sample.py::f", "61 lines, the cap is 60")


def test_nothing_of_the_machine_it_was_written_on() -> None:
    findings = []
    for name in house_rules.tracked():
        data = (ROOT / name).read_bytes()
        if b"\0" in data[:8192]:
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            if len(line) < 10_000 and PRIVATE.search(line):
                findings.append(f"{name}:{number}: {line.strip()[:100]}")
    _fail_with(findings, "private paths")


def test_torch_free_side_imports_without_torch() -> None:
    """In one process that refuses the heavy packages: an import of one of them anywhere on the way fails."""
    program = (
        "import importlib, sys\n"
        "for name in ('torch', 'transformers', 'triton'): sys.modules[name] = None\n"
        f"for name in {TORCH_FREE!r}: importlib.import_module(name)\n"
    )
    _run_tool("-W", "error", "-c", program)


def test_imports_point_downward() -> None:
    _run_tool("-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())")
