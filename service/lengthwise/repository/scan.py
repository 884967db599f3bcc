"""Scans a model repository: which of its versions are served from now on.

A scan continues from the last one. A version whose directory has not changed is kept: a good one with its session, a
rejected one without verifying it again. A new or changed version is loaded and verified while the old one serves. If it
is good, it replaces the old one; if not, the old one stays. So a directory that is still being copied is rejected until
it is complete, and a bad version never replaces a good one.

Each good version is published at once, while the scan continues. Versions are verified one after another; if one takes
long, versions of other names are verified at the same time. A lower version of the same name waits, because it may not
be needed.
"""

from __future__ import annotations

import logging
import os
import shlex
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from lengthwise.batching.plan import BatchLimits
from lengthwise.errors import ConfigurationError, ModelError, NotJudged
from lengthwise.repository import aliases, judging, loading
from lengthwise.repository.contents import DirectoryState, Repository
from lengthwise.repository.judging import Judge
from lengthwise.repository.loading import directory_state, graph_bytes
from lengthwise.repository.model import LoadedModel
from lengthwise.repository.scan_state import ScanState
from lengthwise.repository.stopping import Stopped, Stopping
from lengthwise.runtime.manifest import GRAPH_FILE, MANIFEST_FILE, MOST_BYTES, Manifest, is_name
from lengthwise.runtime.provider import CPU_DEVICE, Device
from lengthwise.versions import Key, Policy, is_version

log = logging.getLogger("lengthwise.scan")

R = TypeVar("R")

MEASURING_SECONDS: Final = 1.0
"""Time to measure the costs of a model, while no model is served."""
MEASURING_BESIDE_SECONDS: Final = 0.3
"""The same while models are served, because measuring takes their processor time; serving learns the rest."""
SLOW_SECONDS: Final = 3.0
"""How long the next versions wait for one that is being verified, before they are verified at the same time."""
MOST_AT_ONCE: Final = 4
"""Most versions that are verified at the same time."""
NAMED_AND_ABSENT: Final = "--versions names it, and the repository does not have it"


def scan(
    folder: Path,
    limits: BatchLimits,
    *,
    policy: Policy,
    max_model_bytes: int | None = None,
    before: Repository | None = None,
    again: str | None = None,
    devices: Sequence[Device] = (CPU_DEVICE,),
    judge: Judge = judging.judge,
    most_bytes: int = MOST_BYTES,
    stopping: Stopping | None = None,
    publish: Callable[[Repository], None] = lambda _: None,
    kept: Collection[Key] = (),
) -> Repository:
    """Scans a folder. Any error in one directory rejects that version only.

    Args:
        folder: Has `NAME/VERSION/` directories.
        limits: The limits of one batch; only such batches are measured.
        policy: Selects the versions.
        max_model_bytes: Most bytes of graphs served at once; None for no limit. Served versions stay served. While a
            version is replaced, both are in memory.
        before: The result of the last scan.
        again: A name whose rejected versions are verified again even if they are unchanged.
        devices: The devices that models run on.
        judge: Verifies new versions.
        most_bytes: Most bytes of the files of one version.
        stopping: Ends the scan early; checked before each version and while one is verified.
        publish: Called with what may be served already, while the scan continues. If nothing was served before, it is
            called after each version, else after each new good one.
        kept: Versions to serve beside the highest of their names, as those that have an alias.

    Returns:
        The result.

    Raises:
        ConfigurationError: The folder cannot be read.
        Stopped: The scan was stopped.
    """
    before, stopping = before or Repository(), stopping or Stopping()
    directories, passed, misplaced = _versions(folder)
    _log_ignored(before, passed, misplaced if directories else {})  # of an empty one `_why_nothing` is the advice
    # If the folder of a name cannot be read at the moment, its served versions stay.
    directories |= {key: folder / key.name / str(key.version) for key in _keys(before) if key.name in passed}
    wanted = policy.candidates(key for key in directories if key.name not in before.unloaded)
    aliases_of = {name: _aliases(folder, name, before) for name in sorted({key.name for key in directories})}
    named = {Key(name, version) for name, versions in aliases_of.items() for version in versions.values()}
    state = ScanState(before, policy, wanted, frozenset({*kept, *named}), aliases_of)
    for absent in policy.absent(directories):
        if absent.name not in before.unloaded:
            state.refuse(absent, NAMED_AND_ABSENT)
    budget_seconds = MEASURING_BESIDE_SECONDS if before.models else MEASURING_SECONDS

    def load(key: Key) -> LoadedModel:
        return loading.load(
            directories[key],
            limits,
            budget_seconds=budget_seconds,
            devices=devices,
            judge=judge,
            most_bytes=most_bytes,
            stopping=stopping,
        )

    verifying = _Verifying(state, directories, load, again, max_model_bytes, most_bytes)
    if state.first:
        publish(state.repository())
    while state.left:
        stopping.check()
        before_step = state.progress
        verifying.step()
        if state.progress != before_step:
            publish(state.repository())
    nothing = None if directories else _why_nothing(folder)
    if nothing is not None and nothing != before.reason:
        log.error("nothing is served of %s: %s", folder, nothing)
    return replace(state.at_the_end(nothing), passed=frozenset(passed), misplaced=frozenset(misplaced))


