"""Copies of the models at addresses, each of which is fetched whole, checked, and then never changed.

```
CACHE/models/addresses/HASH/copy.json      what an address was at the last fetch; the folder is the lock of that address
CACHE/models/repositories/DIGEST/NAME/VERSION -> ../../../versions/DIGEST
CACHE/models/versions/DIGEST/manifest.json, model.onnx, ...
```

The digest of a version is that of its manifest, which has the digests of its files. So a version that stays as it was
in the store stays as it is here: it is not verified and measured again, and is stored once for all addresses. The
digest of a repository is that of its versions and aliases, and a record has its own: what was edited in the cache is
not used. Who may write to it can still make another record; it is as safe as a folder of models. What is fetched is
written aside and moved in by a rename: any number of processes may share a cache.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Protocol

import orjson

from lengthwise import files
from lengthwise.addresses import Address, parse
from lengthwise.errors import ConfigurationError, ModelError, StoreUnreachable, VerificationError
from lengthwise.stores import layout, store_of
from lengthwise.wrong_values import first_of

log = logging.getLogger("lengthwise.stores")

ALIASES_FILE: Final = "aliases.json"
_MOST_ALIAS_BYTES: Final = 2**16
_MOST_COPY_BYTES: Final = 2**24
_STAGE: Final = "stage-"


class StoreContent(Protocol):
    """What is at an address now, before it is downloaded."""

    state: str | None
    """A text that changes with the content, such as a commit; None if the store has no such mark."""

    def download(self, folder: Path) -> str | None:
        """Writes the files into a folder; returns the SHA-256 of an archive in hexadecimal digits, None for files."""


@dataclass(frozen=True, slots=True)
class Copy:
    """The record of the last fetch of an address, as in `copy.json`."""

    address: str
    state: str | None  # `StoreContent.state` at the fetch
    digest: str  # of the model repository, the name of its folder in the cache
    day: str  # of the fetch, as in `2026-11-23`


def fetch(text: str, cache: Path, *, offline: bool = False, wait: bool = True) -> Path:
    """Makes sure that the cache has the model repository at an address; returns its folder in the cache.

    - With `offline`, or if the address has a digest or a commit, an intact copy in the cache is used unasked.
    - Otherwise the store is asked, and what has changed since the last fetch is fetched.
    - If the store gives no answer, the copy of the last fetch is used, with a warning.
    - Without `wait`, another fetch of this address is not waited for, as it hangs.

    Raises:
        ConfigurationError: The address is wrong, nothing is there or may be fetched, or the cache cannot be written.
        StoreUnreachable: The store gives no answer, and there is no copy.
        ModelError: What was fetched has another digest than its manifest or the address says.
    """  # noqa: DOC502 - what it calls raises the last one
    # The copy of the last fetch, if it may be used without asking the store
    address = parse(text)
    models = cache / "models"
    folder = models / "addresses" / hashlib.sha256(text.encode()).hexdigest()[:32]
    copy = _intact_copy(address, folder, models)
    if copy is not None and (offline or address.is_fixed):
        return models / "repositories" / copy.digest
    if offline:
        raise ConfigurationError(f"{address} is not in the cache {cache}, and offline it cannot be fetched")
    # Ask the store, one process at a time for an address
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with files.locked(folder, wait=wait):
            for abandoned_stage in folder.glob(f"{_STAGE}*"):  # of a process that was killed
                shutil.rmtree(abandoned_stage, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=_STAGE, dir=folder, ignore_cleanup_errors=True) as stage:
                # The copy is read again: another process may have fetched while this one waited for the lock.
                copy = _fetch_into_cache(address, _intact_copy(address, folder, models), Path(stage), models)
            record = orjson.dumps(asdict(copy))
            files.replace(folder / "copy.json", orjson.dumps([record.decode(), files.digest_of(record)]))
    except StoreUnreachable as error:
        if copy is None:  # the one that was read first
            raise
        log.warning("%s; the copy of %s is used", error, copy.day)
    except OSError as error:
        raise ConfigurationError(
            f"{address} cannot be stored in the cache {cache}: {error.strerror or error}"
        ) from None
    return models / "repositories" / copy.digest


def _intact_copy(address: Address, folder: Path, models: Path) -> Copy | None:
    """Reads the record of the last fetch of an address.

    Returns None if there is none; also, with a warning, if something in the cache has changed since: the record, a file
    of a model, or an alias.

    Args:
        address: The address.
        folder: The folder of the address in the cache.
        models: The folder `models` of the cache.
    """
    content = files.read_if_any(folder / "copy.json", _MOST_COPY_BYTES)
    if content is None:
        return None
    with suppress(TypeError, ValueError, AttributeError):
        record, digest = orjson.loads(content)
        copy = Copy(**orjson.loads(record))
        is_own = digest == files.digest_of(record.encode()) and copy.address == str(address)
        if is_own and _is_intact(models / "repositories" / copy.digest, lambda folder: _digest_of(_parts(folder))):
            return copy
    log.warning("the copy in %s has changed, and is not used", folder)
    return None


def _parts(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Checks the versions in a folder, and reads what the digest of a repository covers.

    Returns:
        The digests of the versions by `NAME/VERSION`, and the content of the files of aliases by the model's name.

    Raises:
        ModelError: A file is not that of its manifest.
    """  # noqa: DOC502 - what it calls raises it
    directories = layout.versions(folder)
    aliases = {
        key.name: text.decode(errors="replace")
        for key, directory in directories.items()
        if directory != folder and (text := files.read_if_any(directory.parent / ALIASES_FILE, _MOST_ALIAS_BYTES))
    }
    return {str(key): layout.check(directory) for key, directory in directories.items()}, aliases


