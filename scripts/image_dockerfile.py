"""Reads Dockerfiles: instructions, stages, variables. Knows the subset that ours use, and refuses the rest by name."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

KNOWN = frozenset({"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "LABEL", "EXPOSE", "ENTRYPOINT"})
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}|\$(\w+)")


@dataclass(frozen=True, slots=True)
class Instruction:
    kind: str
    text: str
    """All after the instruction's name, continued lines joined."""

    def words(self) -> list[str]:
        """Arguments that are not options (`--name=value`)."""
        return [word for word in shlex.split(self.text) if not word.startswith("--")]

    def option(self, name: str) -> str | None:
        found = [word for word in shlex.split(self.text) if word.startswith(f"--{name}=")]
        return found[0].partition("=")[2] if found else None

    def pairs(self) -> dict[str, str]:
        """The `name=value` of ENV, LABEL and ARG; an ARG without a value is not among them."""
        return dict(word.split("=", 1) for word in self.words() if "=" in word)

    def exec_form(self) -> list[str]:
        """Raises `ValueError` for the shell form."""
        try:
            command = json.loads(self.text)
        except json.JSONDecodeError:
            raise ValueError(f"{self.kind} {self.text}: not the exec form, a JSON list of strings") from None
        if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
            raise ValueError(f"{self.kind} {self.text}: not a list of strings")
        return command


@dataclass(slots=True)
class Stage:
    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[Instruction]:
        return [instruction for instruction in self.instructions if instruction.kind == kind]

    def pairs(self, kind: str) -> dict[str, str]:
        return {
            name: value for instruction in self.of_kind(kind) for name, value in instruction.pairs().items()
        }


@dataclass(slots=True)
class Dockerfile:
    arguments: dict[str, str]
    """Those before the first FROM, with their defaults."""
    stages: list[Stage]

    @property
    def final(self) -> Stage:
        return self.stages[-1]


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Raises `ValueError` for a variable that has neither a value nor a default."""

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[3]
        if name in variables:
            return variables[name]
        if found[2] is None:
            raise ValueError(f"{found[0]} has no value; name it with --build-arg {name}=...")
        return found[2]

    return _VARIABLE.sub(value, text)


def parse(text: str) -> Dockerfile:
    """Raises `ValueError` for what is not in `KNOWN`."""
    parsed = Dockerfile(arguments={}, stages=[])
    joined = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(None, (line.strip() for line in joined.splitlines())):
        kind, _, rest = line.partition(" ")
        instruction = Instruction(kind.upper(), " ".join(rest.split()) if kind != "RUN" else rest.strip())
        if instruction.kind not in KNOWN:
            raise ValueError(f"{kind}: only {', '.join(sorted(KNOWN))} are known")
        if instruction.kind == "FROM":
            words = instruction.words()
            name = words[2] if len(words) == 3 else str(len(parsed.stages))
            parsed.stages.append(Stage(expand(words[0], parsed.arguments), name))
        elif parsed.stages:
            parsed.stages[-1].instructions.append(instruction)
        else:
            parsed.arguments.update(instruction.pairs())
    if not parsed.stages:
        raise ValueError("no FROM")
    return parsed
