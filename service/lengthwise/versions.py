"""Which versions of the models in a repository are served: the policy that `--versions` says. Pure.

| policy | serves |
|---|---|
| `latest` | of each name the highest version that is good, and no other |
| `all` | every good version |
| `NAME/VERSION,...` | these and no others |

Under every policy the highest version that is served answers where a request names none.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Final

MOST_DIGITS: Final = 9
"""A version is written with so many digits at most: it then fits into every protocol's integers."""

_KEY: Final = re.compile(rf"([^/,\s]+)/([1-9][0-9]{{0,{MOST_DIGITS - 1}}})")


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """A model's name and version: where its directory stands in the repository."""

    name: str
    version: int

    def __str__(self) -> str:
        """`NAME/VERSION`."""
        return f"{self.name}/{self.version}"


def is_written_as_version(text: str) -> bool:
    """Whether a text is ASCII digits that do not start with 0; of a number too large to be a version, too."""
    return text.isascii() and text.isdigit() and not text.startswith("0")


def is_version(name: str) -> bool:
    """Whether a folder's name is a version: a whole number from 1, without leading zeros, of 9 digits at most."""
    return is_written_as_version(name) and len(name) <= MOST_DIGITS


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy.

    Attributes:
        one: Whether one version of a name is enough.
        named: The versions that may be served at all, or None for any.
    """

    one: bool = True
    named: frozenset[Key] | None = None

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Reads a policy.

        Raises:
            ValueError: The text is none; says what one looks like.
        """
        if text in ("latest", "all"):
            return cls(one=text == "latest")
        matches = [_KEY.fullmatch(part.strip()) for part in text.split(",")]
        keys = [Key(match[1], int(match[2])) for match in matches if match is not None]
        if len(keys) < len(matches):
            raise ValueError("must be latest, all, or NAME/VERSION,... like vowels/3,consonants/1")
        return cls(one=False, named=frozenset(keys))

    def candidates(self, present: Iterable[Key]) -> list[Key]:
        """The versions to try, in order: the highest of each name, then the next of each, and so on.

        So where there is not room for all, no name goes without while another has two.
        """
        by_name: defaultdict[str, list[int]] = defaultdict(list)
        for key in present:
            if self.named is None or key in self.named:
                by_name[key.name].append(key.version)
        ranked = [
            (rank, Key(name, version))
            for name, versions in by_name.items()
            for rank, version in enumerate(sorted(versions, reverse=True))
        ]
        return [key for _, key in sorted(ranked)]

    def absent(self, present: Container[Key]) -> list[Key]:
        """The versions that it names and that are not there."""
        return sorted(key for key in self.named or () if key not in present)
