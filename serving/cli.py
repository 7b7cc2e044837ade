"""The command `textgen-endpoint`. Flags of `serve` are made from the container's table of variables."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from container import fields, variables
from container.environment import overlay, process_environment
from local_mode.cli import app as local_app
from serving.errors import RequestError, StartupError
from serving.version import VERSION

app = typer.Typer(
    name="textgen-endpoint",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_SERVE_HELP = """Serve a model over HTTP, as the container does.

\b
Examples:
  textgen-endpoint serve --model-id demo
  textgen-endpoint serve --model-id ./my-model --port 9000 --max-concurrent-requests 64
  HF_TOKEN=... textgen-endpoint serve --model-id owner/name --num-shard 2

\b
Then:
  curl localhost:8080/ping
  curl localhost:8080/invocations -H 'content-type: application/json' -d '{"inputs":"Once upon a time"}'

Every flag is also an environment variable of the container (docs/configuration.md); a flag wins."""


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(VERSION)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Text generation inference, for Amazon SageMaker and for this machine.

    \b
    Examples:
      textgen-endpoint generate "Once upon a time"
      textgen-endpoint serve --model-id demo
      textgen-endpoint local up
      textgen-endpoint plan ./my-model
    """


def _serve(**flags: str | bool | None) -> None:
    from container.entrypoint import main as run_container

    chosen = {
        name.replace("_", "-"): str(value).lower() if isinstance(value, bool) else value
        for name, value in flags.items()
        if value is not None
    }
    try:
        environ = overlay(process_environment(), chosen)
    except StartupError as error:
        typer.echo(f"error: {error.message}", err=True)
        raise typer.Exit(1) from error
    raise typer.Exit(run_container(["serve"], environ))


def _serve_command() -> Callable[..., None]:
    """`_serve` with one keyword parameter per flag, in the shape that typer reads."""
    parameters = [
        _parameter("model-id", str, "MODEL_ID", "Hub id, local folder, s3:// prefix or demo", "text")
    ]
    for variable in variables.VARIABLES:
        first = variable.names[0]
        is_bool = fields.allowed_text(fields.field_type(variable.field)).startswith("true or false")
        parameters.append(
            _parameter(
                variable.flag,
                bool if is_bool else str,
                first,
                fields.field_description(variable.field),
                variable.allowed(first),
            )
        )

    def serve(**flags: str | bool | None) -> None:
        _serve(**flags)

    serve.__doc__ = _SERVE_HELP
    serve.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    serve.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return serve


def _parameter(flag: str, kind: type, variable: str, description: str, allowed: str) -> inspect.Parameter:
    names = f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}"
    wanted = "" if kind is bool or allowed == "text" else f": {allowed}"
    text = f"{description}{wanted} [{variable}]"
    option: Any = typer.Option(
        names, help=text, metavar=None if kind is bool else "VALUE", show_default=False
    )
    return inspect.Parameter(
        flag.replace("-", "_"),
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


app.command("serve")(_serve_command())
app.add_typer(local_app)


@app.command()
def generate(
    text: Annotated[str, typer.Argument(help="The text to continue; - reads it from the standard input.")],
    model_id: Annotated[str, typer.Option(help="Hub id, local folder, s3:// prefix or demo.")] = "demo",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to generate.")] = 100,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample among this many tokens; 0 = all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample among tokens of this total probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same text.")] = None,
) -> None:
    """Continue a text in this process, without a server; pieces are printed as they come.

    \b
    Examples:
      textgen-endpoint generate "Once upon a time"
      textgen-endpoint generate "The robot said" --temperature 0.8 --seed 7
      cat story.txt | textgen-endpoint generate - --model-id ./my-model --max-new-tokens 200
    """
    from serving.sampling_params import SamplingParams

    prompt = sys.stdin.read() if text == "-" else text
    params = SamplingParams(
        max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    )
    try:
        _print_continuation(prompt, params, model_id)
    except (StartupError, RequestError) as error:
        typer.echo(f"error: {error.message}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as interrupt:
        raise typer.Exit(130) from interrupt


@app.command()
def plan(
    model: Annotated[
        str, typer.Argument(help="A folder with config.json, an s3:// prefix, a Hub id, or demo.")
    ],
    instance_type: Annotated[str | None, typer.Option(help="Judge this one, such as ml.g6.12xlarge.")] = None,
    max_total_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest prompt + answer that must fit.")
    ] = None,
    num_gpus: Annotated[
        int | None, typer.Option(min=1, help="Tensor-parallel GPUs; absent: all that divide the heads.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, bfloat16, float16 or float32.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.")] = None,
) -> None:
    """What a model needs, which SageMaker instance types it fits on, and what they cost. Reads config.json only.

    \b
    Examples:
      textgen-endpoint plan ./my-model
      textgen-endpoint plan ./my-model --instance-type ml.g6.12xlarge --max-total-tokens 8192
    Exit status: 0 fits, 1 does not fit, 2 wrong use.
    """
    from container.model_source import DEMO, demo_folder
    from sagemaker_sdk_ext import plan_text

    flags = {
        "--instance-type": instance_type,
        "--max-total-tokens": max_total_tokens,
        "--num-gpus": num_gpus,
        "--dtype": dtype,
        "--revision": revision,
    }
    given = [word for flag, value in flags.items() if value is not None for word in (flag, str(value))]
    folder = str(demo_folder()) if model == DEMO else model
    raise typer.Exit(plan_text.main([folder, *given]))


def _print_continuation(prompt: str, params: Any, model_id: str) -> None:
    from container.environment import read_environment
    from container.fetch_model import fetch
    from container.model_source import find_source

    environment = read_environment(overlay(process_environment(), {"model-id": model_id}))
    config = environment.config
    files = fetch(
        find_source(environment),
        environment,
        lambda stage: typer.echo(f"{stage.stage} {stage.detail}", err=True),
    )
    from serving.llm import LLM  # torch; not before the model is there

    with LLM(
        files.model_dir,
        device=config.runtime.device,
        dtype=config.model.dtype,
        num_ranks=config.parallel.num_ranks,
        num_threads=config.runtime.num_threads,
    ) as llm:
        typer.echo(prompt, nl=False)
        for piece in llm.stream(prompt, params):
            typer.echo(piece, nl=False)
            sys.stdout.flush()
    typer.echo()


def main() -> None:
    """What the installed command runs."""
    app()


if __name__ == "__main__":
    main()
