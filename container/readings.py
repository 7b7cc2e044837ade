"""Named texts, from the environment or a file, -> values of fields; refusals, conflicts and what has no effect.

Knows names and their families, nothing of where the texts come from.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from container import variables
from container.families import FAMILIES
from container.families.hugging_face import LIBRARY_PREFIXES
from container.fields import is_address, short
from container.variables import ALIASES, VARIABLES, Variable
from serving.errors import ConfigError

IGNORED_PREFIXES = tuple(ignored for family in FAMILIES for ignored in family.ignored_prefixes)
_SILENT_PREFIXES = (*LIBRARY_PREFIXES, *(ignored.prefix for ignored in IGNORED_PREFIXES))
SECRET_FIELDS = frozenset({"http.api_key"})


@dataclass(frozen=True, slots=True)
class Given:
    """A text under a name of the tables. `source` is what a person looks for: a variable, or a key of a file."""

    name: str
    text: str
    source: str


@dataclass(slots=True)
class Readings:
    """Values and sources by field path, and lines for the log."""

    values: dict[str, object] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Candidate:
    given: Given
    value: object


def from_environment(environ: Mapping[str, str]) -> list[Given]:
    """Every variable that is set; an empty one counts as unset."""
    return [Given(name, text.strip(), name) for name, text in environ.items() if text.strip()]


def read(givens: Sequence[Given]) -> Readings:
    """Everything that `givens` say. Raises `ConfigError` for the first that is refused, wrong or contradicted."""
    found = Readings()
    _judge(givens, found)
    fields = [variable.field for variable in VARIABLES]
    fields += [alias.field for alias in ALIASES if alias.field not in fields]
    for path in dict.fromkeys(fields):
        candidates = _candidates(path, givens)
        if candidates:
            found.values[path] = _agreed(candidates, path)
            found.sources[path] = candidates[0].given.source
    if (line := _unknown_names(givens)) is not None:
        found.warnings.append(line)
    return found


def shown(given: Given, path: str) -> str:
    """`NAME=text`, or `key=text in file`, without the text of a secret."""
    name, _, file = given.source.partition(" in ")
    return f"{name}={'***' if path in SECRET_FIELDS else short(given.text)}" + (f" in {file}" if file else "")


def _judge(givens: Sequence[Given], found: Readings) -> None:
    refusals = {item.name: item for family in FAMILIES for item in family.refusals}
    idle = {item.name: item for family in FAMILIES for item in family.no_effects}
    for given in givens:
        if (refusal := refusals.get(given.name)) and given.text.lower() not in refusal.harmless:
            raise ConfigError(f"{given.source} is set, but {refusal.reason}; unset {given.source}")
        if (reason := idle.get(given.name)) is not None:
            found.warnings.append(f"{given.source} has no effect because {reason.reason}")
    for ignored in IGNORED_PREFIXES:
        names = sorted(given.source for given in givens if given.name.startswith(ignored.prefix))
        if names:
            found.warnings.append(f"{', '.join(names)} have no effect because {ignored.reason}")


def _candidates(path: str, givens: Sequence[Given]) -> list[_Candidate]:
    """What is given for `path`, our own names first, without what yields to another name."""
    present = {given.name for given in givens}
    variable = next((row for row in VARIABLES if row.field == path), None)
    found: list[_Candidate] = []
    for name in variable.names if variable is not None else variables.names_of(path)[:1]:
        for given in (given for given in givens if given.name == name):
            if path == "http.host" and not is_address(given.text):
                continue  # Docker sets HOSTNAME to the container's name
            found.append(_Candidate(given, _own_value(variable, given, path)))
        if found and variable is not None and variable.ranked:
            break
    for alias in ALIASES:
        if alias.field != path or present.intersection(alias.yields_to):
            continue
        for given in (given for given in givens if given.name == alias.name):
            _require_built(path, given)
            try:
                value = alias.parse(given.text)
            except ValueError as error:
                raise _wrong(given, path, error) from error
            found.append(_Candidate(given, value))
    return found


def _own_value(variable: Variable | None, given: Given, path: str) -> object:
    _require_built(path, given)
    if variable is None:
        return given.text
    try:
        return variable.parse(given.name, given.text)
    except ValueError as error:
        raise _wrong(given, path, error) from error


def _require_built(path: str, given: Given) -> None:
    if path == "model.quantize":
        raise ConfigError(
            f"{shown(given, path)}: quantization scheme {short(given.text)!r} is not built yet; "
            f"unset {given.source} to serve in DTYPE"
        )


def _wrong(given: Given, path: str, error: ValueError) -> ConfigError:
    return ConfigError(f"{shown(given, path)} is not valid; allowed: {error}")


def _agreed(candidates: Sequence[_Candidate], path: str) -> object:
    first = candidates[0]
    for other in candidates[1:]:
        if other.value != first.value:
            raise ConfigError(
                f"{shown(first.given, path)} and {shown(other.given, path)} are one setting: unset one"
            )
    return first.value


def _unknown_names(givens: Sequence[Given]) -> str | None:
    known = variables.known_names()
    unknown = sorted(
        (given.source, given.name)
        for given in givens
        if given.name.startswith(variables.OUR_PREFIXES)
        and not given.name.startswith(_SILENT_PREFIXES)
        and given.name not in known
        and given.name not in variables.PLATFORM_NAMES
    )
    if not unknown:
        return None
    return "unknown variables have no effect: " + ", ".join(
        _with_suggestion(source, name, sorted(known)) for source, name in unknown
    )


def _with_suggestion(source: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f"{source} (did you mean {close[0]}?)" if close else source
