"""A handler's script: importing it and finding its hooks, or the one line that says why it cannot be used.

The contract of the hooks is that of SageMaker's Hugging Face and PyTorch toolkits.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from serving.errors import ModelError
from serving.handler.wire import HookName

HOOKS: dict[HookName, tuple[str, str]] = {
    "input_fn": ("data", "content_type"),
    "output_fn": ("prediction", "accept"),
}
REFUSED_HOOKS = ("model_fn", "predict_fn", "transform_fn")
_CONTEXT = "context"

logger = logging.getLogger(__name__)


@dataclass(slots=True, frozen=True)
class Hook:
    name: HookName
    function: Callable[..., Any]
    takes_context: bool


def load(script: Path) -> dict[HookName, Hook]:
    """Import `script`, its folder first on `sys.path`. Raises `ModelError` with what is wrong and what to do."""
    module = _import(script)
    refused = [name for name in REFUSED_HOOKS if hasattr(module, name)]
    if refused:
        raise ModelError(
            f"{script} defines {', '.join(refused)}: this server's own engine loads the model and generates, so only "
            "input_fn and output_fn of a handler are run; remove the others"
        )
    hooks = {name: _hook(script, name, getattr(module, name)) for name in HOOKS if hasattr(module, name)}
    if not hooks:
        raise ModelError(
            f"{script} defines neither input_fn nor output_fn, so nothing of it would be run; define one of them, or "
            "remove the script"
        )
    return hooks


def describe(error: BaseException) -> str:
    """Class and text of an exception in one line, whatever its `__str__` does."""
    return " ".join(traceback.format_exception_only(error)[-1].split())


def _import(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(script.stem, script)
    if spec is None or spec.loader is None:
        raise ModelError(f"{script} is no Python file; name one in SAGEMAKER_PROGRAM")
    sys.path.insert(0, str(script.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(script.stem, module)  # a script may be named like a library
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        logger.error("the import of the custom handler failed", exc_info=error)
        raise ModelError(_import_problem(script, error)) from error
    return module


def _import_problem(script: Path, error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename == str(script):
        line = error.lineno
    else:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((frame.lineno for frame in reversed(frames) if frame.filename == str(script)), None)
    place = f"{script}, line {line}" if line else str(script)
    if isinstance(error, ModuleNotFoundError):
        return (
            f"{place}: {describe(error)}; nothing is installed at start: put the package into {script.parent}, or into "
            "an image made from this one"
        )
    return (
        f"{place}: the import of the custom handler failed: {describe(error)}; correct or remove the script"
    )


def _hook(script: Path, name: HookName, function: object) -> Hook:
    takes = f"{name}({', '.join(HOOKS[name])}[, {_CONTEXT}])"
    if not callable(function):
        raise ModelError(f"{script}: {name} is no function; define {takes}")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise ModelError(
            f"{script}: {name} is asynchronous, and is called without a loop; define it with def"
        )
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return Hook(name, cast("Callable[..., Any]", function), takes_context=False)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    open_ended = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if (len(positional) < 2 and not open_ended) or len(required) > 3 or keywords:
        raise ModelError(f"{script}: {name} has other parameters than it will be given; define {takes}")
    third = positional[2] if len(positional) > 2 else None
    takes_context = third is not None and (third.default is third.empty or third.name == _CONTEXT)
    return Hook(name, function, takes_context)
