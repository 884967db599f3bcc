"""The command `lengthwise`: a table of commands, each imported when it is called."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import shlex
import sys
from collections.abc import Mapping
from typing import Final, NamedTuple, cast

import click

from lengthwise.commands.command import NOT_CHECKED, end


class Row(NamedTuple):
    """A command of the table: the module with its function, its short help, and the function if it has another name."""

    module: str
    meaning: str  # the short help
    function: str = ""  # '': the function has the name of the command


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
    },
    "Operate": {
        "alias": Row("lengthwise.commands.operate", "Shows the aliases of a model, or points one to a version."),
        "push": Row("lengthwise.commands.operate", "Pushes models to a hub, a registry or a store."),
        "state": Row("lengthwise.commands.operate", "Shows whose a state is, and how many steps it has seen."),
        "label": Row("lengthwise.commands.operate", "Joins labels to recorded sequences."),
        "import": Row(
            "lengthwise.commands.import_settings", "Reads settings of MLServer or TorchServe.", "import_settings"
        ),
    },
}  # as the help lists them; those of the exporter are imported only where it is installed

ROWS: Final = {name: row for rows in GROUPS.values() for name, row in rows.items()}
REMOVED: Final = {
    "drift": "a library for drift reads the records: docs/monitoring.md",
    "compare": "metrics.json of each run has its scores: docs/spec.md",
    "tune": "train chooses what a spec leaves open, and a search of scikit-learn takes LengthwiseClassifier",
}
"""What to use in the place of a command that there was once, by its name."""


class Lengthwise(click.Group):
    """The group of all commands."""

    def list_commands(self, context: click.Context) -> list[str]:
        """The names of all commands, in the order of the help."""
        return [*ROWS]

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Parses the command line as click does, and improves one of its errors.

        If an option stands before the command that has it, the error shows the right order. Returns the words that are
        left for the command.

        Raises:
            NoSuchOption: No command has the option.
        """
        words = [*args]  # click removes what it parses
        try:
            return super().parse_args(context, args)
        except click.NoSuchOption as error:
            # The commands that have the option, of those whose package is installed
            installed = [name for name in ROWS if importlib.util.find_spec(ROWS[name].module.partition(".")[0])]
            options = {name: getattr(self.get_command(context, name), "params", []) for name in installed}
            owners = [name for name in installed if any(error.option_name in option.opts for option in options[name])]
            if not owners:
                raise
            names, line = ", ".join(owners), shlex.join([context.info_name or "lengthwise", owners[0], *words])
            context.fail(
                f"No such option {error.option_name!r} before a command; it is one of {names}. Did you mean: {line}"
            )

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Imports the command with this name; None if there is none, and no name is similar.

        Ends the process with an error that says what to do, if the name is similar to that of a command, or was one
        once, or is a folder; if the operating system cannot run Lengthwise; or if the exporter is not installed.

        Raises:
            ModuleNotFoundError: The command needs a package that is not installed.
        """
        if name not in ROWS:
            if name in REMOVED and not context.resilient_parsing:
                context.fail(f"The command {name!r} is gone; {REMOVED[name]}")
            if os.path.isdir(name) and not context.resilient_parsing:
                context.fail(f"No such command {name!r}. To serve this folder: lengthwise serve {shlex.quote(name)}")
            similar_names = difflib.get_close_matches(name, ROWS)
            if similar_names and not context.resilient_parsing:
                context.fail(f"No such command {name!r}. Did you mean {' or '.join(map(repr, similar_names))}?")
            return None
        for system_module in ("fcntl", "resource"):  # missing on Windows
            if importlib.util.find_spec(system_module) is None:
                end(
                    f"Lengthwise runs on Linux, macOS and WSL; this system ({sys.platform}) lacks what it needs "
                    f"({system_module})",
                    NOT_CHECKED,
                )
        try:
            module = importlib.import_module(ROWS[name].module)
        except ModuleNotFoundError as error:
            if error.name not in ("lengthwise_export", ROWS[name].module):
                raise
            end(f"the image that serves has no `{name}`: pip install 'lengthwise[export]' elsewhere", NOT_CHECKED)
        return cast("click.Command", getattr(module, ROWS[name].function or name))

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands in groups, without importing them."""
        for title, rows in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, row.meaning) for name, row in rows.items()])


@click.group(cls=Lengthwise, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="lengthwise")
def main() -> None:
    """Serves models that classify sequences of different lengths. Padding never changes an answer."""
