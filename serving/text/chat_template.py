"""Renders a model's chat template in a sandbox, with the variables and filters that transformers gives it.

The template is data from a stranger: it sees plain JSON values, no attribute that starts with an underscore,
and it cannot change what it is given. Knows nothing of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from serving.errors import InvalidRequest, ModelError, TemplateError
from serving.text.model_files import read_json_object

# Names that mean something to the renderer or to its callers: a request must not set them as variables.
RESERVED_VARIABLES = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tools",
        "truncation",
    }
)

# What a template can raise besides jinja2's own errors: it computes with values that a client sent.
_RENDER_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class ChatTemplate:
    """One template. Compiled at its first use, so that a broken one fails chat requests and nothing else."""

    def __init__(self, source: str, named_tokens: Mapping[str, str]) -> None:
        """`named_tokens` (`bos_token`, `eos_token`, …) are variables of every rendering."""
        self._source = source
        self._named_tokens = dict(named_tokens)

    @classmethod
    def from_dir(cls, model_dir: str | Path, named_tokens: Mapping[str, str]) -> ChatTemplate | None:
        """The folder's template, None when it has none. Raises `ModelError` when a file is damaged."""
        source = _find_source(Path(model_dir))
        return None if source is None else cls(source, named_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        **variables: object,
    ) -> str:
        """The prompt text. `messages`, `tools` and further template `variables` are plain JSON values.

        Raises `TemplateError` when the template refuses them, `InvalidRequest` for a reserved variable.
        """
        for name in variables:
            if name in RESERVED_VARIABLES or name in self._named_tokens or name.startswith("_"):
                raise InvalidRequest(
                    f"`{name}` is not a template variable that a request may set", field=name
                )
        try:
            return self._compiled.render(
                **self._named_tokens,
                **variables,
                messages=list(messages),
                tools=None if tools is None else list(tools),
                documents=None,
                add_generation_prompt=add_generation_prompt,
            )
        except _RENDER_ERRORS as error:
            raise TemplateError(f"Template error: {error or type(error).__name__}") from error

    @cached_property
    def _compiled(self) -> jinja2.Template:
        return _environment().from_string(self._source)


def _find_source(model_dir: Path) -> str | None:
    path = model_dir / "chat_template.jinja"
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}): download the model again") from error
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = read_json_object(model_dir / name).get("chat_template")
        if isinstance(template, list):
            template = _default_of(template)
        if isinstance(template, str):
            return template
    return None


def _default_of(templates: list[object]) -> object:
    named = [entry for entry in templates if isinstance(entry, Mapping)]
    return next((entry.get("template") for entry in named if entry.get("name") == "default"), None)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    names: dict[str, object] = {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "namespace": _TemplateNamespace,
        "dict": _template_dict,
        "range": environment.globals["range"],
    }
    # jinja2's own globals hold more than templates use (lipsum, cycler, joiner): less to reach through.
    environment.globals.clear()
    environment.globals.update(names)
    return environment


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks assistant text for training; here it is its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _TemplateNamespace(Namespace):
    """`namespace()` without names that start with an underscore: they could stand for Python's own."""

    def __init__(*args: object, **kwargs: object) -> None:
        # `self` is not a parameter, so that a template may use that name for an attribute.
        for name in dict(*args[1:], **kwargs):
            _require_public(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: object) -> None:
        _require_public(name)
        super().__setitem__(name, value)


def _require_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no {name!r}: use a name without leading underscore")


def _template_dict(*args: object, **kwargs: object) -> dict[str, object]:
    # A function instead of the type, so that a template does not get a class in its hands.
    return dict(*args, **kwargs)


def _raise_exception(message: object) -> object:
    raise jinja2.TemplateError(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML characters, which a prompt must not have.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
