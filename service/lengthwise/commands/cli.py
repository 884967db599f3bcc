"""The command `lengthwise`: the service's commands, and the exporter's `train`, `export` and `check`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, get_args

import click
from pydantic_core import PydanticUndefined

from lengthwise.commands import logs
from lengthwise.commands.alias import alias
from lengthwise.commands.bench import bench
from lengthwise.commands.command import NOT_CHECKED, Command, check_platform, end
from lengthwise.commands.monitoring import drift, label
from lengthwise.commands.score import score
from lengthwise.errors import ConfigurationError
from lengthwise.settings import PREFIX, Settings, flag

EXPORTER = {
    "train": "Trains the built-in architecture.",
    "compare": "Compares two trainings.",
    "export": "Builds, verifies and publishes a model directory.",
    "check": "Finds where padding leaks into an answer.",
}
"""The exporter's commands with their short help, so that they can be listed without importing the exporter and
torch."""


class Lengthwise(click.Group):
    """The group of all commands; the exporter is imported when one of its commands is called."""

    def list_commands(self, context: click.Context) -> list[str]:
        """The service's commands, then the exporter's."""
        return [*self.commands, *EXPORTER]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """A command by its name."""
        return _exporter(name) if name in EXPORTER else super().get_command(context, name)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands without importing the exporter."""
        rows = [(name, command.get_short_help_str(90)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl([*rows, *EXPORTER.items()])


def _exporter(name: str) -> click.Command:
    """One of the exporter's commands."""
    try:
        check_platform()
        module: Any = importlib.import_module("lengthwise_export.interface.cli")
    except ConfigurationError as error:
        end(str(error), NOT_CHECKED)
    except ModuleNotFoundError as error:
        if error.name not in ("lengthwise_export", "lengthwise_export.interface.cli"):
            raise
        end(f"the image that serves has no `{name}`: pip install 'lengthwise[export]' elsewhere", NOT_CHECKED)
    command: click.Command = module.main.commands[name]
    return command


@click.group(cls=Lengthwise, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="lengthwise")
def main() -> None:
    """Serves models that classify sequences of different lengths. Padding never changes an answer."""


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command a flag for each option in `Settings`."""
    for name, field in reversed(Settings.model_fields.items()):
        if name == "models":
            continue
        default = "" if field.default in (PydanticUndefined, None, ()) else f"  [default: {field.default}]"
        meaning = f"{field.description}{default}"
        choices = get_args(field.annotation)
        if field.annotation in (bool, bool | None):
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
    "TOML file of options. A flag overrides a variable, a variable overrides the file.",
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
    from lengthwise.http.server import serve as run  # the other commands need no web server

    run(settings)


main.add_command(bench)
main.add_command(score)
main.add_command(drift)
main.add_command(label)
main.add_command(alias)
