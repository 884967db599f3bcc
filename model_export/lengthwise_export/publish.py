"""Publishing a model directory: staged beside its place, and moved into it in one step.

Everything is written and synced in a hidden folder beside the version's place, on the same file system; then the folder
is renamed. Whoever looks sees no version or the whole of it. An export that fails leaves nothing behind; one that was
killed leaves its hidden folder, which no service reads and the next export into the same place removes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from lengthwise.runtime.manifest import Name
from lengthwise.versions import MOST_DIGITS, is_version
from lengthwise_export.errors import PublishError

_NUMBER = re.compile(r"[1-9][0-9]*")
_LIKE_A_VERSION = re.compile(r"[vV]?[0-9][0-9.]*")
_STAGE_PREFIX = ".stage-"
_STAGE_TRIALS = 5


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a model directory goes: `MODELS/<name>/<version>`."""

    name: str
    version: int
    directory: Path


def destination(out: Path) -> Destination:
    """Reads `--out`: `MODELS/NAME/VERSION`, or `MODELS/NAME` for the next free version.

    Raises:
        PublishError: The version exists already, or is none that a service reads, or the name is none.
    """
    out = Path(os.path.abspath(out))
    numbered = _NUMBER.fullmatch(out.name) is not None
    if not numbered and _LIKE_A_VERSION.fullmatch(out.name):
        raise PublishError(
            f"{out}: {out.name!r} looks like a version, and versions are whole numbers from 1: {out.parent / '1'}, say "
            f"(a model of that name is published with its version, as {out / '1'})"
        )
    parent = out.parent if numbered else out
    try:
        name = TypeAdapter(Name).validate_python(parent.name)
    except ValidationError as error:
        raise PublishError(
            f"{out}: {parent.name!r} is no model name: letters, digits, '.', '_' and '-', at most 128, "
            "and the first a letter or a digit"
        ) from error
    found = versions(parent)
    version = int(out.name) if numbered else max(found, default=0) + 1
    if not is_version(str(version)):
        raise PublishError(f"{parent / str(version)}: no service reads a version of more than {MOST_DIGITS} digits")
    directory = parent / str(version)
    if os.path.lexists(directory):
        raise PublishError(f"{directory} exists, and a published version is never changed; publish {max(found) + 1}")
    return Destination(name, version, directory)


def versions(model: Path) -> list[int]:
    """The version numbers taken under `MODELS/<name>`, in order."""
    if not model.is_dir():
        return []
    return sorted(int(entry.name) for entry in model.iterdir() if is_version(entry.name))


@contextmanager
def staging_folder(target: Destination) -> Iterator[Path]:
    """A folder to fill, which becomes the model directory when the block ends without an error.

    Raises:
        PublishError: The place cannot be written, or was taken meanwhile.
    """
    parent = target.directory.parent
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(parent)
        stage, lock = _new_stage(parent)
    except OSError as error:
        _remove_empty(made)
        raise PublishError(f"{parent} cannot be written: {error.strerror}") from error
    try:
        yield stage
        _publish(stage, target.directory)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        _remove_empty(made)
        raise
    finally:
        os.close(lock)


def _publish(stage: Path, directory: Path) -> None:
    """Syncs the folder and moves it into its place.

    Requires: a place that does not exist. Ensures: the whole directory stands there, on disk.
    """
    for path in stage.iterdir():
        _sync(path)
    _sync(stage)
    stage.chmod(0o755)  # mkdtemp's folders are private
    # A rename would take the place of an empty folder, and a version is never replaced
    if os.path.lexists(directory):
        raise PublishError(f"{directory} was published meanwhile")
    try:
        os.rename(stage, directory)
    except OSError as error:
        raise PublishError(f"{directory} cannot be published: {error.strerror}") from error
    _sync(directory.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _new_stage(parent: Path) -> tuple[Path, int]:
    """An empty stage and the lock on it.

    Until it is locked a stage looks abandoned, and an export that begins just then removes it: then another is made.
    """
    for _ in range(_STAGE_TRIALS):
        stage = Path(tempfile.mkdtemp(prefix=_STAGE_PREFIX, dir=parent))
        try:
            lock = _lock(stage)
        except (FileNotFoundError, BlockingIOError):
            continue
        except OSError:
            stage.rmdir()
            raise
        if stage.is_dir():
            return stage, lock
        os.close(lock)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def _lock(stage: Path) -> int:
    """A lock on a stage that ends with its process, whichever way it ends."""
    handle = os.open(stage, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _remove_abandoned(parent: Path) -> None:
    """Removes the stages of exports that were killed: those that nobody holds a lock on."""
    for stage in parent.glob(f"{_STAGE_PREFIX}*"):
        try:
            handle = _lock(stage)
        except OSError:  # held by an export that is running, or gone
            continue
        shutil.rmtree(stage, ignore_errors=True)
        os.close(handle)


def _remove_empty(folders: list[Path]) -> None:
    """Removes folders made on the way, from the innermost, as far as they are empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
