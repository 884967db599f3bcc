"""Pushes models to an address, from where others fetch them: as a model repository, with a model card for people."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from lengthwise import files
from lengthwise.addresses import ARCHIVE_SUFFIXES, Address, parse
from lengthwise.errors import ConfigurationError
from lengthwise.reports import templates
from lengthwise.runtime.manifest import MANIFEST_FILE, VERIFICATION_FILE, Manifest
from lengthwise.stores import layout, store_of
from lengthwise.stores.cache import ALIASES_FILE
from lengthwise.versions import Key

_CARD: Final = Path(__file__).with_name("model_card.md")
CARD_FILE: Final = "README.md"


def push(folder: Path, text: str) -> str:
    """Pushes the models of a folder (a model repository, a model or a version) to an address.

    Only files that the manifests list are pushed, and aliases: not what a service has measured on its machine.

    Returns:
        The address of what was pushed, by its commit or digest where it has one.

    Raises:
        ConfigurationError: The folder holds no model, the address is one for what is there already, or the store does
            not take it.
        ModelError: A file of a version is not that of its manifest.
    """  # noqa: DOC502 - what it calls raises them
    address = parse(text)
    if not (directories := layout.versions(folder) if folder.is_dir() else {}):
        raise ConfigurationError(f"{folder} holds no model: name a folder MODELS, MODELS/NAME or MODELS/NAME/VERSION")
    _require_open(address)
    with tempfile.TemporaryDirectory(prefix="lengthwise-push-") as temporary:
        models = Path(temporary, "models")
        # Copy the files to push, as a repository
        for key, directory in directories.items():
            layout.check(directory)
            target = models / str(key)
            for name in (MANIFEST_FILE, *Manifest.read(directory).digests):
                if (directory / name).exists():
                    (target / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(directory / name, target / name)
            if directory != folder and (directory.parent / ALIASES_FILE).is_file():
                shutil.copyfile(directory.parent / ALIASES_FILE, target.parent / ALIASES_FILE)
        files.write(models / CARD_FILE, card(directories, str(address)))
        return str(store_of(address).upload(models, address))


def _require_open(address: Address) -> None:
    """Refuses an address to which models cannot be pushed.

    Raises:
        ConfigurationError: The address has a digest or a commit, or is that of a web server or an archive.
    """
    if address.is_fixed:
        raise ConfigurationError(f"{address}: push to an address without a digest or a commit: models have their own")
    if address.scheme.startswith("http"):
        raise ConfigurationError(f"models cannot be pushed to {address.scheme}://; hf, oci, s3, gs and az are the ways")
    if address.scheme in ("s3", "gs", "az") and address.path.endswith(ARCHIVE_SUFFIXES):
        raise ConfigurationError(f"{address} names an archive, and models are pushed as files: name a folder")


def card(directories: Mapping[Key, Path], address: str) -> str:
    """The text of the model card in Markdown: what each version takes and answers, its origin, and its verification.

    Raises:
        ManifestError: A manifest cannot be read.
    """  # noqa: DOC502 - what it calls raises it
    models = [
        (Manifest.read(path), json.loads((path / VERIFICATION_FILE).read_bytes())) for path in directories.values()
    ]
    names = sorted({key.name for key in directories})
    return templates.render(_CARD, title=", ".join(names), names=names, models=models, address=address).strip() + "\n"
