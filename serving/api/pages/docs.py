"""The documentation page: one HTML text from an OpenAPI document, without scripts and without anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from serving.api.pages.style import CSS

Json = Mapping[str, Any]

_MACHINE_LIMIT = 2**31 - 1
"""Bounds from here on are those of the number's type; the document has them, a reader needs no such number."""
_ENVELOPE_FIELDS = 3
"""A body with so few fields is shown together with the objects in it."""


def content_security_policy() -> str:
    """Nothing but the page's own style may be used."""
    digest = base64.b64encode(hashlib.sha256(CSS.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def render(document: Json) -> str:
    """The whole page."""
    info = document["info"]
    operations = list(_operations(document))
    # What answers calls comes first, what tells of the server last.
    tags = dict.fromkeys(
        op["tags"][0] for method in ("post", "get") for verb, _, op in operations if verb == method
    )
    groups = {tag: [each for each in operations if each[2]["tags"][0] == tag] for tag in tags}
    contents = "".join(
        f"<p>{escape(tag)}</p><ul>{''.join(_link(*each) for each in group)}</ul>"
        for tag, group in groups.items()
    )
    sections = "".join(
        f"<h2>{escape(tag)}</h2>{''.join(_section(document, *each) for each in group)}"
        for tag, group in groups.items()
    )
    schemas = "".join(
        f'<section id="schema-{escape(name)}"><h3><code>{escape(name)}</code></h3>{_fields(schema)}</section>'
        for name, schema in sorted(document["components"]["schemas"].items())
    )
    key = (
        "<p>Every call needs <code>Authorization: Bearer $API_KEY</code>, except where noted.</p>"
        if "security" in document
        else ""
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])}</title><style>{CSS}</style></head><body>"
        f'<nav>{contents}<p><a href="#schemas">Schemas</a></p></nav><main>'
        f"<header><h1>{escape(info['title'])} <span class=soft>{escape(info['version'])}</span></h1>"
        f'<p>{escape(info["description"])} The same as <a href="/api-doc/openapi.json">OpenAPI&nbsp;3.1</a>.</p>'
        f'{key}<p class=soft>A click on a command selects all of it.</p></header>{sections}<h2 id="schemas">Schemas</h2>'
        f"{schemas}</main></body></html>"
    )


def curl(document: Json, method: str, path: str, operation: Json) -> str:
    """A command that calls the operation as it stands, against a server on this machine. Parts of the path are left to
    the shell's variables."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    [answer] = [each for code, each in operation["responses"].items() if int(code) < 300]
    streams = list(answer["content"]) == ["text/event-stream"]
    place = re.sub(r"\{(\w+)\}", lambda part: f"${part[1].upper()}", path)
    parts = [f"curl {'-N ' if streams else ''}http://localhost:8080{place}"]
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


def _link(method: str, path: str, operation: Json) -> str:
    return f'<li><a href="#{escape(operation["operationId"])}">{_method(method)}<code>{escape(path)}</code></a></li>'


def _section(document: Json, method: str, path: str, operation: Json) -> str:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    body = f"<h4>Body</h4>{_body(document, content['schema'])}" if content else ""
    statuses = "".join(
        f"<tr><td><code>{status}</code></td><td>{_text(answer['description'])}</td><td>{_bodies(answer)}</td></tr>"
        for status, answer in sorted(operation["responses"].items())
    )
    note = f"<p>{_text(operation['description'])}</p>" if "description" in operation else ""
    return (
        f'<section id="{escape(operation["operationId"])}"><h3>{_method(method)}<code>{escape(path)}</code></h3>'
        f"<p>{escape(operation['summary'])}.</p>{note}<pre>{escape(curl(document, method, path, operation))}</pre>{body}"
        "<details><summary>Answers</summary><table><tr><th>Status<th>Meaning<th>Body</tr>"
        f"{statuses}</table></details></section>"
    )


def _body(document: Json, schema: Json) -> str:
    body = _resolved(document, schema)
    shown = _fields(body)
    fields = body.get("properties", {})
    if len(fields) > _ENVELOPE_FIELDS:
        return shown
    inner = {name: _resolved(document, field) for name, field in fields.items() if "$ref" in field}
    return shown + "".join(
        f"<h4><code>{escape(name)}</code></h4>{_fields(field)}" for name, field in inner.items()
    )


def _fields(schema: Json) -> str:
    note = f"<p>{_text(schema['description'])}</p>" if "description" in schema else ""
    required = set(schema.get("required", ()))
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{' <b>required</b>' if name in required else ''}</td>"
        f"<td>{_type(field, null=name in required)}</td><td>{_meaning(field)}</td></tr>"
        for name, field in sorted(
            schema.get("properties", {}).items(), key=lambda each: each[0] not in required
        )
    )
    if not rows:
        return f"{note}<p>{_type(schema)}</p>"
    return f"{note}<table><tr><th>Field<th>Type<th>Meaning</tr>{rows}</table>"


def _meaning(field: Json) -> str:
    notes = [_range(field), _size(field, "Length", "character"), _size(field, "Items", "item")]
    if field.get("default") not in (None, [], {}) and len(field.get("enum", "**")) > 1:
        notes.append(f"default {json.dumps(field['default'])}")
    noted = ", ".join(note for note in notes if note)
    meaning = _text(field.get("description", ""))
    return f"{meaning} <span class=limits>({escape(noted)})</span>" if noted else meaning


def _range(field: Json) -> str:
    low, above, high = (field.get(name) for name in ("minimum", "exclusiveMinimum", "maximum"))
    if low is not None and low <= -_MACHINE_LIMIT:
        low = None
    if high is not None and high >= _MACHINE_LIMIT:
        high = None
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    if above is not None:
        return f"above {above:g}" + ("" if high is None else f", at most {high:g}")
    if low is not None:
        return f"at least {low:g}"
    return "" if high is None else f"at most {high:g}"


def _size(field: Json, keyword: str, unit: str) -> str:
    low, high = field.get(f"min{keyword}"), field.get(f"max{keyword}")
    if low is None and high is None:
        return ""
    amount = f"{low} to {high}" if low and high else f"at most {high}" if high else f"at least {low}"
    return f"{amount} {unit}{'' if (high or low) == 1 else 's'}"


def _type(field: Json, *, null: bool = True) -> str:
    """Links and names. Without `null` only what may be there besides it."""
    if "$ref" in field:
        name = escape(field["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    if "anyOf" in field or "oneOf" in field:
        kinds = list(dict.fromkeys(_type(kind) for kind in field.get("anyOf") or field["oneOf"]))
        return " or ".join([kind for kind in kinds if null or kind != "null"] or kinds)
    if "enum" in field or "const" in field:
        values = field.get("enum", [field.get("const")])
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in values)
    if field.get("type") == "array" and field.get("items"):
        return f"array of {_type(field['items'])}"
    return escape(str(field.get("type", "any JSON value")))


def _resolved(document: Json, schema: Json) -> Json:
    if "$ref" not in schema:
        return schema
    found: Json = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found


def _bodies(answer: Json) -> str:
    return ", ".join(
        f"<code>{escape(kind)}</code> {_type(_event(media['schema']))}"
        for kind, media in answer["content"].items()
    )


def _event(schema: Json) -> Json:
    """What the data of a server-sent event holds, or the schema as it is."""
    data: Json = schema.get("properties", {}).get("data", {})
    found: Json = data.get("contentSchema", schema)
    return found


def _method(method: str) -> str:
    return f'<span class="method {escape(method)}">{escape(method.upper())}</span>'


def _text(text: str) -> str:
    """`code` in descriptions."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))
