"""What the folder of a model repository holds: its versions, and things that are not versions.

A repository is `MODELS/NAME/VERSION/`, where VERSION is a positive integer. Also finds the model directory for a path.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from lengthwise.errors import ConfigurationError
from lengthwise.runtime.manifest import GRAPH_FILE, MANIFEST_FILE, is_name
from lengthwise.versions import Key, is_version

_MOST_LISTED: Final = 5  # models that a message lists
_BELONGS: Final = "because the files of a version belong into a folder of their own; move them to"
NOTHING: Final = (  # clients see it, so it has no path
    "the model repository holds no NAME/VERSION folder; VERSION is a whole number from 1, as in vowels/1; 'lengthwise "
    "export' makes such a folder"
)


class FolderContent(NamedTuple):
    """What a model repository holds."""

    directories: dict[Key, Path]  # every `NAME/VERSION`
    ignored: dict[str, str]  # by the name of a folder, "" for the repository: why something in it is not served
    unread: set[str]  # names whose folders cannot be read now


def check_readable(folder: Path) -> None:
    """Checks that a folder can be read, and that it does not look like a version, or like one model with versions.

    An empty folder is a model repository too.

    Raises:
        ConfigurationError: It cannot be read, or is a version or a model; the message says how to serve that.
    """
    content = read(folder)
    absolute = Path(os.path.abspath(folder))
    if content.directories or not any(name == "" or is_version(name) for name in content.ignored):
        return
    if any(map(is_version, content.ignored)):
        kind, repository, option = "one model", absolute.parent, ""
    elif is_version(absolute.name):
        kind, repository = "one version of a model", absolute.parent.parent
        option = f" --versions {shlex.quote(f'{absolute.parent.name}/{absolute.name}')}"
    else:
        raise ConfigurationError(f"{folder} holds the files of a version: move them to NAME/VERSION in it")
    path = shlex.quote(str(repository) if folder.is_absolute() else os.path.relpath(repository))
    raise ConfigurationError(
        f"{folder} is {kind}, and a folder of models (NAME/VERSION) is served: lengthwise serve {path}{option}"
    )


def read(folder: Path) -> FolderContent:
    """Reads which versions are in the folder of a model repository, but not what is in their directories.

    Returns:
        The directories of the versions; what is misplaced or cannot be read (`ignored`), with messages for the log; and
        the names whose folders cannot be read (`unread`).

    Raises:
        ConfigurationError: The folder cannot be read.
    """
    content = FolderContent({}, {}, set())
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ConfigurationError(
            f"the model repository {folder} cannot be read: {error.strerror}"
            + ("; 'lengthwise export' makes NAME/VERSION in a folder" if isinstance(error, NotADirectoryError) else "")
        ) from error
    if misplaced := _misplaced_files(paths):
        content.ignored[""] = f"{misplaced} in the model repository itself: ignored, {_BELONGS} 'NAME/VERSION' in it"
    for path in paths:
        name, where = path.name, f"the folder {path.name!a} of the model repository"
        try:
            if not _is_folder(path):
                continue
            entries = paths_in(path)
            versions = {int(entry.name): entry for entry in entries if is_version(entry.name) and _is_folder(entry)}
        except OSError as error:
            content.unread.add(name)
            content.ignored[name] = f"{where} is ignored: it cannot be read: {error.strerror}"
            continue
        if versions and not is_name(name):
            content.ignored[name] = f"{where} is ignored: no model can have that name"
            continue
        content.directories.update({Key(name, version): directory for version, directory in versions.items()})
        if misplaced := _misplaced_files(entries):
            right_name = f"NAME/{name}" if is_version(name) else f"{name}/{max(versions, default=0) + 1}"
            content.ignored[name] = f"{misplaced} in {where}: ignored, {_BELONGS} {right_name!a}"
    return content


def _misplaced_files(paths: Iterable[Path]) -> str:
    """Which of these paths are files that belong into a version: their names as text; empty if none is."""
    return " and ".join(sorted({path.name for path in paths} & {MANIFEST_FILE, GRAPH_FILE}))


def _is_folder(path: Path) -> bool:
    """Whether a path is a folder or a link to one.

    True also if the system does not say so: reading the path then raises the error with the reason.
    """
    try:
        return path.is_dir()
    except OSError:
        return True


def paths_in(folder: Path) -> list[Path]:
    """Returns the paths in a folder; none if it does not exist: it may have been removed just now."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def model_directory(path: Path) -> Path:
    """Returns the model directory for a path: the path itself if it is one, or the highest version in it.

    Raises:
        ConfigurationError: It is neither a version nor a model; the message lists the models that are in it.
    """
    absolute = Path(os.path.abspath(path))  # by the names that the caller sees, as the service does
    if (path / MANIFEST_FILE).is_file():
        return absolute if is_version(absolute.name) else absolute.resolve()
    try:
        versions = [entry for entry in absolute.iterdir() if is_version(entry.name) and entry.is_dir()]
        models = sorted({str(file.parent.parent) for file in path.glob(f"*/*/{MANIFEST_FILE}")})
    except NotADirectoryError as error:
        raise ConfigurationError(f"{path} is a file: name the model directory, such as {path.parent}") from error
    except OSError as error:
        raise ConfigurationError(f"the model directory {path} cannot be read: {error.strerror}") from error
    if versions:
        return max(versions, key=lambda version: int(version.name))
    instead = f"; it holds models, so name one of {', '.join(models[:_MOST_LISTED])}" if models else ""
    raise ConfigurationError(
        f"{path} is not a model directory: it has neither {MANIFEST_FILE} nor versions (1, 2, ...){instead}"
    )
