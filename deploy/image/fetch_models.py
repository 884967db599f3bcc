"""Fetches a model repository before serving begins: an archive by its URL, taken only if its digest is right.

`python fetch_models.py URL SHA256 FOLDER`, in an init container. The archive is a tar (plain or compressed) of
`NAME/VERSION/` folders. Nothing is unpacked of an archive whose digest differs, nothing outside the folder is written,
and the folder is complete or as it was.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path, PurePosixPath
from typing import IO

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 60.0


class FetchError(Exception):
    """The models cannot be fetched; the message says why, and what would be right."""


def fetch(url: str, sha256: str, folder: Path) -> list[str]:
    """Fetches, checks and unpacks an archive.

    Args:
        url: http, https or file.
        sha256: The archive's digest, in hex.
        folder: An existing folder, or one that can be made; entries of the same name are replaced.

    Returns:
        The names that were unpacked.

    Raises:
        FetchError: The archive cannot be read, is another one, or reaches outside of the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as aside:
        archive, unpacked = Path(aside, "archive"), Path(aside, "unpacked")
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as source, archive.open("wb") as target:
                found = _copy(source, target)
        except (OSError, ValueError, urllib.error.URLError) as error:
            raise FetchError(f"{url} cannot be fetched: {error}") from error
        if found != sha256.lower().removeprefix("sha256:"):
            raise FetchError(f"{url} has the digest {found}, expected was {sha256}; nothing was unpacked")
        try:
            with tarfile.open(archive) as tar:
                _unpack(tar, unpacked)
        except (tarfile.TarError, OSError) as error:
            raise FetchError(f"{url} cannot be unpacked: {error}") from error
        names = sorted(path.name for path in unpacked.iterdir())
        for name in names:
            shutil.rmtree(folder / name, ignore_errors=True)
            os.replace(unpacked / name, folder / name)
        return names


def _unpack(tar: tarfile.TarFile, folder: Path) -> None:
    """Writes an archive's files: only their contents, without the owners, modes and times in the archive.

    Raises:
        TarError: It holds a link or a device, or a path that leads outside.
    """
    for member in tar:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
            raise tarfile.TarError(f"{member.name} is neither a file nor a folder in it")
        content = tar.extractfile(member)
        if content is not None:
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                shutil.copyfileobj(content, file)


def _copy(source: IO[bytes], target: IO[bytes]) -> str:
    """Copies a stream; the digest of what was in it."""
    digest = hashlib.sha256()
    while chunk := source.read(CHUNK_BYTES):
        digest.update(chunk)
        target.write(chunk)
    return digest.hexdigest()


if __name__ == "__main__":
    try:
        print("fetched", *fetch(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
    except FetchError as failure:
        sys.exit(f"error: {failure}")
