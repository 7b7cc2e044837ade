"""Compiles a chat template so that it can do nothing but make text, of limited size in limited time.

The template is data from a stranger: it sees plain JSON values, no attribute that starts with an underscore, and cannot
change what it is given. Names, filters and blanks are those of transformers. Knows nothing of chats.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from serving.errors import TemplateError
from serving.text.template_checks import FILTERS, Check, check_method, check_operator
from serving.text.template_meter import Meter, current_meter, metered

MAX_SOURCE_CHARS = 1 << 20
_MAX_DATE_PATTERN = 256
_MAX_REASON_CHARS = 500
# Search with regular expressions, or print for people: no chat template needs them.
_REMOVED_FILTERS = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")

# What a template can raise besides jinja2's own errors: it computes with values that a client sent, and its source
# may be anything. RuntimeError includes RecursionError.
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


class CompiledTemplate:
    """One template, compiled. Any thread may render it."""

    def __init__(self, source: str) -> None:
        """Raises `TemplateError` for a source that is not a template."""
        if len(source) > MAX_SOURCE_CHARS:
            raise TemplateError(f"Template error: the template is longer than {MAX_SOURCE_CHARS} characters")
        environment = _Environment()
        try:
            self._template = environment.from_string(source)
            # Names it reads without setting them.
            self.variables = frozenset(environment.undeclared_variables(source))
        except _TEMPLATE_ERRORS as error:
            raise _refusal(error) from error

    def render(self, variables: Mapping[str, object]) -> str:
        """The text. Raises `TemplateError` when the template fails, refuses, or reaches a limit."""
        pieces: list[str] = []
        try:
            with metered(Meter(*variables.values())) as meter:
                num_chars = 0
                for piece in self._template.generate(variables):
                    num_chars += len(piece)
                    if num_chars > meter.max_output_chars:
                        raise SecurityError(
                            f"the template writes more than {meter.max_output_chars} characters"
                        )
                    pieces.append(piece)
        except _TEMPLATE_ERRORS as error:
            raise _refusal(error) from error
        return "".join(pieces)


def _refusal(error: Exception) -> TemplateError:
    reason = str(error) or type(error).__name__
    if len(reason) > _MAX_REASON_CHARS:
        reason = reason[:_MAX_REASON_CHARS] + "…"
    return TemplateError(f"Template error: {reason}")


class _Environment(ImmutableSandboxedEnvironment):
    """Every loop, call, operator, filter and new value goes through the running rendering's `Meter`."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
        )
        self.finalize = self.shown
        self.filters["tojson"] = _to_json
        for name in _REMOVED_FILTERS:
            del self.filters[name]
        self.filters = {name: _metered_filter(name, func) for name, func in self.filters.items()}
        names: dict[str, object] = {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "namespace": _TemplateNamespace,
            "dict": _template_dict,
            "range": self.globals["range"],
        }
        # jinja2's own globals hold more than templates use (lipsum, cycler, joiner): less to reach through.
        self.globals.clear()
        self.globals.update(names)

    def undeclared_variables(self, source: str) -> set[str]:
        return meta.find_undeclared_variables(super()._parse(source, None, None))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Instrument().visit(super()._parse(source, name, filename))
        return tree

    def call(self, context: Context, callee: Any, /, *args: Any, **kwargs: Any) -> Any:
        meter = current_meter()
        meter.tick()
        arguments = check_method(meter, callee, list(args), kwargs)
        return meter.keep(super().call(context, callee, *arguments, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = current_meter()
        check_operator(meter, operator, left, right)
        return meter.keep(super().call_binop(context, operator, left, right))

    def concat(self, parts: Iterable[str]) -> str:
        """Joins what a macro or a block wrote."""
        return current_meter().join(parts)

    # The compiled template calls these where `_Instrument` put them.

    def tick(self) -> None:
        """An iteration begins; `call` has counted it."""

    def kept(self, value: object) -> object:
        """A new list or object, or one side of a comparison; `call` accounts for its result."""
        return value

    def shown(self, value: object) -> object:
        """A value that becomes text."""
        meter = current_meter()
        meter.require_size(meter.size(value))
        return value

    def joined(self, *values: object) -> str:
        """`a ~ b`."""
        for value in values:
            self.shown(value)
        return current_meter().join([str(value) for value in values])

    def sliced(self, value: Any, start: object, stop: object, step: object) -> Any:
        """`value[start:stop:step]`."""
        return value[slice(start, stop, step)]


class _Instrument(NodeTransformer):
    """Puts calls of the environment's methods where compiled code would do work unseen."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("tick", node), lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("joined", node, *node.nodes)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _call("kept", node, node.expr)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return self._literal(node, node.items)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self.generic_visit(node) if node.ctx != "load" else self._literal(node, node.items)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return self._literal(node, [item for pair in node.items for item in (pair.key, pair.value)])

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        parts = (node.arg.start, node.arg.stop, node.arg.step)
        return _call("sliced", node, node.node, *(part or nodes.Const(None) for part in parts))

    def _literal(self, node: nodes.Expr, items: list[nodes.Expr]) -> nodes.Node:
        self.generic_visit(node)
        if all(isinstance(item, nodes.Const) for item in items):
            return node
        return _call("kept", node, node)


def _call(name: str, at: nodes.Node, *args: nodes.Expr) -> nodes.Call:
    callee = nodes.EnvironmentAttribute(name, lineno=at.lineno)
    return nodes.Call(callee, list(args), [], None, None, lineno=at.lineno)


def _metered_filter(name: str, func: Callable[..., Any]) -> Callable[..., Any]:
    check: Check | None = FILTERS.get(name)
    # Some filters get jinja2's context first; `wraps` keeps the mark by which jinja2 knows them.
    first = 1 if hasattr(func, "jinja_pass_arg") else 0

    @functools.wraps(func)
    def metered_filter(*args: Any, **kwargs: Any) -> Any:
        meter = current_meter()
        given = list(args[first:])
        meter.tick(meter.size(given[0]))
        if check is not None:
            check(meter, given, kwargs)
        return meter.keep(func(*args[:first], *given, **kwargs))

    return metered_filter


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

    def __repr__(self) -> str:
        # Namespaces may hold each other, many times over: their content is never text.
        return "<Namespace>"


def _require_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no {name!r}: use a name without leading underscore")


def _template_dict(*args: object, **kwargs: object) -> dict[str, object]:
    # A function instead of the type, so that a template does not get a class in its hands.
    return dict(*args, **kwargs)


def _raise_exception(message: object) -> object:
    raise jinja2.TemplateError(str(message))


def _strftime_now(pattern: str) -> str:
    if len(pattern) > _MAX_DATE_PATTERN:
        raise SecurityError(f"the date pattern is longer than {_MAX_DATE_PATTERN} characters")
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
