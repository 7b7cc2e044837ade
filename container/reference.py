"""`python -m container.reference > docs/configuration.md`: the configuration reference, from the table."""

from __future__ import annotations

import sys

import msgspec

from container.archive import MAX_MEMBERS, MAX_RATIO
from container.variables import HF_TOKENS, NOT_BUILT, VARIABLES, Variable, all_fields, field_description

_TOKENS = ", then ".join(f"`{name}`" for name in HF_TOKENS)

_INTRODUCTION = f"""\
# Configuration

<!-- Made by `python -m container.reference > docs/configuration.md`; do not edit. -->

Every setting is an environment variable of the container and a flag of `textgen-endpoint serve`; a flag wins.
An empty variable counts as unset. Two names of one setting with different values are a start error, except
where "then" gives their order. A name that begins like ours but is unknown is listed in a warning, and every
setting is logged at start with its value and the variable it came from.

## Model

| Variable | Meaning |
| --- | --- |
| `MODEL_ID` | Hub id, local folder, `s3://` prefix or `demo`; first rung of the ladder. Flag: `--model-id` |
| (the model folder) | `/opt/ml/model` with a `config.json` or a `model.tar.gz`; second rung |
| `HF_MODEL_ID` | as `MODEL_ID`; last rung |
| `SAGEMAKER_BASE_DIR` | takes the place of `/opt/ml` |
| {_TOKENS} | for private and gated models; never logged, never given to engine or front |

## Settings

| Variable | Flag | Allowed | Default | Meaning |
| --- | --- | --- | --- | --- |
"""

_ENDING = f"""
`SAGEMAKER_MAX_PAYLOAD_IN_MB` counts MiB, and 0 stands for 1 GiB. A `HOSTNAME` that is no IP literal is
ignored, because Docker sets it to the container's name.

## Model files

From the Hub and S3 come weights in safetensors, JSON, text, Jinja and tokenizer files; never pickles or code.
They are kept under `HF_HOME` when it is set, else in the user's cache folder, else in the folder for
temporary files; never in `/opt/ml/model`. Of a Hub model, one commit is looked up and every file is taken from
it. `HF_HUB_OFFLINE=1` uses the cache only. An archive may hold {MAX_MEMBERS} members, files and
folders only, and unpack to {MAX_RATIO} times its size.

## Not built yet

Refused at start, because ignoring them would change answers or access:
{", ".join(f"`{name}`" for name in NOT_BUILT)}, and any `HF_MODEL_QUANTIZE`.

## Signals and exit codes

| Event | What happens |
| --- | --- |
| SIGTERM, SIGINT, SIGHUP | new work and `/ping` get 503 at once, running work may finish, exit 0 |
| the same again | nothing more |
| the engine or the front dies | running requests end with an error, exit 1, the reason in the last log line |
| a failed start | exit 1, the reason and the fix in the last log line |
"""


def render() -> str:
    """The whole document."""
    return _INTRODUCTION + "".join(_row(variable) for variable in VARIABLES) + _ENDING


def _row(variable: Variable) -> str:
    names = (", then " if variable.ranked else " or ").join(f"`{name}`" for name in variable.names)
    cells = (
        names,
        f"`--{variable.flag}`",
        variable.allowed(variable.names[0]),
        _default(variable.field),
        field_description(variable.field),
    )
    return f"| {' | '.join(cells)} |\n"


def _default(path: str) -> str:
    value = all_fields()[path].default
    if value is None or value is msgspec.NODEFAULT:
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    sys.stdout.write(render())
