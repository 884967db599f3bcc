"""The policy of `--versions`, which versions are served: `latest`, `all`, or named ones; with the forms of versions.

`latest` serves the highest good version of each name.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass
from itertools import groupby, zip_longest
from typing import Final

MOST_DIGITS: Final = 9  # of a version, so that it fits into the integers of every protocol

_ALIAS: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_KEY: Final = re.compile(rf"([^/,\s]+)/([1-9][0-9]{{0,{MOST_DIGITS - 1}}})")


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """A model's name and version, which are the path of its directory in the repository."""

    name: str
    version: int

    def __str__(self) -> str:
        """`NAME/VERSION`."""
        return f"{self.name}/{self.version}"

    @classmethod
    def parse(cls, text: str) -> Key:
        """Reads `NAME/VERSION`.

        Raises:
            ValueError: The text has another form.
        """
        if (match := _KEY.fullmatch(text.strip())) is None:
            raise ValueError("must be NAME/VERSION, like vowels/3")
        return cls(match[1], int(match[2]))


def is_written_as_version(text: str) -> bool:
    """Whether a text is ASCII digits without a leading 0. A number that is too large for a version is included."""
    return text.isascii() and text.isdigit() and not text.startswith("0")


def is_version(name: str) -> bool:
    """Whether a folder's name is a version: a whole number from 1, without leading zeros, of at most 9 digits."""
    return is_written_as_version(name) and len(name) <= MOST_DIGITS


def is_alias(text: str) -> bool:
    """Whether a text has the form of an alias of a version."""
    return _ALIAS.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Policy:
    """Which versions are served."""

    one_per_name: bool = True  # whether one version of each name is enough
    named: frozenset[Key] | None = None  # the only versions that may be served; None: any

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Parses the option `--versions`.

        Raises:
            ValueError: The text has another form; the message says what one looks like.
        """
        if text in ("latest", "all"):
            return cls(one_per_name=text == "latest")
        try:
            return cls(one_per_name=False, named=frozenset(Key.parse(part) for part in text.split(",")))
        except ValueError:
            raise ValueError("must be latest, all, or NAME/VERSION,... like vowels/3,consonants/1") from None

    def candidates(self, present: Iterable[Key]) -> list[Key]:
        """The versions to try, in order: the highest of each name, then the second highest of each, and so on.

        So if the memory is too small for all, every name gets a version before any name gets two.
        """
        allowed = sorted(key for key in present if self.named is None or key in self.named)
        versions_of_name = [sorted(keys, reverse=True) for _, keys in groupby(allowed, key=lambda key: key.name)]
        return [key for keys_of_rank in zip_longest(*versions_of_name) for key in keys_of_rank if key is not None]

    def absent(self, present: Container[Key]) -> list[Key]:
        """The versions that the policy names but the repository does not have."""
        return sorted(key for key in self.named or () if key not in present)
