"""`lengthwise push`: puts models where others fetch them by their address."""

from __future__ import annotations

from pathlib import Path

import click

from lengthwise.commands.command import Command, show_json
from lengthwise.repository.stopping import in_daemon_thread


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

    pushed_address = in_daemon_thread("push", lambda: push_models(models, address)).result()  # so that Ctrl-C is heard
    if as_json:
        show_json({"address": pushed_address})
    else:
        click.echo(pushed_address)