def _digest_of(parts: tuple[Mapping[str, str], ...]) -> str:
    """The SHA-256 of a model repository, in hexadecimal digits: that of its `_parts` as JSON."""
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _is_intact(folder: Path, digest: Callable[[Path], str]) -> bool:
    """Whether a folder is in the cache, and still has the digest that is its name; `digest` computes it, or raises."""
    with suppress(ModelError, OSError):
        return digest(folder) == folder.name
    return False


def _fetch_into_cache(address: Address, earlier_copy: Copy | None, stage: Path, models: Path) -> Copy:
    """Fetches what is at an address, checks it, and moves it into the cache; returns the record of this fetch.

    Nothing is fetched, and the record of the last fetch returned, if the address has a digest or a commit, or if the
    store shows that nothing has changed since.

    Args:
        address: The address.
        earlier_copy: The record of the last fetch; None if there is none.
        stage: An empty folder, in which the fetch works.
        models: The folder `models` of the cache.

    Raises:
        ConfigurationError: Nothing is there, it holds no model, or the library for it is not installed.
        VerificationError: It has another digest than the address says.
    """
    start = time.monotonic()
    if earlier_copy is not None and address.is_fixed:  # another process has fetched it meanwhile
        return earlier_copy
    source: StoreContent = store_of(address).open_source(address)
    if earlier_copy is not None and earlier_copy.state is not None and earlier_copy.state == source.state:
        return earlier_copy
    # Download into `content`, and check
    content, repository = stage / "content", stage / "repository"
    content.mkdir()
    archive_digest = source.download(content)  # None if it is no archive
    if not (directories := layout.versions(content)):
        raise ConfigurationError(
            f"{address} holds no model: neither folders NAME/VERSION with a manifest.json, nor a manifest.json"
        )
    versions, aliases = _parts(content)
    digest = _digest_of((versions, aliases))
    if address.digest not in ("", archive_digest, digest):
        raise VerificationError(
            f"{address} has the digest sha256:{archive_digest or digest}, which is not the expected one"
        )
    # Move the versions, and make a repository of links to them
    for key, directory in directories.items():
        version = models / "versions" / versions[str(key)]
        _move_in(directory, version, layout.check)
        (repository / key.name).mkdir(parents=True, exist_ok=True)
        (repository / str(key)).symlink_to(Path("..", "..", "..", "versions", version.name))
    for name, content_of_file in aliases.items():
        files.write(repository / name / ALIASES_FILE, content_of_file)
    _move_in(repository, models / "repositories" / digest, lambda folder: _digest_of(_parts(folder)))
    log.info(
        "fetched %s in %.1f s: %s; its digest is sha256:%s",
        address,
        time.monotonic() - start,
        first_of([*versions]),
        archive_digest or digest,
    )
    return Copy(str(address), source.state, digest, time.strftime("%Y-%m-%d"))


def _move_in(folder: Path, target: Path, digest: Callable[[Path], str]) -> None:
    """Moves a fetched folder into the cache, to `target`, by a rename, unless an intact folder is there already.

    A damaged folder there is moved away first. `digest` computes the digest of a folder, which is the name of `target`.

    Raises:
        OSError: The cache cannot be written.
    """
    if _is_intact(target, digest):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(target):
        os.rename(target, folder.with_name(f"damaged-{target.name}"))  # it is removed with the staging folder
    try:
        os.rename(folder, target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another process has moved the same there
            raise
