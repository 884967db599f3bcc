"""The policy of `--versions`: the highest good version of each name (`latest`, and `kept` ones), all, or named ones."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Final

MOST_DIGITS: Final = 9  # of a version: with nine it fits into every protocol's integers

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
        match = _KEY.fullmatch(text.strip())
        if match is None:
            raise ValueError("must be NAME/VERSION, like vowels/3")
        return cls(match[1], int(match[2]))


def is_written_as_version(text: str) -> bool:
    """Whether a text is ASCII digits that do not start with 0; of a number too large to be a version, too."""
    return text.isascii() and text.isdigit() and not text.startswith("0")


def is_version(name: str) -> bool:
    """Whether a folder's name is a version: a whole number from 1, without leading zeros, of 9 digits at most."""
    return is_written_as_version(name) and len(name) <= MOST_DIGITS


def is_alias(text: str) -> bool:
    """Whether a text has the form of an alias of a version."""
    return _ALIAS.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy: whether one version of each name is enough, and the only versions that may be served."""

    one: bool = True
    named: frozenset[Key] | None = None

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Reads a policy.

        Raises:
            ValueError: The text has another form; the message says what one looks like.
        """
        if text in ("latest", "all"):
            return cls(one=text == "latest")
        try:
            return cls(one=False, named=frozenset(Key.parse(part) for part in text.split(",")))
        except ValueError:
            raise ValueError("must be latest, all, or NAME/VERSION,... like vowels/3,consonants/1") from None

    def candidates(self, present: Iterable[Key]) -> list[Key]:
        """The versions to try, in order: the highest of each name, then the second highest of each, and so on.

        So if there is not memory for all, every name has a version before any name has two.
        """
        ranked: list[tuple[int, Key]] = []
        above: Counter[str] = Counter()
        for key in sorted(present, reverse=True):
            if self.named is None or key in self.named:
                ranked.append((above[key.name], key))
                above[key.name] += 1
        return [key for _, key in sorted(ranked)]

    def absent(self, present: Container[Key]) -> list[Key]:
        """The versions that the policy names and that are not in the repository."""
        return sorted(key for key in self.named or () if key not in present)
