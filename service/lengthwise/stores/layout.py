"""Finds the versions in a folder that was fetched or is pushed: a model repository, one model, or a single version."""

from __future__ import annotations

from pathlib import Path

from lengthwise import files
from lengthwise.runtime.manifest import MANIFEST_FILE, Manifest, is_name
from lengthwise.versions import Key, is_version


def versions(folder: Path) -> dict[Key, Path]:
    """The model directories in a folder, by name and version; empty if it holds none.

    The folder may be:

    - a single version, whose name is in its manifest;
    - a model repository, with folders `NAME/VERSION`;
    - one model, with folders `VERSION`, whose name is in their manifests;
    - a folder with only one folder in it, as archives often have it: then this one is looked into.

    Raises:
        ManifestError: The manifest that has the name cannot be read.
    """  # noqa: DOC502 - what it calls raises it
    if (folder / MANIFEST_FILE).is_file():
        manifest = Manifest.read(folder)
        return {Key(manifest.name, manifest.version): folder}
    if directories := [path.parent for path in folder.glob(f"*/*/{MANIFEST_FILE}") if is_version(path.parent.name)]:
        return {
            Key(path.parent.name, int(path.name)): path for path in sorted(directories) if is_name(path.parent.name)
        }
    if directories_of_model := [
        path.parent for path in folder.glob(f"*/{MANIFEST_FILE}") if is_version(path.parent.name)
    ]:
        return {Key(Manifest.read(path).name, int(path.name)): path for path in sorted(directories_of_model)}
    folders = [path for path in folder.glob("[!.]*") if path.is_dir()]
    return versions(folders[0]) if len(folders) == 1 else {}


def check(directory: Path) -> str:
    """Checks the files of a model directory against the digests in its manifest.

    Returns the SHA-256 of the manifest in hexadecimal digits, which so stands for all files.

    Raises:
        ModelError: A file is missing or changed, or the manifest cannot be read.
    """  # noqa: DOC502 - what it calls raises it
    Manifest.read(directory).read_files(directory)
    return files.digest(directory / MANIFEST_FILE).removeprefix("sha256:")