def _log_ignored(before: Repository, passed: Mapping[str, str], misplaced: Mapping[str, str]) -> None:
    """Logs the folders that are ignored, where the last scan did not find them."""
    for name, why in sorted(passed.items()):
        if name not in before.passed:
            log.error("the folder %s of the model repository is ignored: %s", ascii(name), why)
    for name, why in sorted(misplaced.items()):
        if name not in before.misplaced:
            log.warning("%s", why)


@dataclass(slots=True)
class _Verifying:
    """Verifies the versions of a scan, several at the same time.

    Attributes:
        state: The versions that are left; gets the result of each.
        directories: The directory of each version.
        load: Loads a version.
        again: See `scan`.
        max_model_bytes: See `scan`.
        most_bytes: See `scan`.
    """

    state: ScanState
    directories: Mapping[Key, Path]
    load: Callable[[Key], LoadedModel]
    again: str | None
    max_model_bytes: int | None
    most_bytes: int
    _running: dict[Key, tuple[DirectoryState, Future[_Result]]] = field(default_factory=dict)

    def step(self) -> None:
        """Begins with the next version, or waits for one that is being verified; then settles those that are done."""
        key = self.state.next({key.name for key in self._running})
        if key is not None and len(self._running) < MOST_AT_ONCE:
            self._begin(key)
        elif self._running:
            self._wait_for_one()
        for done in [done for done, (_, future) in self._running.items() if future.done()]:
            current, future = self._running.pop(done)
            model, reason, final = future.result()
            self.state.settle(done, model, reason, current if final else None)

    def _begin(self, key: Key) -> None:
        """Settles a version at once if it is unchanged or does not fit, and else starts to verify it."""
        state, directory = self.state, self.directories[key]
        current, runs, reason = directory_state(directory), state.running.get(key), state.known.get(key)
        if state.before.states.get(key) == current and not (reason is not None and key.name == self.again):
            state.settle(key, runs, reason, current)
            return
        held = sum(graph_bytes(other) for other, _ in self._running.values()) + state.bytes_beside(key, self._running)
        reason = _no_room(graph_bytes(current), held, self.max_model_bytes)
        if reason is None:
            future = _in_a_thread(lambda: _judged(key, directory, runs, self.load, self.most_bytes))
            self._running[key] = current, future
            wait([future], SLOW_SECONDS)
        elif self._running:  # there may be room when one of these is finished
            self._wait_for_one()
        else:  # without a state, so the next scan tries again
            state.settle(key, runs, reason, None)

    def _wait_for_one(self) -> None:
        wait([future for _, future in self._running.values()], return_when=FIRST_COMPLETED)


def _aliases(folder: Path, name: str, before: Repository) -> aliases.Aliases:
    """The aliases of a name; as they were before if the file cannot be read, so that no request changes its version."""
    try:
        return aliases.read(folder / name)
    except ConfigurationError as error:
        log.error("the aliases of %s stay as they were: %s", name, error)
        return before.aliases.get(name, {})


def check_readable(folder: Path) -> None:
    """Checks that a folder can be read, and that it is no model itself.

    Raises:
        ConfigurationError: It cannot be read; or it is a version or one model, and says how to serve that.
    """
    if _versions(folder).directories:
        return
    inside = folder.resolve()
    held = paths_in(folder)
    if is_version(inside.name) and _files_of_a_version(held):
        repository, only = inside.parent.parent, f" --versions {inside.parent.name}/{inside.name}"
    elif any(is_version(path.name) and _is_folder(path) for path in held):
        repository, only = inside.parent, ""
    else:
        return
    shown = os.path.relpath(repository) if not folder.is_absolute() else str(repository)
    raise ConfigurationError(
        f"{folder} is {'one version of a model' if only else 'one model'}, and a folder of models (NAME/VERSION) is "
        f"served: lengthwise serve {shlex.quote(shown)}{only}"
    )


def versions(folder: Path) -> dict[Key, Path]:
    """Every `NAME/VERSION` directory whose VERSION is a positive integer.

    Raises:
        ConfigurationError: The folder cannot be read.
    """
    return _versions(folder).directories


