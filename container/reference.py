"""`python -m container.reference > docs/configuration.md`: the configuration reference, from the table."""

from __future__ import annotations

import sys

import msgspec

from container.archive import MAX_MEMBERS, MAX_RATIO
from container.families import FAMILIES, Alias, Family
from container.fields import all_fields, field_description
from container.model_layout import UNSAFE_SUFFIXES
from container.secure_mode import CONTROLS
from container.variables import HF_TOKENS, HOSTING_NAMES, MODEL_ID_NAMES, VARIABLES, Variable, names_of

_TOKENS = ", then ".join(f"`{name}`" for name in HF_TOKENS)

_MODEL_IDS = " or ".join(f"`{name}`" for name in MODEL_ID_NAMES)

_INTRODUCTION = f"""\
# Configuration

<!-- Made by `python -m container.reference > docs/configuration.md`; do not edit. -->

Every setting is an environment variable of the container and a flag of `textgen-endpoint serve`; a flag wins.
An empty variable counts as unset. Two names of one setting with different values are a start error, except
where "then" gives their order. A name that begins like ours but is unknown is listed in a warning, and every
setting is logged at start with its value and the variable it came from. The names that other images use for these
settings follow below.

## Model

| Variable | Meaning |
| --- | --- |
| {_MODEL_IDS} | Hub id, local folder, `s3://` prefix or `demo`; first rung of the ladder. Flag: `--model-id` |
| (the model folder) | `/opt/ml/model` with a `config.json` or a `model.tar.gz`; second rung |
| `HF_MODEL_ID` | as `MODEL_ID`; last rung |
| {_TOKENS} | for private and gated models; never logged, never given to engine or front |

## Settings

| Variable | Flag | Allowed | Default | Meaning |
| --- | --- | --- | --- | --- |
"""

_HANDLER_RULE = (
    "with `HF_MODEL_TRUST_REMOTE_CODE=true` its `input_fn` and `output_fn` are run "
    "([custom-handlers.md](custom-handlers.md)), else refused"
)

_ENDING = f"""
`SAGEMAKER_MAX_PAYLOAD_IN_MB` counts MiB, and 0 stands for 1 GiB. A `HOSTNAME` that is no IP literal is
ignored, because Docker sets it to the container's name.

## Model files

From the Hub and S3 come weights in safetensors, JSON, text, Jinja and tokenizer files; never pickles or code.
They are kept under `HF_HOME` when it is set, else in the user's cache folder, else in the folder for
temporary files; never in `/opt/ml/model`. Of a Hub model, one commit is looked up and every file is taken from
it. `HF_HUB_OFFLINE=1` uses the cache only. An archive may hold {MAX_MEMBERS} members, files and
folders only, and unpack to {MAX_RATIO} times its size.

Nothing is written to the model folder. What else may lie in it:

| Layout | What happens |
| --- | --- |
| a plain snapshot | served |
| `serving.properties` (LMI) | `option.x` counts as `OPTION_X`, other keys as `SERVING_X`; not `option.trust_remote_code` |
| `model.py` (LMI, model hosting container standards) | refused: custom model code is not run |
| `code/inference.py`, or what `SAGEMAKER_PROGRAM` names | {_HANDLER_RULE} |
| `requirements.txt`, `code/requirements.txt` | a warning: nothing is installed at start (no network, same result) |
| `adapters/<name>/` | a warning: adapters are not loaded yet, and requests that name one are refused |
| `sagemaker-fast-model-loader-*` | refused: the format is not public |
| {", ".join(f"`{suffix}`" for suffix in sorted(UNSAFE_SUFFIXES))} | named in the log and never opened |

When a model folder (or `MODEL_ID`) and a different `HF_MODEL_ID` are both there, the log says which one wins.

An environment value has at most 1024 characters on SageMaker. A chat template may therefore be given as the path of
a file, and every setting as a line of `serving.properties`.

## Signals and exit codes

| Event | What happens |
| --- | --- |
| SIGTERM, SIGINT, SIGHUP | new work and `/ping` get 503 at once, running work may finish, exit 0 |
| the same again | nothing more |
| the engine or the front dies | running requests end with an error, exit 1, the reason in the last log line |
| a failed start | exit 1, the reason and the fix in the last log line |
"""


_CONTROLS = "".join(f"| `{control}` | {what} |\n" for control, what in CONTROLS.items())

_HOSTING = f"""
## Hosting

| Variable | Meaning |
| --- | --- |
{"".join(f"| `{name}` | {meaning} |{chr(10)}" for name, meaning in HOSTING_NAMES.items())}
### Ports

The only port that clients can reach is the serving port. The processes of a container talk over sockets in a private
folder, and ranks meet through a file there. Several ranks also talk to each other over TCP on the loopback address,
on ports that the kernel picks: neither gloo nor NCCL lets them be chosen, so they cannot be held to
`SAGEMAKER_SAFE_PORT_RANGE`; a warning says so. One rank opens none.

### Shared memory

Nothing of ours is kept in `/dev/shm`, so its 64 MiB on SageMaker are enough. NCCL would use it between GPUs that cannot
reach each other directly: with several ranks and less than 1 GiB there, `NCCL_SHM_DISABLE=1` is set (unless you set it),
and such GPUs exchange over loopback, more slowly.

### Secure mode

With `SAGEMAKER_SECURE_MODE=true`, `SAGEMAKER_SECURITY_CONTROLS` must name what is forbidden in the folders of
`SAGEMAKER_UNTRUSTED_CHANNELS` (when unset: the model folder and the additional model data) and in the folder that the
model is loaded from. A violation ends the start.

| Control | Forbids |
| --- | --- |
{_CONTROLS}"""


def render() -> str:
    """The whole document."""
    settings = "".join(_row(variable) for variable in VARIABLES)
    return _INTRODUCTION + settings + _HOSTING + "\n" + alias_map() + _ENDING


def alias_map() -> str:
    """What the names of each family mean here, a section per family."""
    return (
        "## Names of other images\n\nThey set the same settings; a name that contradicts another one is a start error "
        "that shows both.\n\n" + "\n".join(_family(family) for family in FAMILIES)
    )


def _family(family: Family) -> str:
    rows = [(f"`{alias.name}`", _alias_meaning(alias)) for alias in family.aliases]
    for refusal in family.refusals:
        harmless = ", ".join(f"`{value}`" for value in sorted(refusal.harmless))
        rows.append(
            (f"`{refusal.name}`", f"refused{f' (but for {harmless})' if harmless else ''}: {refusal.reason}")
        )
    rows += [(f"`{item.name}`", f"no effect: {item.reason}") for item in family.no_effects]
    rows += [(f"`{item.prefix}*`", f"no effect: {item.reason}") for item in family.ignored_prefixes]
    lines = "".join(f"| {name} | {meaning} |\n" for name, meaning in rows)
    return f"### {family.title}\n\n| Name | Here |\n| --- | --- |\n{lines}"


def _alias_meaning(alias: Alias) -> str:
    notes = [note for note in (alias.note, alias.allowed and f"takes {alias.allowed}") if note]
    return f"`{names_of(alias.field)[0]}`{' (' + '; '.join(notes) + ')' if notes else ''}"


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
