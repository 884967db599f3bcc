"""`lengthwise serve`: its flags are the fields of `Settings`."""

from __future__ import annotations

from typing import Any

import click

from lengthwise.commands import logs
from lengthwise.commands.command import Command
from lengthwise.commands.options import add_flags
from lengthwise.settings import PREFIX, Settings


@click.command(
    cls=Command,
    epilog=f"Every option is also a variable: {PREFIX}MAX_BATCH_ROWS=32 is --max-batch-rows 32. {PREFIX}CONFIG names a "
    "TOML file of options. A flag overrides a variable, a variable overrides the file.",
)
@click.argument("models", required=False, metavar="[MODELS]")
@add_flags({name: field for name, field in Settings.model_fields.items() if name != "models"}, as_texts=True)
def serve(**flags: Any) -> None:
    """Serves the model repository MODELS: a folder of NAME/VERSION folders, by default the bundled one.

    \b
    Example:
      lengthwise serve models --port 8000
      curl -s localhost:8000/predict -H 'content-type: application/json' -d '{"sequences": [[[0.1, 0.2], [0.3, 0.4]]]}'
    """  # noqa: D301 - click wants a real backspace
    settings = Settings.load(**flags)
    logs.configure(settings)
    from lengthwise.http.server import serve as run  # help needs no web server

    if code := run(settings):
        raise click.exceptions.Exit(code)
