"""Scans a model repository: which of its versions are served from now on.

An unchanged version is kept, good or rejected. A new or changed one is verified while the old one serves, and replaces
it only if it is good, so a directory that is still being copied is rejected until it is complete. Each good version is
published at once. If one takes long, those of other names are verified at the same time; a lower one of its name waits.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

from lengthwise.batching.plan import BatchLimits
from lengthwise.errors import ConfigurationError, ModelError, NotJudged
from lengthwise.repository import aliases, folder, judging, loading
from lengthwise.repository.contents import DirectoryState, Repository
from lengthwise.repository.judging import Judge
from lengthwise.repository.loading import directory_state, graph_bytes
from lengthwise.repository.model import LoadedModel
from lengthwise.repository.scan_state import ScanState
from lengthwise.repository.stopping import Stopped, Stopping
from lengthwise.runtime.manifest import MOST_BYTES, Manifest
from lengthwise.runtime.provider import CPU_DEVICE, Device
from lengthwise.versions import Key, Policy

log = logging.getLogger("lengthwise.scan")

R = TypeVar("R")

MEASURING_SECONDS: Final = 1.0  # to measure the costs of a model, while no model is served
MEASURING_BESIDE_SECONDS: Final = 0.3  # while models are served, whose processor time it takes; serving learns the rest
SLOW_SECONDS: Final = 3.0  # how long the next versions wait for one that is being verified
MOST_AT_ONCE: Final = 4  # versions that are verified at the same time
NAMED_AND_ABSENT: Final = "--versions names it, and the repository does not have it"


_Result: TypeAlias = tuple[LoadedModel | None, str | None, bool]  # a model, why not the directory's, if final


@dataclass(slots=True)
class Scan:
    """One scan of a model repository. Any error in one directory rejects that version only."""

    folder: Path  # with `NAME/VERSION/` directories
    limits: BatchLimits
    _: KW_ONLY
    policy: Policy
    max_model_bytes: int | None = None  # of graphs served at once, without those being replaced
    before: Repository = field(default_factory=Repository)  # the result of the last scan
    again: str | None = None  # a name whose rejected versions are verified even if unchanged
    devices: Sequence[Device] = (CPU_DEVICE,)
    judge: Judge = judging.judge
    most_bytes: int = MOST_BYTES  # of the files of one version
    stopping: Stopping = field(default_factory=Stopping)
    publish: Callable[[Repository], None] = lambda _: None  # called with what may be served already
    kept: Collection[Key] = ()  # served beside the highest of their names
    _directories: dict[Key, Path] = field(init=False)
    _state: ScanState = field(init=False)
    _running: dict[Key, tuple[DirectoryState, Future[_Result]]] = field(init=False, default_factory=dict)

    def run(self) -> Repository:
        """Scans the folder; raises ConfigurationError if it cannot be read, or Stopped."""
        content = folder.read(self.folder)
        self._directories = content.directories
        # Of an empty folder `why_nothing` is the advice.
        _log_ignored(self.before, content.passed, content.misplaced if content.directories else {})
        self._prepare(content.passed)
        if self._state.first:
            self.publish(self._state.repository())
        while self._state.left:
            self.stopping.check()
            progress = self._state.progress
            self._step()
            if self._state.progress != progress:
                self.publish(self._state.repository())
        nothing = None if self._directories else folder.why_nothing(self.folder)
        if nothing is not None and nothing != self.before.reason:
            log.error("nothing is served of %s: %s", self.folder, nothing)
        found = self._state.at_the_end(nothing)
        return replace(found, passed=frozenset(content.passed), misplaced=frozenset(content.misplaced))

    def _prepare(self, passed: Collection[str]) -> None:
        """Says which versions are wanted; of a name whose folder cannot be read now, the served versions stay."""
        before = self.before
        known = {*(model.key for model in before), *(refusal.key for refusal in before.refused)}
        self._directories |= {key: self.folder / key.name / str(key.version) for key in known if key.name in passed}
        wanted = self.policy.candidates(key for key in self._directories if key.name not in before.unloaded)
        aliases_of = {
            name: _aliases(self.folder, name, before) for name in sorted({key.name for key in self._directories})
        }
        named = {Key(name, version) for name, pointed in aliases_of.items() for version in pointed.values()}
        self._state = ScanState(before, self.policy, wanted, frozenset({*self.kept, *named}), aliases_of)
        for absent in self.policy.absent(self._directories):
            if absent.name not in before.unloaded:
                self._state.refuse(absent, NAMED_AND_ABSENT)

    def _step(self) -> None:
        """Begins with the next version, or waits for one that is being verified; then settles those that are done."""
        key = self._state.next({key.name for key in self._running})
        if key is not None and len(self._running) < MOST_AT_ONCE:
            self._begin(key)
        elif self._running:
            self._wait_for_one()
        self._collect()

    def _begin(self, key: Key) -> None:
        """Settles a version at once if it is unchanged or does not fit, and else starts to verify it."""
        state, directory = self._state, self._directories[key]
        current, runs, reason = directory_state(directory), state.running.get(key), state.known.get(key)
        if self.before.states.get(key) == current and not (reason is not None and key.name == self.again):
            state.settle(key, runs, reason, current)
            return
        held = sum(graph_bytes(other) for other, _ in self._running.values()) + state.bytes_beside(key, self._running)
        reason = _no_room(graph_bytes(current), held, self.max_model_bytes)
        if reason is None:
            future = _in_a_thread(lambda: _judged(key, directory, runs, self._load, self.most_bytes))
            self._running[key] = current, future
            wait([future], SLOW_SECONDS)
        elif self._running:  # there may be room when one of these is finished
            self._wait_for_one()
        else:  # without a state, so the next scan tries again
            state.settle(key, runs, reason, None)

    def _collect(self) -> None:
        for done in [done for done, (_, future) in self._running.items() if future.done()]:
            current, future = self._running.pop(done)
            model, reason, final = future.result()
            self._state.settle(done, model, reason, current if final else None)

    def _wait_for_one(self) -> None:
        wait([future for _, future in self._running.values()], return_when=FIRST_COMPLETED)

    def _load(self, directory: Path) -> LoadedModel:
        return loading.load(
            directory,
            self.limits,
            budget_seconds=MEASURING_BESIDE_SECONDS if self.before.models else MEASURING_SECONDS,
            devices=self.devices,
            judge=self.judge,
            most_bytes=self.most_bytes,
            stopping=self.stopping,
        )


def _log_ignored(before: Repository, passed: Mapping[str, str], misplaced: Mapping[str, str]) -> None:
    """Logs the folders that are ignored, where the last scan did not find them."""
    for name, why in sorted(passed.items()):
        if name not in before.passed:
            log.error("the folder %s of the model repository is ignored: %s", ascii(name), why)
    for name, why in sorted(misplaced.items()):
        if name not in before.misplaced:
            log.warning("%s", why)


def _aliases(folder: Path, name: str, before: Repository) -> aliases.Aliases:
    """The aliases of a name; as they were before if the file cannot be read, so that no request changes its version."""
    try:
        return aliases.read(folder / name)
    except ConfigurationError as error:
        log.error("the aliases of %s stay as they were: %s", name, error)
        return before.aliases.get(name, {})


def _no_room(needed: int, held: int, most: int | None) -> str | None:
    if most is None or held + needed <= most:
        return None
    return f"its graph has {needed} bytes, and {held} of the {most} that --max-model-bytes allows are taken"


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
    key: Key, directory: Path, runs: LoadedModel | None, load: Callable[[Path], LoadedModel], most_bytes: int
) -> _Result:
    """The model of a directory; or the currently served one, and why that of the directory is not served."""
    try:
        if runs is not None:
            manifest = Manifest.read(directory)
            if manifest == runs.manifest:  # unchanged, if the digests of its files are right
                manifest.checked(directory, most_bytes=most_bytes)
                return runs, None, True
        return load(directory), None, True
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
