"""Examines files of Keras: a zip file with a configuration and weights, or HDF5; nothing but numbers is in them."""

from __future__ import annotations

import json
import stat
import zipfile
from pathlib import Path
from typing import IO, Any, Final

from lengthwise.errors import ConfigurationError

CONFIG: Final = "config.json"
METADATA: Final = "metadata.json"
WEIGHTS: Final = "model.weights.h5"
SHARDS: Final = "model.weights.json"
MOST_CONFIG: Final = 32 << 20  # the largest configuration, in bytes
MOST_BYTES: Final = 8 << 30  # the largest file of weights, in bytes
_MOST_MEMBERS: Final = 16
_MOST_EXPANSION: Final = 100  # how many times larger than in the archive a member may be; Keras does not compress
_FREE: Final = 1 << 20  # members and arrays of fewer bytes may expand as they like
_CHUNK: Final = 1 << 20


def read_archive(text: str, path: Path, weights: Path) -> tuple[Any, dict[str, Any]]:
    """The configuration and the metadata of an archive, whose weights it writes into the file `weights`."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(text, archive)
            config = _json(text, archive, members[CONFIG])
            metadata = _json(text, archive, members[METADATA]) if METADATA in members else {}
            with archive.open(members[WEIGHTS]) as source, weights.open("wb") as target:
                _copy(text, source, target, members[WEIGHTS].file_size)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, RuntimeError, zipfile.LargeZipFile) as error:
        raise ConfigurationError(f"{text} cannot be read as a .keras file: {error}") from error
    return config, metadata if isinstance(metadata, dict) else {}


def _members(text: str, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    infos = archive.infolist()
    if len(infos) > _MOST_MEMBERS and not any(info.filename.startswith("assets/") for info in infos):
        raise ConfigurationError(f"{text} has {len(infos)} members; a .keras file has three")
    found: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        if info.filename in found:
            raise ConfigurationError(f"{text} has {info.filename} twice")
        why = _no_member(info.filename) or _unreadable(info)
        if why is not None:
            raise ConfigurationError(f"{text} {why}")
        found[info.filename] = info
    missing = [name for name in (CONFIG, WEIGHTS) if name not in found]
    if missing:
        raise ConfigurationError(
            f"{text} has no {' and no '.join(missing)}: it is no model that model.save('model.keras') wrote"
        )
    return found


def _no_member(name: str) -> str | None:
    """Why a name cannot be in a file that is read; None if it can."""
    if name.startswith("assets/"):
        return f"has {name}, which belongs to a layer that prepares data: give a keras.Model of the layers behind it"
    if name == SHARDS or (name.endswith(".weights.h5") and name != WEIGHTS):
        return "has its weights in several files: save it with model.save('model.keras') without max_shard_size"
    if name not in (CONFIG, METADATA, WEIGHTS):
        return f"has {name[:80]!r}, which is no part of a .keras file"
    return None


def _unreadable(info: zipfile.ZipInfo) -> str | None:
    name, most = info.filename, MOST_BYTES if info.filename == WEIGHTS else MOST_CONFIG
    if stat.S_ISLNK(info.external_attr >> 16):
        return f"has {name} as a link"
    if info.flag_bits & 1:
        return f"has {name} encrypted"
    if info.file_size > most:
        return f"has {info.file_size} bytes in {name}; at most {most} are read"
    if info.file_size > _FREE and info.file_size > _MOST_EXPANSION * max(info.compress_size, 1):
        return (
            f"has {info.file_size} bytes in {name}, of which the archive stores {info.compress_size}: Keras wrote no "
            "such file"
        )
    return None


def _json(text: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    with archive.open(info) as file:
        data = file.read(MOST_CONFIG + 1)
    if len(data) > MOST_CONFIG:
        raise ConfigurationError(f"{text}: {info.filename} has more than {MOST_CONFIG} bytes")
    return parsed(f"{text}: {info.filename}", data)


def parsed(name: str, data: bytes | str) -> Any:
    """A JSON text as Python values."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        said = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigurationError(f"{name} is not JSON: {said}") from error


def _copy(text: str, source: IO[bytes], target: IO[bytes], size: int) -> None:
    left = size
    while chunk := source.read(_CHUNK):
        left -= len(chunk)
        if left < 0:
            raise ConfigurationError(f"{text}: {WEIGHTS} has more than the {size} bytes that the archive says")
        target.write(chunk)


_MOST_OBJECTS: Final = 100_000
_MOST_DEPTH: Final = 64


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
