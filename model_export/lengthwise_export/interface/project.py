"""The targets of a repository: `[tool.lengthwise.check]` in the nearest pyproject.toml that has that table.

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

from lengthwise.errors import ConfigurationError
from lengthwise.wrong_values import unknown
from lengthwise_export.options import ListedOptions

FILE: Final = "pyproject.toml"
NOTHING_LISTED: Final = "no pyproject.toml lists targets: [tool.lengthwise.check] targets = ['models/net.py:make']"
_SECTION: Final = ("tool", "lengthwise", "check")
_KNOWN: Final = [name for name in ListedOptions.model_fields if name != "progress"]


@dataclass(frozen=True, slots=True)
class ListedTarget:
    """A target and its options."""

    target: str
    options: ListedOptions


@dataclass(frozen=True, slots=True)
class Project:
    """What is listed for a folder."""

    folder: Path  # That of the file, which its paths are relative to
    defaults: Mapping[str, Any]  # The options of every target
    targets: tuple[ListedTarget, ...] = ()

    @classmethod
    def of(cls, folder: Path) -> Project:
        """That of the nearest file, upwards from a folder; without one, nothing is listed.

        Raises:
            ConfigurationError: A file on the way is no TOML, or its table is wrong; the message says where and why.
        """  # noqa: DOC502 - what it calls raises it
        for each in (folder, *folder.parents):
            section = _section(each / FILE) if (each / FILE).is_file() else None
            if section is not None:
                return _read(section, each / FILE)
        return cls(folder, {})

    def named(self, texts: Sequence[str], folder: Path) -> tuple[ListedTarget, ...]:
        """The targets of these texts: with the options that are listed for them, or else with the defaults."""
        listed = self.targets if folder == self.folder else ()
        return tuple(
            target
            for text in dict.fromkeys(texts)
            for target in [one for one in listed if one.target == text]
            or [_target(text, self.defaults, f"{self.folder / FILE}", folder)]
        )


def _section(file: Path) -> Any:
    """The table of a file; None if it has none.

    Raises:
        ConfigurationError: The file cannot be read, or is no TOML, or holds something else than a table there.
    """
    try:
        value: Any = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read as TOML: {error}") from error
    for number, key in enumerate(_SECTION):
        value = value.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise ConfigurationError(f"{file}: {'.'.join(_SECTION[: number + 1])} must be a table")
    return value


def _read(section: Mapping[str, Any], file: Path) -> Project:
    """The project of a table.

    Raises:
        ConfigurationError: `targets` is no list of targets, has one twice, or an option is wrong.
    """
    listed, table = section.get("targets", []), f"{file}: [{'.'.join(_SECTION)}]"
    if not isinstance(listed, list):
        raise ConfigurationError(f"{table} targets must be a list")
    defaults = _options({key: value for key, value in section.items() if key != "targets"}, table, ("targets",))
    _target("", defaults, table, file.parent)  # so that a wrong one is refused where it stands
    targets: list[ListedTarget] = []
    for number, one in enumerate(listed):
        entry = {"target": one} if isinstance(one, str) else one
        where = f"{table} targets[{number}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("target"), str) or not entry["target"]:
            raise ConfigurationError(f"{where} must be a text, or a table with the text `target`")
        own = _options({key: value for key, value in entry.items() if key != "target"}, where, ("target",))
        target = _target(entry["target"], {**defaults, **own}, f"{where} ({entry['target']})", file.parent)
        if target in targets:
            raise ConfigurationError(f"{where}: {target.target} is listed twice with the same options")
        targets.append(target)
    return Project(file.parent, defaults, tuple(targets))


def _options(table: Mapping[str, Any], where: str, more: tuple[str, ...]) -> dict[str, Any]:
    """The options of a table by their names in Python.

    Raises:
        ConfigurationError: One is unknown, or stands there twice.
    """
    options: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in _KNOWN:
            raise ConfigurationError(f"{where} {key}: {unknown(key, [*more, *_KNOWN])}")
        if name in options:
            raise ConfigurationError(f"{where} has {name} twice")
        options[name] = value
    return options


def _target(text: str, values: Mapping[str, Any], where: str, folder: Path) -> ListedTarget:
    """A target with its options.

    Raises:
        ConfigurationError: An option is of the wrong type or out of its bounds.
    """
    try:
        with contextlib.chdir(folder):  # to which the paths are relative
            return ListedTarget(text, ListedOptions(**values))
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error
