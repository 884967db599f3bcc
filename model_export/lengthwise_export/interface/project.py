"""Reads the targets of a repository: `[tool.lengthwise.check]` in the nearest pyproject.toml that has that table.

    [tool.lengthwise.check]
    max_length = 256                                  # for every target
    targets = [
      "models/tagger.py:make",
      {target = "models/vowels.py:Net", features = 12, ignore = ["LW803"]},
    ]

Paths are relative to the file. Options have the names that they have in Python, with `-` or `_`.
"""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lengthwise_export.errors import ConfigurationError, unknown
from lengthwise_export.options import ListedOptions

FILE: Final = "pyproject.toml"
NOTHING_LISTED: Final = "no pyproject.toml lists targets: [tool.lengthwise.check] targets = ['models/net.py:make']"
_TABLE: Final = ("tool", "lengthwise", "check")
_OPTION_NAMES: Final = [name for name in ListedOptions.model_fields if name != "progress"]


@dataclass(frozen=True, slots=True)
class ListedTarget:
    """A target and its options."""

    target: str  # As on the command line
    options: ListedOptions


@dataclass(frozen=True, slots=True)
class Project:
    """The targets and options that a pyproject.toml lists for a folder."""

    folder: Path  # The folder of the file, to which its paths are relative
    defaults: Mapping[str, Any]  # The options of every target, by their names in Python
    targets: tuple[ListedTarget, ...] = ()

    @classmethod
    def of(cls, folder: Path) -> Project:
        """Reads the nearest file with the table, upwards from a folder. Without such a file, nothing is listed.

        Raises:
            ConfigurationError: A file on the way is not TOML, or its table is wrong; the message says where and why.
        """  # noqa: DOC502 - what it calls raises it
        for parent in (folder, *folder.parents):
            table = _read_table(parent / FILE) if (parent / FILE).is_file() else None
            if table is not None:
                return _project_of_table(table, parent / FILE)
        return cls(folder, {})

    def named(self, names: Sequence[str], folder: Path) -> tuple[ListedTarget, ...]:
        """The targets of the command line in a folder, each once: with their listed options, or else the defaults.

        Listed options count only in the folder of the file. A target that is listed several times is there as often.
        """
        listed = self.targets if folder == self.folder else ()
        targets: list[ListedTarget] = []
        for name in dict.fromkeys(names):
            listed_here = [target for target in listed if target.target == name]
            targets += listed_here or [_listed_target(name, self.defaults, f"{self.folder / FILE}", folder)]
        return tuple(targets)


def _read_table(file: Path) -> Any:
    """The table `[tool.lengthwise.check]` of a file; None if it has none.

    Raises:
        ConfigurationError: The file cannot be read, or is not TOML, or has something else than a table there.
    """
    try:
        table: Any = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read as TOML: {error}") from error
    for depth, key in enumerate(_TABLE):
        table = table.get(key)
        if table is None:
            return None
        if not isinstance(table, dict):
            raise ConfigurationError(f"{file}: {'.'.join(_TABLE[: depth + 1])} must be a table")
    return table


def _project_of_table(table: Mapping[str, Any], file: Path) -> Project:
    """The project that the table of a file describes.

    Raises:
        ConfigurationError: `targets` is not a list of targets, has one twice, or an option is wrong.
    """
    listed, title = table.get("targets", []), f"{file}: [{'.'.join(_TABLE)}]"
    if not isinstance(listed, list):
        raise ConfigurationError(f"{title} targets must be a list")
    defaults = _options_by_name(table, "targets", title)
    _listed_target("", defaults, title, file.parent)  # so that the error of a wrong default names the table
    targets: list[ListedTarget] = []
    for index, value in enumerate(listed):
        entry = {"target": value} if isinstance(value, str) else value
        entry_title = f"{title} targets[{index}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("target"), str) or not entry["target"]:
            raise ConfigurationError(f"{entry_title} must be a text, or a table with the text `target`")
        options = defaults | _options_by_name(entry, "target", entry_title)
        target = _listed_target(entry["target"], options, f"{entry_title} ({entry['target']})", file.parent)
        if target in targets:
            raise ConfigurationError(f"{entry_title}: {target.target} is listed twice with the same options")
        targets.append(target)
    return Project(file.parent, defaults, tuple(targets))


def _options_by_name(table: Mapping[str, Any], target_key: str, title: str) -> dict[str, Any]:
    """The options in a table by their names in Python, without the entry `target_key`. Errors begin with `title`.

    Raises:
        ConfigurationError: An option is unknown, or is there twice, with `-` and with `_`.
    """
    options: dict[str, Any] = {}
    for key, value in ((key, value) for key, value in table.items() if key != target_key):
        name = key.replace("-", "_")
        if name not in _OPTION_NAMES:
            raise ConfigurationError(f"{title} {key}: {unknown(key, [target_key, *_OPTION_NAMES])}")
        if name in options:
            raise ConfigurationError(f"{title} has {name} twice")
        options[name] = value
    return options


def _listed_target(text: str, options: Mapping[str, Any], title: str, folder: Path) -> ListedTarget:
    """A target with its options, whose paths are relative to a folder. Errors begin with `title`.

    Raises:
        ConfigurationError: An option has the wrong type, or is out of its bounds.
    """
    try:
        with contextlib.chdir(folder):  # the options look whether their files exist
            return ListedTarget(text, ListedOptions(**options))
    except ConfigurationError as error:
        raise ConfigurationError(f"{title}: {error}") from error
