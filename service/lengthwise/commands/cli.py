"""The command `lengthwise`: a table of commands, each imported when it is called."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Final, NamedTuple

import click

from lengthwise.commands.command import NOT_CHECKED, check_platform, end
from lengthwise.errors import ConfigurationError


class Row(NamedTuple):
    """A command: the module that has it under its name, and its short help."""

    module: str
    meaning: str


GROUPS: Final[Mapping[str, Mapping[str, Row]]] = {
    "Serve": {
        "serve": Row("lengthwise.commands.serve", "Serves a model repository, by default the bundled one."),
        "score": Row("lengthwise.commands.score", "Scores a file of sequences, without a server."),
        "bench": Row("lengthwise.commands.bench", "Puts load on a service: throughput, latency and padding."),
    },
    "Check, mend and export": {
        "check": Row("lengthwise_export.interface.cli", "Finds where padding leaks into an answer."),
        "export": Row("lengthwise_export.interface.cli", "Builds, verifies and publishes a model directory."),
    },
    "Train": {
        "train": Row("lengthwise_export.training.training_commands", "Trains the built-in architecture."),
        "compare": Row("lengthwise_export.training.training_commands", "Compares two trainings."),
    },
    "Operate": {
        "alias": Row("lengthwise.commands.alias", "Shows the aliases of a model, or points one to a version."),
        "drift": Row("lengthwise.commands.monitoring", "Compares recorded sequences with the training data."),
        "label": Row("lengthwise.commands.monitoring", "Joins labels to recorded sequences."),
    },
}  # as the help lists them; those of the exporter are imported only where it is installed

ROWS: Final = {name: row for rows in GROUPS.values() for name, row in rows.items()}


class Lengthwise(click.Group):
    """The group of all commands."""

    def list_commands(self, context: click.Context) -> list[str]:
        """All commands, in the order of the help."""
        return [*ROWS]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """A command by its name."""
        if name not in ROWS:
            return None
        try:
            check_platform()
            module = importlib.import_module(ROWS[name].module)
        except ConfigurationError as error:
            end(str(error), NOT_CHECKED)
        except ModuleNotFoundError as error:
            if error.name not in ("lengthwise_export", ROWS[name].module):
                raise
            end(f"the image that serves has no `{name}`: pip install 'lengthwise[export]' elsewhere", NOT_CHECKED)
        command: click.Command = getattr(module, name)
        return command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the arguments name; the error for an unknown one names those that are spelled alike."""
        try:
            return super().resolve_command(context, args)
        except click.UsageError as error:
            alike = difflib.get_close_matches(args[0], ROWS)
            if not alike:
                raise
            text = f"{error.message} Did you mean {' or '.join(map(repr, alike))}?"
            raise click.UsageError(text, error.ctx) from None

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands in groups, without importing them."""
        for title, rows in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, row.meaning) for name, row in rows.items()])


@click.group(cls=Lengthwise, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="lengthwise")
def main() -> None:
    """Serves models that classify sequences of different lengths. Padding never changes an answer."""
