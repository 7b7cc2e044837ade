"""The rules that `test_house_rules` holds the tree to: each takes a file and yields (line, what is wrong).

Knows nothing of pytest. Exceptions live here, each with its reason.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("serving", "container", "local_mode", "sagemaker_sdk_ext")
EVERYTHING = (*PRODUCT, "benchmarks", "scripts", "tests")

MAX_FILE_LINES = 400
MAX_KERNEL_FILE_LINES = 600
MAX_MODEL_FILE_LINES = 150
MAX_CLASS_LINES = 300
MAX_FUNCTION_LINES = 60

# `path` or `path::name` -> why it may be larger than its cap.
SIZE_EXCEPTIONS: dict[str, str] = {}

# In serving/models, what is no architecture.
MODEL_SKELETON = {"__init__.py", "decoder.py", "hf_config.py", "registry.py"}

# The outermost loops, and where code of a deployer runs: what is caught here ends one request, or all, with a typed error.
BROAD_EXCEPT = {
    "serving/engine/process.py": "the engine's main loop fails every open request before it dies",
    "serving/api/error_handlers.py": "the one place that turns an exception into a client-visible text",
    "serving/handler/hooks.py": "a deployer's hook may raise anything; it ends that request, not the handler's process",
    "serving/handler/script.py": "so may the import of its script, which ends the start with the reason",
}

ENVIRONMENT_READERS = {"container/environment.py", "serving/cli.py"}
# These live outside the container and have one reader each, whichever file that is.
ONE_READER = ("local_mode", "sagemaker_sdk_ext")

# The demo model's training may use it; nothing that serves does.
TRANSFORMERS_ALLOWED = re.compile(r"local_mode/demo_model/train\w*\.py")

# Models and messages are data; these turn data into code.
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "yaml.load", "numpy.load", "np.load"}
FORBIDDEN_FILE_NAMES = {"utils.py", "common.py", "helpers.py", "util.py", "helper.py", "misc.py"}

ENVIRONMENT_NAMES = {"environ", "environb", "getenv", "putenv", "unsetenv"}
FORKS = {"os.fork", "os.forkpty", "pty.fork", "multiprocessing.Process", "multiprocessing.Pool"}
FORK_ALLOWED = {
    "serving/grammar/trial_process.py": "a program of its own with one thread and no torch, which forks for each trial",
}
VENDORS = {"flash_attn", "flashinfer", "triton"}


@dataclass(frozen=True)
class File:
    """A Python file of the repository; `name` is its path from the root."""

    name: str
    source: str
    tree: ast.Module = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tree", ast.parse(self.source, filename=self.name))

    @property
    def top_folder(self) -> str:
        return self.name.split("/")[0]


Findings = Iterator[tuple[int, str]]
Rule = Callable[[File], Findings]


@cache
def tracked() -> tuple[str, ...]:
    """Paths that git knows or would take up; without git (an unpacked archive) all that is there."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    if listing.returncode == 0:
        names = {name for name in listing.stdout.split("\0") if name}
    else:
        names = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if ".venv" not in path.parts}
    return tuple(sorted(name for name in names if (ROOT / name).is_file()))


@cache
def python_files(*folders: str) -> tuple[File, ...]:
    names = [name for name in tracked() if name.endswith(".py") and name.split("/")[0] in folders]
    return tuple(File(name, (ROOT / name).read_text(encoding="utf-8")) for name in names)


def _dotted(node: ast.expr | None) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return ""


