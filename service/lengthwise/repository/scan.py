"""Scans a model repository: which of its versions are served from now on.

An unchanged version is kept, good or refused. A new or changed one is verified while the old one serves, and replaces
it only if it is good, so a directory that is still being copied is refused until it is complete. Each good version is
published at once. If one takes long, those of other names are verified at the same time; a lower one of its name waits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

from lengthwise.batching.plan import BatchLimits
from lengthwise.errors import ConfigurationError, ModelError, NotVerified
from lengthwise.repository import aliases, folder, loading, verifier
from lengthwise.repository.aliases import Aliases
from lengthwise.repository.contents import DirectoryState, Refusal, Repository
from lengthwise.repository.folder import FolderContent
from lengthwise.repository.loading import LoadedModel, directory_state, graph_bytes
from lengthwise.repository.stopping import Stopped, Stopping, in_daemon_thread
from lengthwise.repository.verifier import Verifier
from lengthwise.runtime.manifest import MOST_BYTES, Manifest
from lengthwise.runtime.provider import CPU_DEVICE, Device
from lengthwise.versions import Key, Policy

log = logging.getLogger("lengthwise.scan")

MEASURING_SECONDS: Final = 1.0  # to measure the costs of a model, while no model is served
MEASURING_BESIDE_SECONDS: Final = 0.3  # while models are served, whose processor time it takes; serving learns the rest
SLOW_SECONDS: Final = 3.0  # how long the next versions wait for one that is being verified
MOST_AT_ONCE: Final = 4  # versions that are verified at the same time
NAMED_AND_ABSENT: Final = "--versions names it, and the repository does not have it"


_Result: TypeAlias = tuple[LoadedModel | None, str | None, bool]  # a model, why not the directory's, if final


@dataclass(slots=True)
class Scan:
    """One scan of a model repository. Any error in one directory refuses that version only."""

    folder: Path  # with `NAME/VERSION/` directories
    limits: BatchLimits
    _: KW_ONLY
    policy: Policy
    max_model_bytes: int | None = None  # of graphs served at once, without those being replaced
    before: Repository = field(default_factory=Repository)  # the result of the last scan
    retry_name: str | None = None  # a name whose refused versions are verified even if unchanged
    devices: Sequence[Device] = (CPU_DEVICE,)
    verify: Verifier = verifier.verify
    most_bytes: int = MOST_BYTES  # of the files of one version
    stopping: Stopping = field(default_factory=Stopping)
    publish: Callable[[Repository], object] = lambda _: None  # called with what may be served already
    shadows: Collection[Key] = ()  # served beside the highest other version of their names
    _directories: dict[Key, Path] = field(init=False)
    _state: ScanState = field(init=False)
    _running: dict[Key, tuple[DirectoryState, Future[_Result]]] = field(init=False, default_factory=dict)

    def run(self) -> Repository:
        """Scans the folder; raises ConfigurationError if it cannot be read, or Stopped."""
        content = folder.read(self.folder)
        for name, why in sorted(content.ignored.items()):
            if name not in self.before.ignored:
                log.warning("%s", why)
        self._prepare(content)
        if self._state.first:
            self.publish(self._state.repository())
        while self._state.left:
            self.stopping.check()
            progress = self._state.progress
            self._step()
            if self._state.progress != progress:
                self.publish(self._state.repository())
        nothing = None if self._directories else folder.NOTHING
        if nothing is not None and nothing != self.before.reason:
            log.error("nothing is served of %s: %s", self.folder, nothing)
        return replace(self._state.at_the_end(), reason=nothing, ignored=frozenset(content.ignored))

    def _prepare(self, content: FolderContent) -> None:
        """Chooses the versions to verify. If the folder of a name cannot be read now, its served versions stay."""
        before = self.before
        earlier = {*(model.key for model in before), *(refusal.key for refusal in before.refused)}
        unread = {key: self.folder / key.name / str(key.version) for key in earlier if key.name in content.unread}
        self._directories = content.directories | unread
        candidates = self.policy.candidates(key for key in self._directories if key.name not in before.unloaded)
        aliases_of: dict[str, Aliases] = {}
        for name in sorted({key.name for key in self._directories}):
            try:
                aliases_of[name] = aliases.read(self.folder / name)
            except ConfigurationError as error:  # so that no request changes its version
                log.error("the aliases of %s stay as they were: %s", name, error)
                aliases_of[name] = before.aliases.get(name, {})
        named = {Key(name, version) for name, of in aliases_of.items() for version in of.values()}
        self._state = ScanState(
            before, self.policy, candidates, frozenset({*self.shadows, *named}), aliases_of, self.shadows
        )
        for absent in self.policy.absent(self._directories):
            if absent.name not in before.unloaded:
                self._state.refuse(absent, NAMED_AND_ABSENT)

    def _step(self) -> None:
        """Starts the next version, or waits for one that is being verified; then stores the results of those done."""
        key = self._state.next({key.name for key in self._running})
        if key is not None and len(self._running) < MOST_AT_ONCE:
            self._begin(key)
        elif self._running:
            self._wait_for_one()
        for key in [key for key, (_, future) in self._running.items() if future.done()]:
            current, future = self._running.pop(key)
            model, reason, final = future.result()
            self._state.settle(key, model, reason, current if final else None)

    def _begin(self, key: Key) -> None:
        """Stores the result of a version at once if it is unchanged or too large; otherwise starts to verify it."""
        state, directory = self._state, self._directories[key]
        current, runs, reason = directory_state(directory), state.running.get(key), state.known.get(key)
        if self.before.states.get(key) == current and not (reason is not None and key.name == self.retry_name):
            state.settle(key, runs, reason, current)
            return
        needed, most = graph_bytes(current), self.max_model_bytes
        used = sum(graph_bytes(other) for other, _ in self._running.values()) + state.bytes_beside(key, self._running)
        if most is None or used + needed <= most:
            future = in_daemon_thread("verification", lambda: self._load(key, directory, runs))
            self._running[key] = current, future
            wait([future], SLOW_SECONDS)
        elif self._running:  # there may be room when one of these is finished
            self._wait_for_one()
        else:  # without a state, so the next scan tries again
            reason = f"its graph has {needed} bytes, and {used} of the {most} that --max-model-bytes allows are taken"
            state.settle(key, runs, reason, None)

    def _wait_for_one(self) -> None:
        wait([future for _, future in self._running.values()], return_when=FIRST_COMPLETED)

    def _load(self, key: Key, directory: Path, runs: LoadedModel | None) -> _Result:
        """Loads the model of a directory. If it is refused: the model that is served now, and the reason.

        Raises:
            Stopped: The scan is to stop.
        """
        try:
            if runs is not None:
                manifest = Manifest.read(directory)
                if manifest == runs.manifest:  # unchanged, if the digests of its files are right
                    manifest.checked(directory, most_bytes=self.most_bytes)
                    return runs, None, True
            model = loading.load(
                directory,
                self.limits,
                budget_seconds=MEASURING_BESIDE_SECONDS if self.before.models else MEASURING_SECONDS,
                devices=self.devices,
                verify=self.verify,
                most_bytes=self.most_bytes,
                stopping=self.stopping,
            )
        except ModelError as error:
            return runs, str(error), not isinstance(error, NotVerified)
        except Stopped:
            raise
        except MemoryError:
            return runs, f"{key}: there is not enough memory to read it", False
        except Exception as error:  # an error in one directory must not affect other versions
            log.exception("an unexpected error while %s was loaded", key)
            kind = f"{type(error).__name__}: {str(error)[:500]}"
            return runs, f"{key}: an unexpected error while it was loaded: {kind}", True
        return model, None, True


@dataclass(slots=True)
class ScanState:
    """The results of a running scan: what is left, served already, or was refused."""

    before: Repository
    policy: Policy
    left: list[Key]  # to be settled
    always_served: frozenset[Key]  # named by an alias, or shadows
    aliases: Mapping[str, Aliases]
    shadows: Collection[Key] = ()  # which answer nothing, so the highest version is another one
    first: bool = field(init=False)
    running: dict[Key, LoadedModel] = field(init=False)  # served before
    known: dict[Key, str] = field(init=False)  # refused before
    _new: int = 0
    _unnamed: str | None = None
    _models: dict[Key, LoadedModel] = field(default_factory=dict)
    _refused: dict[Key, str] = field(default_factory=dict)
    _states: dict[Key, DirectoryState] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.first = not self.before.models
        self.running = {model.key: model for model in self.before if model.key in set(self.left)}
        self.known = {refusal.key: refusal.reason for refusal in self.before.refused}
        names = {key.name for key in self.left} if self.first else set(self.before.models)
        self._unnamed = names.pop() if len(names) == 1 else None

    @property
    def progress(self) -> int:
        """A number that changes whenever there is something to publish."""
        return len(self.left) if self.first else self._new

    def next(self, running: Collection[str]) -> Key | None:
        """The next version to verify, or None: of a name that is not in `running`, below settled versions only."""
        settled = self._settled_names()
        self.left = [key for key in self.left if key.name not in settled or key in self.always_served]
        return next((key for key in self.left if key.name not in running), None)

    def bytes_beside(self, key: Key, running: Collection[Key]) -> int:
        """Bytes of the graphs served beside a version, settled or to come; without those in `running`."""
        staying = [
            self.running[other]
            for other in self.left
            if other in self.running
            and other != key
            and other not in running
            and not (self.policy.one_per_name and other.name == key.name and other not in self.always_served)
        ]
        return sum(model.graph_bytes for model in (*self._models.values(), *staying))

    def settle(self, key: Key, model: LoadedModel | None, reason: str | None, current: DirectoryState | None) -> None:
        """Stores the result of a version; without `current`, its directory's state, it is verified again."""
        self.left.remove(key)
        if current is not None:
            self._states[key] = current
        if model is not None:
            self._models[key] = model
            if model is not self.running.get(key):
                self._new += 1
                kernels = f", its recurrent layers in the kernels of {model.session.kernels}"
                kernels, by = kernels if model.session.recurrent else "", model.cost.planned_by
                log.info("%s is ready on %s%s; its batches are formed by %s", key, model.session.provider, kernels, by)
        if reason is not None:
            self.refuse(key, reason)

    def refuse(self, key: Key, reason: str) -> None:
        """Stores why a version is not served, and logs it if that is new."""
        self._refused[key] = reason
        if reason != self.known.get(key):
            ending = "; the model that was served before stays in service" if key in self._models else ""
            log.error("%s is not served: %s%s", key, reason, ending)

    def repository(self) -> Repository:
        """What may be served while the scan continues: the settled models, and those served before.

        A name keeps its aliases and versions from before until all versions that have an alias now are settled.
        """
        left, before = set(self.left), self.before
        waiting = {
            name
            for name, pointed in self.aliases.items()
            if not self.first and any(Key(name, version) in left for version in pointed.values())
        }
        settled = self._settled_names() - waiting
        old = {model.key: model for model in before if model.key.name not in settled or model.key in self.always_served}
        return self._repository(
            old | self._models,
            {key: reason for key, reason in self.known.items() if key in left} | self._refused,
            states={key: current for key, current in before.states.items() if key in left} | self._states,
            aliases={**self.aliases} | {name: before.aliases.get(name, {}) for name in waiting},
            unnamed=self._unnamed,
            unverified=tuple(self.left),
            starting=self.first,
        )

    def at_the_end(self) -> Repository:
        """The result of the scan."""
        return self._repository(self._models, self._refused, states=self._states, aliases=self.aliases)

    def _repository(self, models: dict[Key, LoadedModel], refused: dict[Key, str], **more: Any) -> Repository:
        refusals = [Refusal(str(key), why) for key, why in sorted(refused.items())]
        return Repository.of(models.values(), refusals, unloaded=self.before.unloaded, **more)

    def _settled_names(self) -> set[str]:
        """The names whose highest good version is settled, so that no higher version is left to verify."""
        if not self.policy.one_per_name:
            return set()
        return {
            key.name
            for key in self._models
            if key not in self.shadows
            and all(other.name != key.name or other.version < key.version for other in self.left)
        }