class _FolderContent(NamedTuple):
    """What a model repository holds.

    Attributes:
        directories: Every version.
        passed: Each name whose folder cannot be read or is not valid for a model, with the reason.
        misplaced: By name, the warning for a folder that holds the files of a version themselves, one level too high;
            "" for the repository.
    """

    directories: dict[Key, Path]
    passed: dict[str, str]
    misplaced: dict[str, str]


def _versions(folder: Path) -> _FolderContent:
    try:
        names = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ConfigurationError(f"the model repository {folder} cannot be read: {error.strerror}") from error
    directories: dict[Key, Path] = {}
    passed: dict[str, str] = {}
    misplaced: dict[str, str] = {}
    for name in names:
        try:
            if not _is_folder(name):
                continue
            held = paths_in(name)
            inside = {int(path.name): path for path in held if is_version(path.name) and _is_folder(path)}
        except OSError as error:
            passed[name.name] = f"it cannot be read: {error.strerror}"
            continue
        if inside and not is_name(name.name):
            passed[name.name] = "no model can have that name"
        else:
            directories |= {Key(name.name, version): path for version, path in inside.items()}
            files = _files_of_a_version(held)
            if files:
                version = max(inside, default=0) + 1
                meant = f"NAME/{name.name}" if is_version(name.name) else f"{name.name}/{version}"
                misplaced[name.name] = (
                    f"{files} in the folder {name.name!a} of the model repository: ignored, because the files of a "
                    f"version belong into a folder of their own; move them to {meant!a}"
                )
    files = _files_of_a_version(names)
    if files:
        misplaced[""] = (
            f"{files} in the model repository itself: ignored, because the files of a version belong into a folder of "
            "their own; move them to NAME/VERSION in it"
        )
    return _FolderContent(directories, passed, misplaced)


def _files_of_a_version(held: Iterable[Path]) -> str:
    """The names of files that only a version has, as text; empty if there are none."""
    return " and ".join(sorted({path.name for path in held} & {MANIFEST_FILE, GRAPH_FILE}))


def _keys(before: Repository) -> Iterable[Key]:
    """The versions that were served or rejected."""
    return {*(model.key for model in before), *(refusal.key for refusal in before.refused)}


def _why_nothing(folder: Path) -> str:
    """Explains why a folder has no version, and which folder was probably meant. Clients see it, so it has no path."""
    inside = paths_in(folder)
    if any(path.name in (MANIFEST_FILE, GRAPH_FILE) for path in inside):
        hint = "it looks like one version of a model: serve the folder two levels above it"
    elif any(is_version(path.name) and _is_folder(path) for path in inside):
        hint = "it looks like one model with its versions: serve the folder above it"
    else:
        hint = "VERSION is a whole number from 1, as in vowels/1; 'lengthwise export' makes such a folder"
    return f"the model repository holds no NAME/VERSION folder; {hint}"


def _is_folder(path: Path) -> bool:
    """Whether it is a folder or a link to one; true if that is unknown, so that reading it later gives the reason."""
    try:
        return path.is_dir()
    except OSError:
        return True


def paths_in(folder: Path) -> list[Path]:
    """The content of a folder; empty if it was just removed."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _no_room(needed: int, held: int, most: int | None) -> str | None:
    """Why a graph does not fit beside the others; None if it does."""
    if most is None or held + needed <= most:
        return None
    return f"its graph has {needed} bytes, and {held} of the {most} that --max-model-bytes allows are taken"


_Result = tuple[LoadedModel | None, str | None, bool]
"""A model, why it is not the one in its directory, and whether that is final until the directory changes."""


def _in_a_thread(function: Callable[[], R]) -> Future[R]:
    """Runs a function in a daemon thread, for which the end of the process does not wait."""
    done: Future[R] = Future()

    def run() -> None:
        try:
            done.set_result(function())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="judging", daemon=True).start()
    return done


def _judged(
    key: Key, directory: Path, runs: LoadedModel | None, load: Callable[[Key], LoadedModel], most_bytes: int
) -> _Result:
    """The model of a directory; or the currently served one, and why that of the directory is not served."""
    try:
        if runs is not None:
            manifest = Manifest.read(directory)
            if manifest == runs.manifest:  # unchanged, if the digests of its files are right
                manifest.checked(directory, most_bytes=most_bytes)
                return runs, None, True
        return load(key), None, True
    except NotJudged as error:
        return runs, str(error), False
    except ModelError as error:
        return runs, str(error), True
    except Stopped:
        raise
    except MemoryError:
        return runs, f"{key}: there is not enough memory to read it", False
    except Exception as error:  # an error in one directory must not affect other versions
        log.exception("an unexpected error while %s was loaded", key)
        return runs, f"{key}: an unexpected error while it was loaded: {type(error).__name__}: {str(error)[:500]}", True
