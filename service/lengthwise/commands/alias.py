"""`lengthwise alias`: shows and switches the aliases of a model's versions."""

from __future__ import annotations

from pathlib import Path

import click
import orjson

from lengthwise.commands.command import Command
from lengthwise.errors import ConfigurationError
from lengthwise.repository import aliases


@click.command(
    cls=Command,
    epilog="A running service takes the change with its next scan: --reload-seconds, or SIGHUP. The alias 'champion' "
    "is the version for requests that name none.",
)
@click.argument("model", metavar="MODELS/NAME", type=click.Path(path_type=Path))
@click.argument("alias", required=False)
@click.argument("version", required=False, type=click.IntRange(1))
@click.option("--remove", is_flag=True, help="Remove the alias.")
@click.option("--json", "as_json", is_flag=True, help="Print the aliases as JSON.")
def alias(model: Path, alias: str | None, version: int | None, remove: bool, as_json: bool) -> None:
    """Shows the aliases of a model, or points one to a version.

    \b
    Example:
      lengthwise alias models/vowels champion 4
      lengthwise alias models/vowels
    """  # noqa: D301 - click wants a real backspace
    if remove and version is not None:
        raise ConfigurationError("--remove takes no version")
    if alias is None or (version is None and not remove):
        if alias is not None:
            raise ConfigurationError(f"say which version: lengthwise alias {model} {alias} VERSION")
        if not model.is_dir():
            raise ConfigurationError(f"{model} is not a folder: name a model as MODELS/NAME")
        found = aliases.read(model)
    else:
        found = aliases.set_alias(model, alias, version)
    if as_json:
        click.echo(orjson.dumps(dict(found)))
        return
    for name, number in sorted(found.items()):
        click.echo(f"{name}: {number}")
    if not found:
        click.echo("no aliases")
