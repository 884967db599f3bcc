"""Scans a model repository: which of its versions are served from now on.

An unchanged version is kept, served or refused. A new or changed one is verified while the version of the last scan
serves, and replaces it only if it is good, so a directory that is still being copied is refused until it is complete.
Each good version is *published*, which means served, at once. If one takes long, those of other names are verified at
the same time; a lower version of its name waits.

A version is *settled* when this scan has its result: a model to serve, a reason to refuse it, or both, where the model
of the last scan stays in service. Others are *remaining*. See `contents` for refusals.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any, Final, NamedTuple

from lengthwise.batching.limits import BatchLimits
from lengthwise.errors import ConfigurationError, ModelError, NotVerified
from lengthwise.repository import aliases, folder, loading, verifier
from lengthwise.repository.aliases import Aliases
from lengthwise.repository.contents import Refusal, Repository
from lengthwise.repository.folder import FolderContent
from lengthwise.repository.loading import DirectoryState, LoadedModel, directory_state, graph_bytes
from lengthwise.repository.modest import share_of_memory
from lengthwise.repository.stopping import Stopped, Stopping, in_daemon_thread
from lengthwise.repository.verifier import Verifier
from lengthwise.runtime.manifest import MOST_BYTES, MOST_MANIFEST_BYTES, Manifest
from lengthwise.runtime.provider import CPU_DEVICE, Device
from lengthwise.versions import Key, Policy

log = logging.getLogger("lengthwise.scan")

MEASURING_SECONDS: Final = 1.0  # at most, to measure the costs of a model, while no model is served
MEASURING_BESIDE_SECONDS: Final = 0.3  # while models are served, whose processor time it takes; serving learns the rest
SLOW_SECONDS: Final = 3.0  # how long the next versions wait for one that is being verified
MOST_AT_ONCE: Final = 4  # versions that are verified at the same time
REST_SECONDS: Final = 60.0  # for which timed scans leave a version that could not be verified: it may never fit
NAMED_AND_ABSENT: Final = "--versions names it, and the repository does not have it"


class VersionResult(NamedTuple):
    """The result of a version: a model to serve, a reason to refuse it, or both."""

    model: LoadedModel | None  # the model of the directory; with a reason, that of the last scan, if there was one
    reason: str | None = None  # why the directory's model is not served; None if it is
    holds_seconds: float = float("inf")  # or until the directory changes; the first scan after it verifies again


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
    _directories: dict[Key, Path] = field(init=False)  # of all versions in the folder
    _state: ScanState = field(init=False)
    # The versions that are being verified: the state of the directory before, and the result to come
    _running: dict[Key, tuple[DirectoryState, Future[VersionResult]]] = field(init=False, default_factory=dict)

    def run(self) -> Repository:
        """Scans the folder, publishes versions as they are verified, and returns the result.

        `folder.read` raises ConfigurationError if the folder cannot be read, and `stopping` raises Stopped.
        """
        content = folder.read(self.folder)
        for name, why in sorted(content.ignored.items()):
            if name not in self.before.ignored:
                log.warning("%s", why)
        self._prepare(content)
        if self._state.first:
            self.publish(self._state.repository())
        while self._state.remaining:
            self.stopping.check()
            progress = self._state.progress
            self._step()
            if self._state.progress != progress:
                self.publish(self._state.repository())
        reason = None if self._directories else folder.NOTHING
        if reason is not None and reason != self.before.reason:
            log.error("nothing is served of %s: %s", self.folder, reason)
        return replace(self._state.final_repository(), reason=reason, ignored=frozenset(content.ignored))

    def _prepare(self, content: FolderContent) -> None:
        """Chooses the versions to verify, and reads the aliases: sets `_directories` and `_state`.

        If the folder of a name cannot be read now, its versions of the last scan stay; if only its aliases cannot, they
        stay. Several versions of a name that the last scan did not know are refused without them: the highest may not
        be the one that is meant.
        """
        # 1. The directories, and of these the versions that the policy selects
        before = self.before
        earlier = {*(model.key for model in before), *(refusal.key for refusal in before.refused)}
        unread = {key: self.folder / key.name / str(key.version) for key in earlier if key.name in content.unread}
        self._directories = content.directories | unread
        candidates = self.policy.candidates(key for key in self._directories if key.name not in before.unloaded)
        # 2. The aliases of each name
        aliases_by_name: dict[str, Aliases] = {}
        unreadable: dict[str, str] = {}  # why, by name: its versions are refused
        for name in sorted({key.name for key in self._directories}):
            try:
                aliases_by_name[name] = aliases.read(self.folder / name)
            except ConfigurationError as error:  # no request may change its version because of it
                if name in before.aliases or [key.name for key in candidates].count(name) == 1:
                    log.error("the aliases of %s stay as they were: %s", name, error)
                    aliases_by_name[name] = before.aliases.get(name, {})
                else:
                    unreadable[name] = str(error).replace(f"{self.folder}/", "")
        with_alias = {Key(name, version) for name, versions in aliases_by_name.items() for version in versions.values()}
        # 3. The state
        self._state = ScanState(before, self.policy, candidates, with_alias, aliases_by_name)
        for key in [key for key in candidates if key.name in unreadable]:
            self._state.remaining.remove(key)
            self._state.refuse(key, unreadable[key.name])
        for absent in self.policy.absent(self._directories):
            if absent.name not in before.unloaded:
                self._state.refuse(absent, NAMED_AND_ABSENT)

    def _step(self) -> None:
        """Starts to verify the next version, or waits for a running verification; then stores finished results."""
        key = self._state.next({key.name for key in self._running})
        if key is not None and len(self._running) < MOST_AT_ONCE:
            self._begin(key)
        elif self._running:
            self._wait_for_any()
        for key in [key for key, (_, future) in self._running.items() if future.done()]:
            current, future = self._running.pop(key)
            self._state.settle(key, future.result(), current)

    def _begin(self, key: Key) -> None:
        """Begins with a version.

        - An unchanged one gets the result of the last scan, as long as that holds (`VersionResult.holds_seconds`); but
          not one that was refused, if a client asks for its name again.
        - If its graph fits beside the others, this starts to verify it, and waits up to `SLOW_SECONDS`, as most
          versions are verified by then.
        - If it may fit when a running verification is finished, this only waits for one, and is called again.
        - Otherwise it is refused.
        """
        # 1. An unchanged directory: the result of the last scan
        state, directory = self._state, self._directories[key]
        current, (before, holds_until) = directory_state(directory), self.before.states.get(key, ((), 0.0))
        served, reason, seconds_left = state.served.get(key), state.refusals.get(key), holds_until - monotonic()
        if before == current and seconds_left > 0 and not (reason is not None and key.name == self.retry_name):
            state.settle(key, VersionResult(served, reason, seconds_left), current)
            return
        # 2. Whether its graph fits beside the others
        needed, limit = graph_bytes(current), self.max_model_bytes
        running_bytes = sum(graph_bytes(running) for running, _ in self._running.values())
        used = running_bytes + state.bytes_beside(key, self._running)
        if limit is None or used + needed <= limit:
            future = in_daemon_thread("verification", lambda: self._load(key, directory, served))
            self._running[key] = current, future
            wait([future], SLOW_SECONDS)
        elif self._running:  # there may be room when one of these is finished
            self._wait_for_any()
        else:
            state.settle(
                key,
                VersionResult(
                    served,
                    f"its graph has {needed} bytes, and {used} of the {limit} that --max-model-bytes allows are taken",
                    holds_seconds=0,
                ),
                current,
            )

    def _wait_for_any(self) -> None:
        """Waits until at least one of the running verifications is done."""
        wait([future for _, future in self._running.values()], return_when=FIRST_COMPLETED)

    def _load(self, key: Key, directory: Path, served: LoadedModel | None) -> VersionResult:
        """Loads the model of a directory. If it is refused, `served`, the model of the last scan, stays in service.

        Raises:
            Stopped: The scan is to stop.
        """
        left = share_of_memory(self.most_bytes)  # files are read in this process, too
        try:
            if served is not None:
                manifest = Manifest.read(directory)
                if manifest == served.manifest:  # unchanged, if the digests of its files are right
                    manifest.read_files(directory, most_bytes=left)
                    return VersionResult(served)
            model = loading.load(
                directory,
                self.limits,
                budget_seconds=MEASURING_BESIDE_SECONDS if self.before.models else MEASURING_SECONDS,
                devices=self.devices,
                verify=self.verify,
                most_bytes=left,
                stopping=self.stopping,
            )
        except ModelError as error:
            # A file is too large for the memory that is left, and not for its kind: the text has the limit it exceeds
            if (
                left < self.most_bytes
                and getattr(error.__cause__, "errno", 0) == errno.EFBIG
                and f"at most {MOST_MANIFEST_BYTES} " not in str(error)
            ):
                return VersionResult(
                    served,
                    f"{str(error).partition(', and at most')[0]}, and there is not enough memory for it",
                    holds_seconds=0,
                )
            return VersionResult(served, str(error), REST_SECONDS if isinstance(error, NotVerified) else float("inf"))
        except Stopped:
            raise
        except MemoryError:
            return VersionResult(served, f"{key}: there is not enough memory to read it", REST_SECONDS)
        except Exception as error:  # an error in one directory must not affect other versions
            log.exception("an unexpected error while %s was loaded", key)
            kind = f"{type(error).__name__}: {str(error)[:500]}"
            return VersionResult(served, f"{key}: an unexpected error while it was loaded: {kind}")
        return VersionResult(model)


@dataclass(slots=True)
class ScanState:
    """The results of a running scan so far: which versions remain, which models are served, which are refused."""

    before: Repository  # the result of the last scan
    policy: Policy
    remaining: list[Key]  # in the order of `Policy.candidates`: the highest version of each name first
    with_alias: Collection[Key]  # versions that an alias points to: they are always served
    aliases: Mapping[str, Aliases]  # by name
    first: bool = field(init=False)  # whether nothing was served before
    served: dict[Key, LoadedModel] = field(init=False)  # by the last scan, of the versions to verify
    refusals: dict[Key, str] = field(init=False)  # by the last scan: the reasons
    _new: int = 0  # models that this scan has loaded
    _unnamed: str | None = None  # `Repository.unnamed`
    _models: dict[Key, LoadedModel] = field(default_factory=dict)  # settled
    _refused: dict[Key, str] = field(default_factory=dict)  # settled: the reasons
    _states: dict[Key, tuple[DirectoryState, float]] = field(default_factory=dict)  # of `Repository`, settled

    def __post_init__(self) -> None:
        self.first = not self.before.models
        self.served = {model.key: model for model in self.before if model.key in set(self.remaining)}
        self.refusals = {refusal.key: refusal.reason for refusal in self.before.refused}
        # If there is only one name, it is that of calls without a name.
        names = {key.name for key in self.remaining} if self.first else set(self.before.models)
        self._unnamed = names.pop() if len(names) == 1 else None

    @property
    def progress(self) -> int:
        """A number that changes whenever there is something to publish."""
        return len(self.remaining) if self.first else self._new

    def next(self, running: Collection[str]) -> Key | None:
        """Removes versions from `remaining` that need not be verified, and returns the next one to verify.

        A version need not be verified if a higher one of its name is good, and no alias points to it. None if no
        version remains but those of the names in `running`, of which a version is being verified.
        """
        settled = self._settled_names()
        self.remaining = [key for key in self.remaining if key.name not in settled or key in self.with_alias]
        return next((key for key in self.remaining if key.name not in running), None)

    def bytes_beside(self, key: Key, running: Collection[Key]) -> int:
        """Returns the bytes of the graphs that will be served beside a version if it is good.

        These are settled models, and models of the last scan that remain. Not counted are models that the version would
        replace, and those in `running`, which the caller counts.
        """
        staying = [
            self.served[remaining]
            for remaining in self.remaining
            if remaining in self.served
            and remaining != key
            and remaining not in running
            and not (self.policy.one_per_name and remaining.name == key.name and remaining not in self.with_alias)
        ]
        return sum(model.graph_bytes for model in (*self._models.values(), *staying))

    def settle(self, key: Key, result: VersionResult, current: DirectoryState) -> None:
        """Stores the result of a version; logs a new model, or a new reason.

        `current` is the state of its directory. While that is unchanged, scans take this result as long as it holds.
        """
        self.remaining.remove(key)
        self._states[key] = current, monotonic() + result.holds_seconds
        if (model := result.model) is not None:
            self._models[key] = model
            if model is not self.served.get(key):
                self._new += 1
                session = model.session
                log.info(
                    "%s is ready on %s (kernels: %s); a padding step costs %.2f times as much as a valid one",
                    *(key, session.provider, session.kernels, model.cost.padding_cost),
                )
        if result.reason is not None:
            self.refuse(key, result.reason)

    def refuse(self, key: Key, reason: str) -> None:
        """Stores why a version is not served, and logs it if that is new."""
        self._refused[key] = reason
        if reason != self.refusals.get(key):
            ending = "; the model that was served before stays in service" if key in self._models else ""
            log.error("%s is not served: %s%s", key, reason, ending)

    def repository(self) -> Repository:
        """Returns what may be served while the scan continues: the settled models, and those of the last scan.

        A name keeps the aliases and versions of the last scan until all versions that have an alias now are settled.
        """
        # 1. The names that keep what they had, and the models of the last scan that stay
        remaining, before = set(self.remaining), self.before
        waiting_names = {
            name
            for name, versions in self.aliases.items()
            if not self.first and any(Key(name, version) in remaining for version in versions.values())
        }
        settled = self._settled_names() - waiting_names
        kept = {model.key: model for model in before if model.key.name not in settled or model.key in self.with_alias}
        # 2. These, and the results so far
        return self._repository(
            kept | self._models,
            {key: reason for key, reason in self.refusals.items() if key in remaining} | self._refused,
            states={key: current for key, current in before.states.items() if key in remaining} | self._states,
            aliases={**self.aliases} | {name: before.aliases.get(name, {}) for name in waiting_names},
            unnamed=self._unnamed,
            unverified=tuple(self.remaining),
            starting=self.first,
        )

    def final_repository(self) -> Repository:
        """The result of the scan, when no version remains."""
        return self._repository(self._models, self._refused, states=self._states, aliases=self.aliases)

    def _repository(self, models: dict[Key, LoadedModel], refused: dict[Key, str], **fields: Any) -> Repository:
        """A repository of these models and refusals, with the names that were unloaded before."""
        refusals = [Refusal(key, why) for key, why in sorted(refused.items())]
        return Repository.of(models.values(), refusals, unloaded=self.before.unloaded, **fields)

    def _settled_names(self) -> set[str]:
        """Returns the names of which the highest good version is settled: only lower versions may remain.

        None of these need be verified, but those with an alias. Empty if the policy serves several versions of a name.
        """
        if not self.policy.one_per_name:
            return set()
        return {
            key.name
            for key in self._models
            if all(remaining.name != key.name or remaining.version < key.version for remaining in self.remaining)
        }
