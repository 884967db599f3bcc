"""The command `lengthwise`: the service's commands and the exporter's, in one."""

from __future__ import annotations

import importlib
from typing import Any

import click

from service.__main__ import main as service_commands
from service.command import NOT_CHECKED, check_platform, end
from service.errors import ConfigurationError

EXPORTER = {
    "train": "Trains the built-in architecture.",
    "export": "Builds, verifies and publishes a model directory.",
    "check": "Finds where padding leaks into an answer.",
}


class Lengthwise(click.Group):
    """Mounts both halves; the exporter's is imported when it is asked for, because it brings torch along."""

    def list_commands(self, context: click.Context) -> list[str]:
        """The service's commands, then the exporter's."""
        return [*service_commands.commands, *EXPORTER]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """A command by its name."""
        if name in EXPORTER:
            return _exporter(name)
        return service_commands.commands.get(name)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands without importing the exporter."""
        rows = [(name, command.get_short_help_str(90)) for name, command in service_commands.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl([*rows, *EXPORTER.items()])


def _exporter(name: str) -> click.Command:
    """One of the exporter's commands."""
    try:
        check_platform()
        module: Any = importlib.import_module("model_export.__main__")
    except ConfigurationError as error:
        end(str(error), NOT_CHECKED)
    command: click.Command = module.main.commands[name]
    return command


@click.group(cls=Lengthwise, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="lengthwise")
def main() -> None:
    """Serves classifiers of sequences of different lengths: padding cannot reach an answer, and is hardly computed."""


if __name__ == "__main__":
    main(prog_name="lengthwise")
