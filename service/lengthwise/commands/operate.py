"""`lengthwise alias`, `drift` and `label`: which versions requests reach, and what recorded sequences are used for."""

from __future__ import annotations

from pathlib import Path

import click
import orjson
from rich.console import Console
from rich.table import Table

from lengthwise.addresses import is_address
from lengthwise.commands.command import Command
from lengthwise.errors import ConfigurationError

_records = click.argument("records", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))


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

    \f

    Raises:
        ConfigurationError: The arguments contradict each other, or MODEL is not a folder.
    """  # noqa: D301 - click wants a real backspace
    from lengthwise.repository import aliases  # help does without what these import

    if remove and version is not None:
        raise ConfigurationError("--remove takes no version")
    if alias is not None and version is None and not remove:
        raise ConfigurationError(f"say which version: lengthwise alias {model} {alias} VERSION")
    if alias is None and not model.is_dir():
        raise ConfigurationError(f"{model} is not a folder: name a model as MODELS/NAME")
    current = aliases.read(model) if alias is None else aliases.set_alias(model, alias, version)
    if as_json:
        click.echo(orjson.dumps(dict(current)))
    else:
        click.echo("\n".join(f"{name}: {number}" for name, number in sorted(current.items())) or "no aliases")


@click.command(cls=Command, epilog="The exit code is 0 where nothing has drifted, 1 where something has.")
@_records
@click.argument("model", metavar="MODEL")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def drift(records: Path, model: str, as_json: bool) -> None:
    """Compares the records in DIR with the training data of MODEL.

    DIR is the folder of `lengthwise serve --record`. MODEL is a model directory, MODELS/NAME/VERSION, or MODELS/NAME
    for its champion, else its highest version; or an address. Lengths, missing values, each feature and the answers are
    compared by the population stability index (PSI).

    \f

    Raises:
        Exit: Something has drifted.
    """  # noqa: D301 - click wants a real form feed
    from lengthwise.monitoring import recorded
    from lengthwise.monitoring.drift import name_of
    from lengthwise.repository import aliases
    from lengthwise.repository.source import model_directory
    from lengthwise.runtime.manifest import Manifest

    # The version: named, the champion, or the highest
    champion = None if is_address(model) else aliases.read(Path(model)).get(aliases.CHAMPION)
    manifest = Manifest.read(model_directory(model if champion is None else f"{model}/{champion}"))
    report = recorded.report(records, manifest)
    if as_json:
        click.echo(orjson.dumps(report.as_json(), option=orjson.OPT_INDENT_2))
    else:
        table = Table(title=f"{report.counts.sequences} records of {manifest.key} beside its training data")
        for column in ("what", "PSI", "limit", ""):
            table.add_column(column, justify="left" if column in ("what", "") else "right")
        for figure, psi in report.drift.items():
            limit = report.profile.limits.of(figure)
            table.add_row(name_of(figure, manifest), f"{psi:.3f}", f"{limit:.3f}", "drifted" if psi > limit else "")
        Console().print(table)
    if report.drifted:
        raise click.exceptions.Exit(1)


@click.command(cls=Command)
@_records
@click.argument("labels", metavar="LABELS", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(dir_okay=False, path_type=Path))
def label(records: Path, labels: Path, out: Path) -> None:
    """Joins labels to the records in DIR by id, and writes OUT (.parquet) for `train`, `score` and `export --data`.

    LABELS is JSON Lines: {"id": "a1", "label": "walk"}. The id is that which the caller gave the sequence. Of several
    records with one id the last is written.

    \f

    Raises:
        ConfigurationError: OUT has another suffix.
    """  # noqa: D301 - click wants a real form feed
    from lengthwise.monitoring import recorded

    if out.suffix != ".parquet":
        raise ConfigurationError(f"{out}: the name must end in .parquet")
    written, total = recorded.join(records, recorded.read_labels(labels), out)
    click.echo(f"{out}: {written} sequences with a label, of {total} records")
