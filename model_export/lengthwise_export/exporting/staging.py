"""Publishes a model directory atomically, as a version of `MODELS/<name>`.

It is written into a hidden (staging) folder on the same file system, next to the final one, which is synced and then
renamed. So a reader sees either no version or a complete one. A failed export leaves nothing behind. A killed export
leaves its staging folder, which no service reads, and which the next export of the same model removes. An export that
runs holds a lock of its staging folder, so that others see that it is not abandoned.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lengthwise.exporter_api.contract import MANIFEST_FILE, MOST_DIGITS, files, is_address, is_name, is_version
from lengthwise_export.errors import PublishError

_NUMBER = re.compile(r"[1-9][0-9]*")
_LIKE_A_VERSION = re.compile(r"[vV]?[0-9][0-9.]*")
_STAGE_PREFIX = ".stage-"


@dataclass(frozen=True, slots=True)
class Destination:
    """The name, the version and the folder `MODELS/<name>/<version>` of a model to publish."""

    name: str
    version: int
    directory: Path


def destination(out: Path, staged: Collection[int] = ()) -> Destination:
    """Parses `--out`, which is `MODELS/NAME/VERSION`, or `MODELS/NAME` for the next free version.

    A version is free if it neither exists nor is among `staged`, those of exports that run.

    Raises:
        PublishError: The name or the version is not valid, the version exists already, or it is a model repository, or
            an address.
    """
    if is_address(str(out)):
        raise PublishError(f"{out} is an address: export into a folder, and then `lengthwise push` it there")
    # The name
    out = Path(os.path.abspath(out))
    has_version = _NUMBER.fullmatch(out.name) is not None
    if not has_version and _LIKE_A_VERSION.fullmatch(out.name):
        raise PublishError(
            f"{out}: {out.name!r} looks like a version, but versions are whole numbers from 1: use for example "
            f"{out.parent / '1'} (for a model of that name, use {out / '1'})"
        )
    parent = out.parent if has_version else out
    if not is_name(parent.name):
        raise PublishError(
            f"{out}: {parent.name!r} is not a model name: use at most 128 letters, digits, '.', '_' and '-', beginning "
            "with a letter or a digit"
        )
    # A folder of models must not become a model
    existing = versions(parent)
    manifests = () if existing else parent.glob(f"*/*/{MANIFEST_FILE}")
    for model in (manifest.parent for manifest in manifests if is_version(manifest.parent.name)):
        if not model.parent.name.startswith("."):
            example = f"{model.parent.name}/{model.name}"
            raise PublishError(f"{out} holds models, such as {example}: name this one too, as in {parent / 'NAME'}")
    # The version
    version = int(out.name) if has_version else max([*existing, *staged], default=0) + 1
    if not is_version(str(version)):
        raise PublishError(f"{parent / str(version)}: a version may have at most {MOST_DIGITS} digits")
    directory = parent / str(version)
    if has_version and os.path.lexists(directory):  # a free number that was taken since is chosen again, under the lock
        raise PublishError(
            f"{directory} exists, and published versions are never changed; use version {max(version, *existing) + 1}"
        )
    return Destination(parent.name, version, directory)


def require_writable(out: Path) -> None:
    """Makes sure, before the long work of an export, that a version can be published at `out`; leaves nothing there.

    Raises:
        PublishError: `out` names no version that can be published, or its folder cannot be written.
    """
    parent = destination(out).directory.parent
    try:
        files.try_to_write(parent)
    except OSError as error:
        raise PublishError(f"{parent} cannot be written: {error.strerror}") from error


def versions(model: Path) -> list[int]:
    """The existing version numbers under `MODELS/<name>`, in order."""
    return sorted(int(entry.name) for entry in model.glob("*") if is_version(entry.name))  # none without the folder


@contextmanager
def staging_folder(out: Path) -> Iterator[tuple[Destination, Path]]:
    """Yields a new version and its staging folder, which is published by a rename if the block ends without an error.

    Raises:
        PublishError: The folder cannot be made or locked.
        OSError: The block raised it, or the rename at its end. The staging folder is removed then.
    """
    # Make and lock a staging folder for a free version
    parent = destination(out).directory.parent
    created = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    with ExitStack() as locks:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with _locked(parent):  # so that two exports at once get two versions
                staged = remove_abandoned(parent)  # the versions of exports that are running
                target = destination(out, staged)
                stage = Path(tempfile.mkdtemp(prefix=f"{_STAGE_PREFIX}{target.version}-", dir=parent))
                try:  # the lock shows other exports that this folder is not abandoned
                    locks.enter_context(_locked(stage, wait=False))
                except OSError:
                    stage.rmdir()
                    raise
        except OSError as error:
            _remove_empty(created)
            raise PublishError(f"{parent} cannot be written: {error.strerror}") from error
        # Let the block write into it, and publish it
        try:
            yield target, stage
            move_stage(stage, target.directory)
        except BaseException:  # an interrupt, too
            shutil.rmtree(stage, ignore_errors=True)
            _remove_empty(created)
            raise


def move_stage(stage: Path, directory: Path) -> None:
    """Syncs the staging folder and renames it to `directory`, which does not exist yet.

    Raises:
        PublishError: The version was published meanwhile, or the folder cannot be renamed.
    """
    for path in stage.iterdir():
        _sync(path)
    _sync(stage)
    stage.chmod(0o755)  # mkdtemp's folders are private
    # A rename would replace an empty folder without an error
    if os.path.lexists(directory):
        raise PublishError(f"{directory} was published meanwhile")
    try:
        os.rename(stage, directory)
    except OSError as error:
        raise PublishError(f"{directory} cannot be published: {error.strerror}") from error
    _sync(directory.parent)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Opens a file or folder for the block, and yields its file descriptor."""
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    """Forces a file or folder to the disk (fsync)."""
    with _opened(path) as handle:
        os.fsync(handle)


@contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Locks a folder during the block; the operating system releases the lock if the process is killed.

    Without `wait`, a lock that another process holds is an OSError.
    """
    with _opened(folder) as handle:
        files.lock(handle, wait=wait)
        yield


def remove_abandoned(parent: Path) -> list[int]:
    """Removes the staging folders of killed exports, which are not locked.

    Returns the versions of the staging folders that could not be locked: those of exports that run, or ended just now.
    """
    staged = []
    for stage in parent.glob(f"{_STAGE_PREFIX}*"):
        try:
            with _locked(stage, wait=False):
                shutil.rmtree(stage, ignore_errors=True)
        except OSError:  # locked by an export that is running, or already removed
            number = stage.name.removeprefix(_STAGE_PREFIX).partition("-")[0]
            staged += [int(number)] if is_version(number) else []
    return staged


def _remove_empty(folders: list[Path]) -> None:
    """Removes empty folders, given innermost first, up to the first that is not empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
