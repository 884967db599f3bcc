"""The state of a running scan: which versions are settled, and the result so far."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from lengthwise.repository.aliases import Aliases
from lengthwise.repository.contents import DirectoryState, Refusal, Repository
from lengthwise.repository.model import LoadedModel
from lengthwise.versions import Key, Policy

log = logging.getLogger("lengthwise.scan")


class ScanState:
    """The results of a running scan: what is left, served already, or was rejected; `kept` are served in any case."""

    def __init__(
        self,
        before: Repository,
        policy: Policy,
        wanted: Sequence[Key],
        kept: frozenset[Key] = frozenset(),
        aliases: Mapping[str, Aliases] | None = None,
    ) -> None:
        self.first = not before.models
        self.left = list(wanted)
        self.running = {model.key: model for model in before if model.key in set(wanted)}
        self.known = {refusal.key: refusal.reason for refusal in before.refused}
        self._new = 0
        self.before = before
        self._policy = policy
        self._kept = kept
        self._aliases = dict(aliases or {})
        self._models: dict[Key, LoadedModel] = {}
        self._refused: dict[Key, str] = {}
        self._states: dict[Key, DirectoryState] = {}
        names = {key.name for key in wanted} if self.first else set(before.models)
        self._unnamed = names.pop() if len(names) == 1 else None

    @property
    def progress(self) -> int:
        """A number that changes whenever there is something to publish."""
        return len(self.left) if self.first else self._new

    def next(self, judged: Collection[str]) -> Key | None:
        """The next version to verify, or None: of a name that is not in `judged`, below settled versions only."""
        if self._policy.one:
            done = self._done()
            self.left = [key for key in self.left if key.name not in done or key in self._kept]
        return next((key for key in self.left if key.name not in judged), None)

    def bytes_beside(self, key: Key, judged: Collection[Key]) -> int:
        """Bytes of the graphs served beside a version, settled or to come; without those in `judged`."""
        staying = [
            self.running[other]
            for other in self.left
            if other in self.running
            and other != key
            and other not in judged
            and not (self._policy.one and other.name == key.name and other not in self._kept)
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
                log.info("%s is ready on %s%s", key, model.session.provider, _described(model))
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
        left = set(self.left)
        waiting = (
            set() if self.first else {name for name, pointed in self._aliases.items() if self._waits(name, pointed)}
        )
        done = self._done() - waiting if self._policy.one else set()
        old = {model.key: model for model in self.before if model.key.name not in done or model.key in self._kept}
        refused = {key: reason for key, reason in self.known.items() if key in left} | self._refused
        states = {key: current for key, current in self.before.states.items() if key in left} | self._states
        result = self._make({**old, **self._models}, refused, states, None)
        aliases = self._aliases | {name: self.before.aliases.get(name, {}) for name in waiting}
        return replace(result, aliases=aliases, unnamed=self._unnamed, unjudged=tuple(self.left), starting=self.first)

    def at_the_end(self, reason: str | None) -> Repository:
        """The result of the scan; `reason` says why there is nothing to serve at all."""
        return self._make(self._models, self._refused, self._states, reason)

    def _make(
        self,
        models: Mapping[Key, LoadedModel],
        refused: Mapping[Key, str],
        states: Mapping[Key, DirectoryState],
        reason: str | None,
    ) -> Repository:
        refusals = [Refusal(str(key), why) for key, why in sorted(refused.items())]
        made = Repository.of(models.values(), refusals, self.before.unloaded, states, reason)
        return replace(made, aliases=self._aliases)

    def _waits(self, name: str, pointed: Aliases) -> bool:
        return any(Key(name, version) in self.left for version in pointed.values())

    def _done(self) -> set[str]:
        """The names of which the highest good version is settled."""
        return {key.name for key in self._models if self._is_highest_left(key)}

    def _is_highest_left(self, key: Key) -> bool:
        """Whether no version above it is still to be verified: a kept version may be settled before a higher one."""
        return all(other.name != key.name or other.version < key.version for other in self.left)


def _described(model: LoadedModel) -> str:
    """How a model runs, for the log: the kernels of its recurrent layers, if it has any, and how batches are formed."""
    kernels = f", its recurrent layers in the kernels of {model.session.kernels}" if model.session.recurrent else ""
    return f"{kernels}; its batches are formed by {model.cost.planned_by}"
