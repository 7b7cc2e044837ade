"""Builds grammars in llguidance's Lark dialect out of literal texts, schemas and special tokens.

The dialect: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from serving.sampling_params import Grammar

# As Python's `json.dumps` writes, which is what models were trained on; no room for endless whitespace.
_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_BOUNDED_SPACE = {
    "whitespace_flexible": True,
    "whitespace_pattern": r"[ ]?|\n {0,16}",
    "item_separator": ",",
    "key_separator": ":",
}
# Words of a schema that constrain nothing; those whose members are schemas under names of the author's; and those
# whose value is data.
_DESCRIPTIVE = {
    "description",
    "title",
    "examples",
    "default",
    "$comment",
    "deprecated",
    "readOnly",
    "writeOnly",
}
_NAMED_SCHEMAS = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
_DATA = {"enum", "const", "required", "type"}
# Any text. A special token is never part of it.
_TEXT = "/(.|\\n)+/"
_SPACE = "/[ \\n]{1,4}/"


class LarkGrammar:
    """Rules of one grammar. Every method returns an expression to be used in further rules.

    `special_ids` maps the spellings of a model's special tokens to their ids: in a literal text each stands for the
    token, since text can never produce it.
    """

    def __init__(self, special_ids: Mapping[str, int]) -> None:
        self._special_ids = special_ids
        self._rules: dict[str, str] = {}

    def rule(self, name: str, body: str) -> str:
        """Add `name: body`. Names in capitals are for what the lexer reads in one piece, `name[lazy]` for its kind
        that ends as early as it can."""
        self._rules[name] = body
        return name.partition("[")[0]

    def literal(self, text: str) -> str:
        """Exactly `text`; "" for no text."""
        parts: list[str] = []
        while text:
            found = min(
                (
                    (text.find(spelling), -len(spelling), spelling)
                    for spelling in self._special_ids
                    if spelling in text
                ),
                default=(len(text), 0, ""),
            )
            if found[0] > 0:
                parts.append(json.dumps(text[: found[0]], ensure_ascii=False))
            if found[2]:
                parts.append(self._token(found[2]))
            text = text[found[0] + len(found[2]) :]
        return " ".join(parts)

    def json(self, name: str, schema: Mapping[str, object]) -> str:
        """A JSON value that `schema` describes, written as `json.dumps` would."""
        return self.rule(name, "%json " + json.dumps({**_constraints(schema), "x-guidance": _JSON_STYLE}))

    def text(self, allowed: Sequence[str] = ()) -> str:
        """Any text or none, with the special tokens `allowed` anywhere in it."""
        return f"{self._up_to_token(allowed)} {self.rule('TEXT', _TEXT)}?".lstrip()

    def text_up_to(self, name: str, markers: Sequence[str], allowed: Sequence[str] = ()) -> str:
        """Any text or none, to the end of the first of `markers`."""
        tokens = [self._token(marker) for marker in markers if marker in self._special_ids]
        spelled = [_regex(marker) for marker in markers if marker not in self._special_ids]
        ways = [f"{self.text(allowed)} {token}" for token in tokens]
        if spelled:
            lazy = self.rule(f"{name}_text[lazy]", f"/(.|\n)*({'|'.join(spelled)})/")
            ways.append(f"{self._up_to_token(allowed)} {lazy}".lstrip())
        return self.rule(name, " | ".join(ways))

    def _up_to_token(self, allowed: Sequence[str]) -> str:
        ids = [self._special_ids[spelling] for spelling in allowed if spelling in self._special_ids]
        if not ids:
            return ""
        name = "tokens_" + "_".join(map(str, ids))
        return self.rule(name, f"({self.rule('TEXT', _TEXT)}? <[{','.join(map(str, ids))}]>)*")

    def space(self) -> str:
        """A little whitespace or none."""
        self.rule("SPACE", _SPACE)
        return "SPACE?"

    def embed(self, name: str, grammar: Grammar) -> str:
        """What `grammar` describes."""
        if grammar.kind == "json_schema":
            return self.rule(name, "%json " + _with_bounded_space(grammar.source))
        if grammar.kind == "regex":
            return self.rule(name, f"/{_without_slashes(grammar.source)}/")
        return self.rule(name, "%lark {\n" + grammar.source + "\n}")

    def build(self, start: str) -> Grammar:
        rules = "\n".join(f"{name}: {body}" for name, body in {"start": start, **self._rules}.items())
        return Grammar(kind="lark", source="%llguidance {}\n" + rules + "\n")

    def _token(self, spelling: str) -> str:
        return f"<[{self._special_ids[spelling]}]>"


def _regex(text: str) -> str:
    """A regular expression for exactly `text`."""
    return "".join(char if char.isalnum() else f"\\x{{{ord(char):x}}}" for char in text)


def num_schema_bytes(schema: Mapping[str, object]) -> int:
    """How much of a grammar `schema` takes up."""
    return len(json.dumps(_constraints(schema)))


def _constraints(schema: Mapping[str, object]) -> dict[str, object]:
    """The schema without its descriptions, which are most of it and would count against the size of a grammar."""
    kept: dict[str, object] = {}
    for word, value in schema.items():
        if word in _DESCRIPTIVE:
            continue
        if word in _NAMED_SCHEMAS and isinstance(value, Mapping):
            kept[word] = {name: _constraints_of_any(part) for name, part in value.items()}
        elif isinstance(value, list) and word not in _DATA:
            kept[word] = [_constraints_of_any(part) for part in value]
        else:
            kept[word] = value if word in _DATA else _constraints_of_any(value)
    return kept


def _constraints_of_any(value: object) -> object:
    return _constraints(value) if isinstance(value, Mapping) else value


def _with_bounded_space(schema: str) -> str:
    """The schema with the bounds that whitespace has in answers which are JSON alone."""
    try:
        decoded = json.loads(schema)
    except (ValueError, RecursionError):
        return schema
    return json.dumps({**decoded, "x-guidance": _BOUNDED_SPACE}) if isinstance(decoded, dict) else schema


def _without_slashes(regex: str) -> str:
    """`regex` with every slash escaped, so that it can stand between two."""
    escaped: list[str] = []
    behind_backslash = False
    for char in regex:
        escaped.append("\\/" if char == "/" and not behind_backslash else char)
        behind_backslash = char == "\\" and not behind_backslash
    return "".join(escaped)
