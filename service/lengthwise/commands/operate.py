"""`lengthwise alias`, `push`, `label` and `state`: versions that requests reach, models for others, labels, states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import orjson

from lengthwise.commands.command import BAD, Command, end, show_json
from lengthwise.errors import ConfigurationError, ManifestError
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


@click.command(cls=Command)
@click.argument("text", metavar="TEXT")
@click.option(
    "--models",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A model repository: shows which of its versions the state is of.",
)
@click.option(
    "--state-key-file",
    "keys",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The keys of the service: checks the signature.",
)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def state(text: str, models: Path | None, keys: Path | None, as_json: bool) -> None:
    """Shows whose a state is, how many steps it has seen, and whether it is signed; never its values.

    TEXT is the `state` of a prediction. Exit code 1: it is no text of a state, it was changed, or no key of
    --state-key-file has signed it. Without that file, a signed state cannot be told from one that was changed.

    \b
    Example:
      lengthwise state AfbQ... --models models

    \f
    """  # noqa: D301 - click wants a real backspace
    from lengthwise.runtime import states  # help does without NumPy

    parsed = states.parse(text)
    if parsed is None or (keys is not None and states.StateKeys(keys).read(text) is None):
        end("it is no state of this format, it was changed, or it is not signed by one of these keys", BAD)
    state = parsed[0]
    fields: dict[str, Any] = {
        "format": states.FORMAT,
        "digest": state.digest.hex(),
        "offset": state.offset,
        "state_bytes": len(state.values),
        "signed": not state.plain,
    }
    if models is not None:
        fields["versions"] = _versions(models, state.digest)
    if as_json:
        show_json(fields)
        return
    signed = "no" if state.plain else "yes" if keys else "yes, or it was changed: --state-key-file FILE checks it"
    shown = {**fields, "signed": signed}
    if models is not None:
        shown["versions"] = ", ".join(fields["versions"]) or "none of these"
    click.echo("\n".join(f"{name}: {value}" for name, value in shown.items()))


def _versions(models: Path, digest: bytes) -> list[str]:
    """The versions of a model repository whose states have this digest, as `NAME/VERSION`."""
    from lengthwise.repository import folder
    from lengthwise.runtime.manifest import GRAPH_FILE, Manifest

    versions = []
    for key, directory in folder.read(models).directories.items():
        try:
            manifest = Manifest.read(directory)
        except ManifestError:  # it is not served, so no state is of it
            continue
        if GRAPH_FILE in manifest.digests and manifest.state_digest == digest:
            versions.append(str(key))
    return sorted(versions)
