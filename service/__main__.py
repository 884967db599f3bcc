"""The commands `serve`, `bench` and `score`: `python -m service`, and the first half of `lengthwise`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import click
from pydantic_core import PydanticUndefined

from service import logs
from service.bench.command import bench
from service.command import Command
from service.scoring.command import score
from service.settings import PREFIX, Settings, flag


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Serves, measures and scores classifiers of sequences of different lengths."""


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command a flag for each option in `Settings`."""
    for name, field in reversed(Settings.model_fields.items()):
        if name == "models":
            continue
        default = "" if field.default in (PydanticUndefined, None, ()) else f"  [default: {field.default}]"
        meaning = f"{field.description}{default}"
        choices = get_args(field.annotation)
        if field.annotation is bool:
            option = click.option(f"{flag(name)}/--no-{flag(name)[2:]}", default=None, help=meaning)
        elif choices and all(isinstance(choice, str) for choice in choices):
            option = click.option(flag(name), metavar="|".join(choices), help=meaning)
        else:
            option = click.option(flag(name), metavar=name.rsplit("_", 1)[-1].upper(), help=meaning)
        command = option(command)
    return command


@main.command(
    cls=Command,
    short_help="Serves a model repository, by default the bundled one.",
    epilog=f"Every option is also a variable: {PREFIX}MAX_BATCH_ROWS=32 is --max-batch-rows 32. {PREFIX}CONFIG names a "
    "TOML file of options. A flag beats a variable, a variable beats the file.",
)
@click.argument("models", required=False, metavar="[MODELS]")
@_options
def serve(**flags: Any) -> None:
    """Serves the model repository MODELS: a folder of NAME/VERSION folders, by default the bundled one.

    \b
    Example:
      lengthwise serve models --port 8000
      curl -s localhost:8000/predict -H 'content-type: application/json' -d '{"sequences": [[[0.1, 0.2], [0.3, 0.4]]]}'
    """  # noqa: D301 - click wants a real backspace
    settings = Settings.load(**flags)
    logs.configure(settings)
    from service.server import serve as run  # the other commands need no web server

    run(settings)


main.add_command(bench)
main.add_command(score)

if __name__ == "__main__":
    main(prog_name="python -m service")
