"""Examines the archive of a `.keras` file: a zip file with a configuration and weights, and nothing else."""

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
MOST_CONFIG: Final = 32 << 20
"""The largest configuration, in bytes."""
MOST_BYTES: Final = 8 << 30
"""The largest file of weights, in bytes."""
_MOST_MEMBERS: Final = 16
_MOST_EXPANSION: Final = 100
"""How many times larger than in the archive a member may be; Keras does not compress."""
_FREE: Final = 1 << 20
"""Members of fewer bytes may expand as they like."""
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
    """Why a member is not read; None if it is."""
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
