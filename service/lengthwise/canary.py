"""A canary: a version that answers a share of the sequences which the default version would get.

Which sequences these are follows from their ids alone: the same id always meets the same version, in any request, in
any process. A sequence without an id gets the default version, and so does every call that names a version.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from lengthwise.versions import Key

_SPAN = 2.0**64


@dataclass(frozen=True, slots=True)
class Canary:
    """A canary.

    Attributes:
        key: Its name and version.
        share: The share of ids that it gets, 0 to 1.
    """

    key: Key
    share: float

    @classmethod
    def parse(cls, text: str) -> Canary:
        """Reads `NAME/VERSION=SHARE`.

        Raises:
            ValueError: The text is not of this form.
        """
        key, equals, share = text.partition("=")
        try:
            made = cls(Key.parse(key), float(share))
        except ValueError:
            made = None
        if made is None or not equals or not 0 <= made.share <= 1:
            raise ValueError("must be NAME/VERSION=SHARE with a share from 0 to 1, like vowels/4=0.05")
        return made

    def takes(self, identifier: str | None) -> bool:
        """Whether the canary answers the sequence with this id."""
        if identifier is None:
            return False
        digest = hashlib.blake2b(identifier.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "big") / _SPAN < self.share