def imports(root: ast.AST, *, in_functions: bool = True) -> Findings:
    """(line, absolute module name) of each import below `root`, but not of those for type checkers only."""
    for node in ast.iter_child_nodes(root):
        if isinstance(node, ast.If) and _dotted(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not in_functions:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or ""
        else:
            yield from imports(node, in_functions=in_functions)


def _file_cap(name: str) -> int:
    folder, _, base = name.rpartition("/")
    if name.startswith(("serving/kernels/", "tests/kernels/")):
        return MAX_KERNEL_FILE_LINES
    if folder == "serving/models" and base not in MODEL_SKELETON:
        return MAX_MODEL_FILE_LINES
    return MAX_FILE_LINES


def oversized(file: File) -> Iterator[tuple[str, str]]:
    """(place, what) for the file and each class and function in it that is over its cap."""
    sizes = [(file.name, file.source.count("\n"), _file_cap(file.name))]
    for node in ast.walk(file.tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            cap = MAX_CLASS_LINES if isinstance(node, ast.ClassDef) else MAX_FUNCTION_LINES
            sizes.append((f"{file.name}::{node.name}", (node.end_lineno or 0) - node.lineno + 1, cap))
    yield from ((place, f"{lines} lines, the cap is {cap}") for place, lines, cap in sizes if lines > cap)


def code_from_data(file: File) -> Findings:
    for line, module in imports(file.tree):
        if module.split(".")[0] in FORBIDDEN_MODULES:
            yield line, f"imports {module}"
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Call) and _dotted(node.func) in FORBIDDEN_CALLS:
            yield node.lineno, f"calls {_dotted(node.func)}"


def transformers(file: File) -> Findings:
    for line, module in imports(file.tree):
        if module.split(".")[0] == "transformers" and not TRANSFORMERS_ALLOWED.fullmatch(file.name):
            yield line, "imports transformers"


def environment_reads(file: File) -> Findings:
    if file.name in ENVIRONMENT_READERS:
        return
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Attribute) and _dotted(node.value) == "os" and node.attr in ENVIRONMENT_NAMES:
            yield node.lineno, f"uses os.{node.attr}"
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            names = (alias.name for alias in node.names)
            yield from ((node.lineno, f"imports os.{name}") for name in names if name in ENVIRONMENT_NAMES)


def asserts(file: File) -> Findings:
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Assert):
            yield node.lineno, "assert: raise a typed error; `python -O` drops this"


def _raises_again(handler: ast.ExceptHandler) -> bool:
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def broad_excepts(file: File) -> Findings:
    """Whoever cleans up and raises again swallows nothing and may catch all."""
    if file.name in BROAD_EXCEPT:
        return
    for node in ast.walk(file.tree):
        if not isinstance(node, ast.ExceptHandler) or _raises_again(node):
            continue
        kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        names = [_dotted(kind) if kind else "(bare)" for kind in kinds]
        yield from (
            (node.lineno, f"except {name}")
            for name in names
            if name in {"(bare)", "Exception", "BaseException"}
        )


def forks(file: File) -> Findings:
    """A fork copies the locks that torch's threads hold, but not the threads. Ours start by command line."""
    if file.name in FORK_ALLOWED:
        return
    for node in ast.walk(file.tree):
        if not isinstance(node, ast.Call):
            continue
        called = _dotted(node.func)
        method = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
        by_choice = called.endswith(("get_context", "set_start_method")) and method in {"fork", None}
        if called in FORKS or by_choice:
            yield node.lineno, f"{called}({method or ''})"


def eager_vendors(file: File) -> Findings:
    """Vendor packages are imported inside functions; Triton also at the top of files that hold kernels."""
    for line, module in imports(file.tree, in_functions=False):
        top = module.split(".")[0]
        if top in VENDORS and not (top == "triton" and file.name.startswith("serving/kernels/triton/")):
            yield line, f"imports {module} as soon as it is imported itself"


def promises(file: File) -> Findings:
    for token in tokenize.generate_tokens(io.StringIO(file.source).readline):
        if token.type == tokenize.COMMENT and re.search(r"\b(TODO|FIXME|XXX|HACK)\b", token.string):
            yield token.start[0], token.string
        if token.type == tokenize.NAME and token.string == "NotImplementedError":
            yield token.start[0], "NotImplementedError: build it, or refuse it by name"


RULES: tuple[Rule, ...] = (
    code_from_data,
    transformers,
    environment_reads,
    asserts,
    broad_excepts,
    forks,
    eager_vendors,
    promises,
)


def findings(rule: Rule) -> list[str]:
    """`path:line: what` for everything in the product that breaks `rule`."""
    found = [(file.name, line, what) for file in python_files(*PRODUCT) for line, what in rule(file)]
    if rule is environment_reads:
        readers = {
            folder: {name for name, _, _ in found if name.startswith(f"{folder}/")} for folder in ONE_READER
        }
        alone = {name for names in readers.values() if len(names) == 1 for name in names}
        found = [finding for finding in found if finding[0] not in alone]
    return [f"{name}:{line}: {what}" for name, line, what in found]
