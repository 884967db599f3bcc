"""Aliases of a model's versions: `champion`, `candidate`, or any other word, in `MODELS/NAME/aliases.json`.

The file, such as `{"champion": 3, "candidate": 4}`, is replaced as a whole, so a switch is atomic. A request that names
no version gets the champion, if there is one, and else the highest version.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from lengthwise import files
from lengthwise.errors import ConfigurationError
from lengthwise.versions import is_alias, is_version

log = logging.getLogger("lengthwise.scan")

FILE: Final = "aliases.json"
CHAMPION: Final = "champion"  # the version for requests that name none
_MOST_BYTES: Final = 2**16
_NO_ALIAS: Final = "is not an alias: use up to 64 small letters, digits, '-' and '_', beginning with a letter"

Aliases = Mapping[str, int]


def read(folder: Path) -> Aliases:
    """Reads the aliases in the folder of a model's name; empty if it has none.

    Raises:
        ConfigurationError: The file cannot be read, or has another form.
    """
    path = folder / FILE
    try:
        aliases = json.loads(files.read(path, _MOST_BYTES))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    if not isinstance(aliases, dict):
        raise ConfigurationError(f'{path}: the form is {{"champion": 3, "candidate": 4}}')
    for alias, version in aliases.items():
        if not is_alias(alias):
            raise ConfigurationError(f"{path}: {alias[:40]!r} {_NO_ALIAS}")
        if type(version) is not int or not is_version(str(version)):
            raise ConfigurationError(f"{path}: {alias}: a version is a whole number from 1, not {version!r}")
    return aliases


def set_alias(folder: Path, alias: str, version: int | None) -> Aliases:
    """Points an alias to a version, or removes the alias; returns all aliases of the model afterwards.

    Args:
        folder: `MODELS/NAME`.
        alias: The alias.
        version: The version; None removes the alias.

    Raises:
        ConfigurationError: There is no such model, version or alias, or the file cannot be written.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is not a folder: name a model as MODELS/NAME")
    with files.locked(folder):  # two changes at once must not lose one of them
        aliases = dict(read(folder))
        if version is None:
            if alias not in aliases:
                raise ConfigurationError(f"{folder} has no alias {alias!r}; it has {', '.join(aliases) or 'none'}")
            del aliases[alias]
        else:
            if not is_alias(alias):
                raise ConfigurationError(f"{alias!r} {_NO_ALIAS}")
            if not (folder / str(version)).is_dir():
                numbers = sorted(int(path.name) for path in folder.iterdir() if is_version(path.name) and path.is_dir())
                versions = ", ".join(map(str, numbers)) or "none"
                raise ConfigurationError(f"{folder} has no version {version}; it has {versions}")
            aliases[alias] = version
        try:
            files.replace(folder / FILE, (json.dumps(aliases, indent=2) + "\n").encode())
        except OSError as error:
            raise ConfigurationError(f"{folder / FILE} cannot be written: {error.strerror}") from error
    return aliases
