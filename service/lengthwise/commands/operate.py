"""`lengthwise alias`, `push` and `label`: which versions requests reach, models for others, labels for records."""

from __future__ import annotations

from pathlib import Path

import click
import orjson

from lengthwise.commands.command import Command, show_json
from lengthwise.errors import ConfigurationError
from lengthwise.repository.stopping import run_interruptibly


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
        ConfigurationError: The arguments contradict each other, or MODEL is not a folder with versions.
    """  # noqa: D301 - click wants a real backspace
    from lengthwise.repository import aliases  # help does without what these import

    if remove and version is not None:
        raise ConfigurationError("--remove takes no version")
    if alias is not None and version is None and not remove:
        raise ConfigurationError(f"say which version: lengthwise alias {model} {alias} VERSION")
    if remove and alias is None:
        raise ConfigurationError(f"say which alias: lengthwise alias {model} ALIAS --remove")
    if alias is None and not any(path.name.isdecimal() for path in model.glob("[1-9]*")):
        raise ConfigurationError(f"{model} is not a folder with versions: name a model as MODELS/NAME")
    # `set_alias` with the version None, that of --remove, removes the alias.
    current = aliases.read(model) if alias is None else aliases.set_alias(model, alias, version)
    if as_json:
        click.echo(orjson.dumps(dict(current)))
    else:
        click.echo("\n".join(f"{name}: {number}" for name, number in sorted(current.items())) or "no aliases")


@click.command(
    cls=Command,
    epilog="Credentials are those of the store's tools: `hf auth login` or HF_TOKEN, `docker login`, AWS_ variables.",
)
@click.argument("models", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("address", metavar="ADDRESS")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def push(models: Path, address: str, as_json: bool) -> None:
    """Pushes models to a hub, a registry or a store, with a model card, and prints the address that others use.

    DIR is a model repository, MODELS/NAME or MODELS/NAME/VERSION. ADDRESS is hf://OWNER/NAME, oci://HOST/REPOSITORY:TAG
    (an image whose folder /models holds them), or a path in s3://, gs:// or az://.

    \b
    Example:
      lengthwise push models/vowels oci://registry.example.com/models/vowels:1
      lengthwise serve oci://registry.example.com/models/vowels:1

    \f
    """  # noqa: D301 - click wants a real backspace
    from lengthwise.stores.push import push as push_models  # help does without what it imports

    pushed_address = run_interruptibly("push", lambda: push_models(models, address))  # so that Ctrl-C is heard
    if as_json:
        show_json({"address": pushed_address})
    else:
        click.echo(pushed_address)


@click.command(cls=Command)
@click.argument("records", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
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
    from lengthwise.datasets.label_files import read_labels
    from lengthwise.monitoring import recorded

    if out.suffix != ".parquet":
        raise ConfigurationError(f"{out}: the name must end in .parquet")
    written, total = recorded.join(records, read_labels(labels), out)
    click.echo(f"{out}: {written} sequences with a label, of {total} records")
