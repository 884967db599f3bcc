"""The versions in a folder that was fetched or is pushed: of a model repository, of one model, or one version alone."""

from __future__ import annotations

from pathlib import Path

from lengthwise import files
from lengthwise.runtime.manifest import MANIFEST_FILE, Manifest, is_name
from lengthwise.versions import Key, is_version


def versions(folder: Path) -> dict[Key, Path]:
    """The model directories in a folder; empty if it holds none.

    A folder with nothing but one folder in it, as archives have it, stands for that one. `VERSION` folders without a
    name, and a version alone, have the name in the manifest.

    Raises:
        ManifestError: The manifest that has the name cannot be read.
    """  # noqa: DOC502 - what it calls raises it
    if (folder / MANIFEST_FILE).is_file():
        manifest = Manifest.read(folder)
        return {Key(manifest.name, manifest.version): folder}
    if named := [path.parent for path in folder.glob(f"*/*/{MANIFEST_FILE}") if is_version(path.parent.name)]:
        return {Key(path.parent.name, int(path.name)): path for path in sorted(named) if is_name(path.parent.name)}
    if alone := [path.parent for path in folder.glob(f"*/{MANIFEST_FILE}") if is_version(path.parent.name)]:
        return {Key(Manifest.read(path).name, int(path.name)): path for path in sorted(alone)}
    folders = [path for path in folder.glob("[!.]*") if path.is_dir()]
    return versions(folders[0]) if len(folders) == 1 else {}


def check(directory: Path) -> str:
    """Checks the files of a model directory against its manifest; returns the manifest's digest, in hexadecimal digits.

    The manifest has the digests of the others.

    Raises:
        ModelError: A file is missing or changed, or the manifest cannot be read.
    """  # noqa: DOC502 - what it calls raises it
    Manifest.read(directory).checked(directory)
    return files.digest(directory / MANIFEST_FILE).removeprefix("sha256:")
