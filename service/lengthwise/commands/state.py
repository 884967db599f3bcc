"""`lengthwise state`: what the text of a state says, but never its values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lengthwise.commands.command import BAD, Command, end, show_json
from lengthwise.errors import ManifestError


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

    TEXT is the `state` of a prediction. Exit code 1: it is no text of a state, it was changed, or a key of
    --state-key-file has not signed it. Without that file, a signed state cannot be told from one that was changed.

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
