"""What the folder of a model repository holds: its versions, and what is no version; and which of them a path names."""

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

    directories: dict[Key, Path]  # every `NAME/VERSION` whose VERSION is a positive integer
    ignored: dict[str, str]  # why something in a folder is not served; "" for the repository itself
    unread: set[str]  # names whose folders cannot be read now


def check_readable(folder: Path) -> None:
    """Checks that a folder can be read, and that it is not itself a version or a model.

    Raises:
        ConfigurationError: It is one; the message says how to serve it.
    """
    content = read(folder)
    inside = Path(os.path.abspath(folder))
    if content.directories or not any(name == "" or is_version(name) for name in content.ignored):
        return
    if any(map(is_version, content.ignored)):
        kind, repository, only = "one model", inside.parent, ""
    elif is_version(inside.name):
        kind, repository = "one version of a model", inside.parent.parent
        only = f" --versions {shlex.quote(f'{inside.parent.name}/{inside.name}')}"
    else:
        raise ConfigurationError(f"{folder} holds the files of a version: move them to NAME/VERSION in it")
    path = shlex.quote(str(repository) if folder.is_absolute() else os.path.relpath(repository))
    raise ConfigurationError(
        f"{folder} is {kind}, and a folder of models (NAME/VERSION) is served: lengthwise serve {path}{only}"
    )


def read(folder: Path) -> FolderContent:
    """Reads the folder of a model repository, without its versions.

    Raises:
        ConfigurationError: The folder cannot be read.
    """
    content = FolderContent({}, {}, set())
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ConfigurationError(f"the model repository {folder} cannot be read: {error.strerror}") from error
    loose = _files_of_a_version(paths)
    if loose:
        content.ignored[""] = f"{loose} in the model repository itself: ignored, {_BELONGS} 'NAME/VERSION' in it"
    for path in paths:
        name, where = path.name, f"the folder {path.name!a} of the model repository"
        try:
            if not _is_folder(path):
                continue
            entries = paths_in(path)
            inside = {int(one.name): one for one in entries if is_version(one.name) and _is_folder(one)}
        except OSError as error:
            content.unread.add(name)
            content.ignored[name] = f"{where} is ignored: it cannot be read: {error.strerror}"
            continue
        if inside and not is_name(name):
            content.ignored[name] = f"{where} is ignored: no model can have that name"
            continue
        content.directories.update({Key(name, version): one for version, one in inside.items()})
        loose = _files_of_a_version(entries)
        if loose:
            right_name = f"NAME/{name}" if is_version(name) else f"{name}/{max(inside, default=0) + 1}"
            content.ignored[name] = f"{loose} in {where}: ignored, {_BELONGS} {right_name!a}"
    return content


def _files_of_a_version(paths: Iterable[Path]) -> str:
    """The names of files that only a version has, as text; empty without such files."""
    return " and ".join(sorted({path.name for path in paths} & {MANIFEST_FILE, GRAPH_FILE}))


def _is_folder(path: Path) -> bool:
    """Whether a path is a folder or a link to one; true where that is unknown: then reading it gives the reason."""
    try:
        return path.is_dir()
    except OSError:
        return True


def paths_in(folder: Path) -> list[Path]:
    """The content of a folder; empty if it was just removed."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def model_directory(path: Path) -> Path:
    """The model directory for a path: the path itself, or the highest version in it.

    Raises:
        ConfigurationError: It is neither a version nor a model; the message lists the models that are in it.
    """
    absolute = Path(os.path.abspath(path))  # by the names that the caller sees, as the service does
    if (path / MANIFEST_FILE).is_file():
        return absolute if is_version(absolute.name) else absolute.resolve()
    try:
        inside = [each for each in absolute.iterdir() if is_version(each.name) and each.is_dir()]
        models = sorted({str(file.parent.parent) for file in path.glob(f"*/*/{MANIFEST_FILE}")})
    except OSError as error:
        raise ConfigurationError(f"the model directory {path} cannot be read: {error.strerror}") from error
    if inside:
        return max(inside, key=lambda each: int(each.name))
    instead = f"; it holds models, so name one of {', '.join(models[:_MOST_LISTED])}" if models else ""
    raise ConfigurationError(
        f"{path} is not a model directory: it has neither {MANIFEST_FILE} nor versions (1, 2, ...){instead}"
    )
