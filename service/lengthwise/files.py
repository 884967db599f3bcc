"""Reads files that other programs may be writing, and writes files that other programs may be reading; counts cores.

Only regular files within a size limit are read, so that reading never blocks and never fills the memory: a pipe may
have no writer, a device no end. Any other file raises `OSError`, as a missing file does.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path, PurePath

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module by its type

log = logging.getLogger("lengthwise.files")


def try_to_write(folder: Path) -> None:
    """Writes a file into a folder, or into the nearest parent that exists, and removes it again.

    Raises:
        OSError: The folder cannot be written, or made.
    """  # noqa: DOC502 - the operating system raises it
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    tempfile.TemporaryFile(dir=existing).close()


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Opens a regular file for reading in the block. A folder, a pipe or a device raises OSError."""
    _check_regular(os.stat(path), path)  # before it is opened, because opening a device may have an effect
    # Opening does not block, even if the file was replaced by a pipe since then.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags), "rb") as file:
        _check_regular(os.fstat(file.fileno()), path)
        yield file


def read(path: Path, most_bytes: int) -> bytes:
    """The content of a regular file of at most `most_bytes` bytes.

    Raises:
        OSError: It grows while it is read. One that is too large, or cannot be read, is an OSError, too.
    """
    with opened(path) as file:
        size = _check_size(file, path, most_bytes)
        content = file.read(size + 1)
    if len(content) > size:
        raise OSError(errno.EBUSY, "it grows while it is read", str(path))
    return content


def read_if_any(path: Path, most_bytes: int) -> bytes | None:
    """The content of a regular file; None if it is missing, or cannot be read (which is logged as a warning)."""
    try:
        return read(path, most_bytes)
    except FileNotFoundError:
        return None
    except (OSError, MemoryError) as error:
        log.warning("%s is ignored: %.200r", path, error)
        return None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the name of a file to an OSError of the block that has no name, such as that of a full disk.

    Raises:
        OSError: The block raised it; one without a file's name gets that of `path`.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write(path: Path, content: bytes | str) -> None:
    """Writes a file, text as UTF-8; an OSError has the file's name, also if the disk is full."""
    with naming(path):
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def replace(path: Path, content: bytes) -> None:
    """Replaces the content of a file in one step, by a rename.

    A reader never sees a part of the new content, and after a crash, the disk has the old content or the new one.
    """
    # The name cannot be foreseen: somebody could have put a link there. Process ids would repeat between containers.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with naming(path), temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def lock(descriptor: int, *, wait: bool) -> None:
    """Locks a file or folder for this process, until its descriptor is closed. Does nothing on Windows.

    If another process has the lock, waits for it with `wait`; else raises OSError, as where there are no locks.
    """
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def claim(descriptor: int, *, wait: bool = False) -> bool:
    """Locks a file or folder as `lock` does; returns False if another process has the lock, and `wait` is not set.

    Where the file system or Windows has no such locks, no process has one.
    """
    with suppress(OSError):
        try:
            lock(descriptor, wait=wait)
        except BlockingIOError:
            return False
    return True


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Locks a folder, and holds the lock while the block runs; yields False if another process has it.

    With `wait`, waits for it. Where the file system or Windows has no such locks, the block runs without.
    """
    descriptor, is_free = None, True
    with suppress(OSError):  # Windows opens no folder
        descriptor = os.open(folder, os.O_RDONLY)
        is_free = claim(descriptor, wait=wait)
    try:
        yield is_free
    finally:
        if descriptor is not None:
            os.close(descriptor)


def digest_of(content: bytes) -> str:
    """The SHA-256 of bytes, as `sha256:<hex>`."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def digest(path: Path, most_bytes: int | None = None) -> str:
    """The SHA-256 of a regular file, as `sha256:<hex>`; OSError if it has more than `most_bytes` bytes."""
    with opened(path) as file:
        _check_size(file, path, most_bytes)
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _check_regular(status: os.stat_result, path: Path) -> None:
    """Raises OSError unless the status is that of a regular file.

    Raises:
        OSError: It is that of a folder, a pipe, a device or a socket.
    """
    if not stat.S_ISREG(status.st_mode):
        code = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
        raise OSError(code, "it is not a plain file", str(path))


def _check_size(file: io.BufferedReader, path: Path, most_bytes: int | None) -> int:
    """The size of an open file in bytes.

    Raises:
        OSError: It has more than `most_bytes`.
    """
    size = os.fstat(file.fileno()).st_size
    if most_bytes is not None and size > most_bytes:
        raise OSError(errno.EFBIG, f"it has {size} bytes, and at most {most_bytes} are read", str(path))
    return size


def bundled_models() -> Path:
    """The model repository that ships with the package."""
    return Path(str(resources.files("lengthwise") / "models"))


def is_bundled(folder: Path) -> bool:
    """Whether a folder is the model repository that ships with the package."""
    return folder.resolve() == bundled_models().resolve()


OWN_CGROUPS = Path("/proc/self/cgroup")
_sharing = 1  # processes that serve together, among which cores are divided


def share_among(processes: int) -> None:
    """Divides the cores among processes that serve together: from now on, `available_cores` gives the share of each."""
    global _sharing
    _sharing = processes


def available_cores() -> int:
    """How many cores this process may use: its share of `shared_cores`, at least 1."""
    return max(1, shared_cores() // _sharing)


def shared_cores() -> int:
    """How many cores all processes that serve together may use: by CPU affinity, or by the cgroup's quota if less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota(Path("/sys/fs/cgroup"))
    return max(1, min(cores, int(quota) if quota else cores))


def cgroup_quota(root: Path) -> float | None:
    """The smallest CPU quota, in cores, of the cgroups that this process is in, v2 or v1; None if none has a quota.

    `root` is the mount of the cgroup file system.
    """
    # v2 has quota and period in one file, v1 in two.
    quotas = list[float]()
    for controller, *names in (("", "cpu.max"), ("cpu", "cpu.cfs_quota_us", "cpu.cfs_period_us")):
        for folder in own_cgroups(root, controller):
            with suppress(OSError, ValueError, ZeroDivisionError):  # cgroup v2 writes "max" for no quota
                quota, period = (float(number) for name in names for number in (folder / name).read_text().split())
                if quota > 0:  # v1 writes -1 for no quota
                    quotas.append(quota / period)
    return min(quotas, default=None)


def own_cgroups(root: Path, controller: str) -> list[Path]:
    """The folders of this process's cgroup and of those that contain it, up to the mount: the limits of all hold.

    A service of systemd, or a container without a namespace for cgroups, has one below the mount. `controller` is one
    of cgroup v1, or empty for v2.
    """
    cgroup = PurePath()
    with suppress(OSError, ValueError):
        for line in OWN_CGROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                cgroup = PurePath(path.lstrip("/"))
    return [root / controller / folder for folder in (cgroup, *cgroup.parents)]
