"""Examines an HDF5 file of weights: arrays of numbers in the file itself, and nothing that leads out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from lengthwise.errors import ConfigurationError
from lengthwise_export.keras_models.archive import MOST_BYTES

_MOST_OBJECTS: Final = 100_000
_MOST_DEPTH: Final = 64
_MOST_EXPANSION: Final = 100
_FREE: Final = 1 << 20
"""Arrays of fewer bytes may be compressed as they like."""


def require_plain(text: str, path: Path) -> int:
    """Makes sure that a file holds plain arrays in the file itself; returns the number of their values."""
    import h5py  # comes with Keras

    try:
        with h5py.File(path, "r") as file:
            return _Count(text, h5py).of(file)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise ConfigurationError(f"{text}: its weights cannot be read as HDF5: {error}") from error


class _Count:
    def __init__(self, text: str, h5py: Any) -> None:
        self._text = text
        self._h5py = h5py
        self._objects = 0
        self._bytes = 0
        self._values = 0

    def of(self, group: Any, depth: int = 0) -> int:
        """Counts the values below a group, after each object was examined."""
        if depth > _MOST_DEPTH:
            raise ConfigurationError(f"{self._text}: its weights are nested too deeply")
        for name in group:
            self._objects += 1
            if self._objects > _MOST_OBJECTS:
                raise ConfigurationError(f"{self._text}: its weights have more than {_MOST_OBJECTS} parts")
            link = group.get(name, getlink=True)
            if not isinstance(link, self._h5py.HardLink):
                raise ConfigurationError(
                    f"{self._text}: {name[:80]!r} in its weights is a link to another place, which Keras does not write"
                )
            held = group[name]
            if isinstance(held, self._h5py.Group):
                self.of(held, depth + 1)
            elif isinstance(held, self._h5py.Dataset):
                self._add(name, held)
            else:
                raise ConfigurationError(f"{self._text}: {name[:80]!r} in its weights is not an array")
        return self._values

    def _add(self, name: str, array: Any) -> None:
        shown = f"{self._text}: {name[:80]!r} in its weights"
        if array.external or array.is_virtual:
            raise ConfigurationError(f"{shown} is in another file, which Keras does not write")
        if array.dtype.kind not in "fiub":
            raise ConfigurationError(f"{shown} is an array of {array.dtype}, not of numbers")
        self._bytes += array.nbytes
        self._values += array.size
        stored = array.id.get_storage_size()
        if self._bytes > MOST_BYTES:
            raise ConfigurationError(f"{self._text}: its weights have more than {MOST_BYTES} bytes")
        if array.nbytes > _FREE and array.nbytes > _MOST_EXPANSION * max(stored, 1):
            raise ConfigurationError(
                f"{shown} has {array.nbytes} bytes, of which {stored} are stored: that is not a file that Keras wrote"
            )
