"""Random JSON schemas that something matches, with everything that the engine enforces, from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable

Schema = dict[str, object]
_FORMATS = ("date", "time", "date-time", "uuid", "email", "ipv4")
_PATTERNS = ("^[a-z]{2,6}$", "^(red|green)-[0-9]+$", "^x[A-F0-9]{4}$", "ab+c")
_NAMES = ("name", "age", "tags", "kind", "value", "left", "right", "an odd name", 'quo"ted', "ünïcode")


class SchemaMaker:
    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._definitions: Schema = {}

    def make(self) -> Schema:
        """A whole schema: mostly an object, sometimes with definitions, sometimes recursive."""
        root = self._chance.choice((self._object, self._object, self._array, self._any_of))(3)
        if self._chance.random() < 0.3:
            self._definitions["node"] = {
                "type": "object",
                "properties": {"label": self._string(0), "next": {"$ref": "#/$defs/node"}},
                "required": ["label"],
                "additionalProperties": False,
            }
            properties = {"root": root, "tree": {"$ref": "#/$defs/node"}}
            root = {
                "type": "object",
                "properties": properties,
                "required": ["tree"],
                "additionalProperties": False,
            }
        return root | ({"$defs": self._definitions} if self._definitions else {})

    def _any(self, depth: int) -> Schema:
        makers: list[Callable[[int], Schema]] = [
            self._string, self._integer, self._number, self._enum, self._const, self._simple,
        ]  # fmt: skip
        if depth > 0:
            makers += [self._object, self._array, self._any_of]
        return self._chance.choice(makers)(depth - 1)

    def _object(self, depth: int) -> Schema:
        names = self._chance.sample(_NAMES, self._chance.randint(1, 4))
        schema: Schema = {
            "type": "object",
            "properties": {name: self._any(depth) for name in names},
            "required": [name for name in names if self._chance.random() < 0.6],
            "additionalProperties": False,
        }
        if self._chance.random() < 0.2:
            schema["additionalProperties"] = {"type": "integer", "maximum": 99}
            schema["maxProperties"] = len(names) + 2
            schema["required"] = names
        return schema

    def _array(self, depth: int) -> Schema:
        least = self._chance.randint(0, 2)
        schema: Schema = {
            "type": "array",
            "items": self._any(depth),
            "minItems": least,
            "maxItems": least + 2,
        }
        if self._chance.random() < 0.2:
            schema["prefixItems"] = [{"type": "boolean"}]
        return schema

    def _any_of(self, depth: int) -> Schema:
        return {"anyOf": [self._any(depth) for _ in range(self._chance.randint(1, 3))]}

    def _string(self, depth: int) -> Schema:
        kind = self._chance.random()
        if kind < 0.3:
            return {"type": "string", "pattern": self._chance.choice(_PATTERNS), "maxLength": 30}
        if kind < 0.5:
            return {"type": "string", "format": self._chance.choice(_FORMATS)}
        least = self._chance.randint(0, 4)
        return {"type": "string", "minLength": least, "maxLength": least + self._chance.randint(1, 12)}

    def _integer(self, depth: int) -> Schema:
        least = self._chance.randint(-1000, 1000)
        schema: Schema = {
            "type": "integer",
            "minimum": least,
            "maximum": least + self._chance.randint(20, 999),
        }
        if self._chance.random() < 0.3:
            schema["multipleOf"] = self._chance.choice((2, 5, 7))
        return schema

    def _number(self, depth: int) -> Schema:
        least = self._chance.randint(-50, 50)
        return {"type": "number", "exclusiveMinimum": least, "maximum": least + 7.5}

    def _enum(self, depth: int) -> Schema:
        members = ["a", "b c", 'd"e', 1, -2.5, None, True, {"k": [1]}]
        return {"enum": self._chance.sample(members, self._chance.randint(1, 4))}

    def _const(self, depth: int) -> Schema:
        return {"const": self._chance.choice(["fixed", 3, False, None, [1, "x"], {"a": {"b": None}}])}

    def _simple(self, depth: int) -> Schema:
        return {"type": self._chance.choice(["boolean", "null", ["boolean", "null"]])}
