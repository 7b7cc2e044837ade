"""The documentation page: one HTML text from an OpenAPI document, without scripts and without anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from serving.api.pages.style import CSS

Json = Mapping[str, Any]

_BOUNDS = (
    ("minimum", "≥ {}"),
    ("exclusiveMinimum", "> {}"),
    ("maximum", "≤ {}"),
    ("minLength", "at least {} characters"),
    ("maxLength", "at most {} characters"),
    ("minItems", "at least {} items"),
    ("maxItems", "at most {} items"),
)


def content_security_policy() -> str:
    """Nothing but the page's own style may be used."""
    digest = base64.b64encode(hashlib.sha256(CSS.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def render(document: Json) -> str:
    """The whole page."""
    info = document["info"]
    needs_key = "security" in document
    operations = list(_operations(document))
    tags = list(dict.fromkeys(operation["tags"][0] for _, _, operation in operations))
    links = "".join(
        f'<a href="#{escape(op["operationId"])}">{_method(method)}<code>{escape(path)}</code></a>'
        for method, path, op in operations
    )
    sections = "".join(
        f"<h2>{escape(tag)}</h2>"
        + "".join(_section(document, *each) for each in operations if each[2]["tags"][0] == tag)
        for tag in tags
    )
    schemas = "".join(
        f'<details id="schema-{escape(name)}"><summary><code>{escape(name)}</code></summary>{_fields(schema)}</details>'
        for name, schema in sorted(document["components"]["schemas"].items())
    )
    key = (
        "<p>Every call needs <code>Authorization: Bearer $API_KEY</code>, except where noted.</p>"
        if needs_key
        else ""
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])}</title><style>{CSS}</style></head><body>"
        f"<h1>{escape(info['title'])} <span class=soft>{escape(info['version'])}</span></h1>"
        f'<p class=soft>{escape(info["description"])} The same as <a href="/api-doc/openapi.json">OpenAPI 3.1</a>.</p>'
        f"{key}<nav>{links}</nav>{sections}<h2>Schemas</h2>{schemas}</body></html>"
    )


def curl(document: Json, method: str, path: str, operation: Json) -> str:
    """A command that calls the operation as it stands, against a server on this machine."""
    parts = ["curl"]
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    if "text/event-stream" in operation["responses"]["200"]["content"]:
        parts.append("-N")
    parts.append(f"http://localhost:8080{path}")
    if operation.get("security", document.get("security")):
        parts.append('-H "authorization: Bearer $API_KEY"')
    if content:
        body = json.dumps(content.get("example", {}), ensure_ascii=False).replace("'", "'\\''")
        parts += ["-H 'content-type: application/json'", f"-d '{body}'"]
    return " \\\n  ".join(parts)


def _operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def _section(document: Json, method: str, path: str, operation: Json) -> str:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    fields = f"<h3>Body</h3>{_fields(_resolved(document, content['schema']))}" if content else ""
    statuses = "".join(
        f"<tr><td><code>{status}</code></td><td>{escape(answer['description'])}</td><td>{_bodies(answer)}</td></tr>"
        for status, answer in sorted(operation["responses"].items())
    )
    note = f"<p>{_text(operation['description'])}</p>" if "description" in operation else ""
    return (
        f'<details id="{escape(operation["operationId"])}" open><summary>{_method(method)}<code>{escape(path)}</code> '
        f"<span class=soft>{escape(operation['summary'])}</span></summary>{note}"
        f"<pre>{escape(curl(document, method, path, operation))}</pre>{fields}"
        f"<details><summary>Answers</summary><div class=scroll><table><tr><th>Status<th>Meaning<th>Body</tr>{statuses}"
        "</table></div></details></details>"
    )


def _fields(schema: Json) -> str:
    note = f"<p>{_text(schema['description'])}</p>" if "description" in schema else ""
    required = set(schema.get("required", ()))
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{_type(field)}</td><td>{_default(field, name in required)}</td>"
        f"<td>{_text(_meaning(field))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    )
    if not rows:
        return f"{note}<p>{_type(schema)}</p>"
    return (
        f"{note}<div class=scroll><table><tr><th>Field<th>Type<th>Default<th>Meaning</tr>{rows}</table></div>"
    )


def _meaning(field: Json) -> str:
    bounds = [text.format(f"{field[name]:g}" if isinstance(field[name], float) else field[name])
              for name, text in _BOUNDS if name in field]  # fmt: skip
    return "; ".join([text for text in (field.get("description", ""), ", ".join(bounds)) if text])


def _type(field: Json) -> str:
    if "$ref" in field:
        name = escape(field["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    if "anyOf" in field or "oneOf" in field:
        return " or ".join(dict.fromkeys(_type(kind) for kind in field.get("anyOf") or field["oneOf"]))
    if "enum" in field or "const" in field:
        values = field.get("enum", [field.get("const")])
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in values)
    if field.get("type") == "array" and field.get("items"):
        return f"array of {_type(field['items'])}"
    return escape(str(field.get("type", "any JSON value")))


def _default(field: Json, required: bool) -> str:
    if required:
        return "required"
    return f"<code>{escape(json.dumps(field['default']))}</code>" if "default" in field else "absent"


def _resolved(document: Json, schema: Json) -> Json:
    if "$ref" not in schema:
        return schema
    found: Json = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found


def _bodies(answer: Json) -> str:
    return ", ".join(
        f"<code>{escape(kind)}</code> {_type(media['schema'])}" for kind, media in answer["content"].items()
    )


def _method(method: str) -> str:
    return f'<span class="method {escape(method)}">{escape(method.upper())}</span>'


def _text(text: str) -> str:
    """`code` in descriptions."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))
