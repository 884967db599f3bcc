"""The result of a scan of the model repository, immutable: what is served or refused, and what a request means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lengthwise.errors import ModelNotFound, NoSuchAlias, NotReady, Problem
from lengthwise.repository.aliases import CHAMPION, Aliases
from lengthwise.versions import Key, is_alias

if TYPE_CHECKING:
    from lengthwise.repository.loading import LoadedModel

DirectoryState = tuple[tuple[str, int, int, int], ...]  # name, size, mtime, ctime; unchanged: not verified again

MOST_LISTED: Final = 10  # names or versions in a message


@dataclass(frozen=True, slots=True)
class Refusal:
    """A version that is not served, and why; it may still be served as it was before its directory changed."""

    path: str  # `NAME/VERSION`
    reason: str

    @property
    def key(self) -> Key:
        """The name and the number of the version that is refused."""
        name, _, version = self.path.partition("/")
        return Key(name, int(version))


@dataclass(frozen=True, slots=True)
class Repository:
    """The models of one folder, served or refused."""

    models: Mapping[str, Mapping[int, LoadedModel]] = field(default_factory=dict)  # to serve, by name and version
    refused: Sequence[Refusal] = ()  # versions that the policy selects
    unloaded: frozenset[str] = frozenset()  # names, by a client
    states: Mapping[Key, DirectoryState] = field(default_factory=dict)  # when each version was verified
    reason: str | None = None  # why the folder has nothing to serve
    ignored: frozenset[str] = frozenset()  # folders with something that is no version; "" for the repository
    unnamed: str | None = None  # while a scan runs: models found later must not change it
    unverified: Sequence[Key] = ()  # by the running scan, so far
    starting: bool = False  # a model that is missing here may still come
    aliases: Mapping[str, Aliases] = field(default_factory=dict)  # by name
    shadow: Key | None = None  # served, but no call without a version gets it

    @classmethod
    def of(cls, models: Iterable[LoadedModel], refused: Sequence[Refusal] = (), **more: Any) -> Repository:
        """A repository of these models; `more` are other fields."""
        by_name: dict[str, dict[int, LoadedModel]] = {}
        for model in models:
            by_name.setdefault(model.key.name, {})[model.key.version] = model
        return cls(by_name, tuple(refused), **more)

    def __iter__(self) -> Iterator[LoadedModel]:
        """All good models, by name and ascending version."""
        for name in sorted(self.models):
            for version in sorted(self.models[name]):
                yield self.models[name][version]

    def find(self, name: str | None, version: str | None) -> LoadedModel:
        """The model that a request means (`version`: digits or an alias).

        Raises:
            ModelNotFound: The name or the version is unknown, or there are several names and none was given.
            NotReady: There is no model at all, this one may still come, or only the shadow works and no version is
                named.
        """
        if not self.models:
            raise self.none_ready()
        name = self.unnamed if name is None else name
        if name is None and not self.starting:
            if len(self.models) > 1:
                raise ModelNotFound(f"say which 'model': {listed(sorted(self.models))}")
            name = next(iter(self.models))
        versions = self.models.get(name or "", {})
        if (model := versions.get(self._number(name or "", version) or 0)) is not None:
            return model
        if self.starting:
            raise self.none_ready()
        if not versions:
            raise ModelNotFound(f"no such model is served; served are {listed(sorted(self.models))}")
        if version is None:
            why = f"the model {name!r} is not ready: of it only the shadow works, which answers no call"
            raise NotReady(f"{why}; /healthz says more", retry_after_seconds=5)
        numbers = listed([str(number) for number in sorted(versions, reverse=True)])
        raise ModelNotFound(f"the model {name!r} has no such version; served of it are {numbers}")

    def _number(self, name: str, version: str | None) -> int | None:
        """The number of the version that a request names, served or not; None if the text can name no version.

        Raises:
            NoSuchAlias: The model has no such alias.
        """
        if version is None:
            return self.default(name)
        if not is_alias(version):
            return int(version) if len(version) < 20 else None  # with 20 digits or more int() could be slow or raise
        pointed = self.aliases.get(name, {})
        if version not in pointed and name in self.models:
            form = "a version is ASCII digits that do not start with 0, or an alias of the model"
            raise NoSuchAlias([Problem("", f"{form}: {listed(sorted(pointed)) or 'it has none'}")])
        return pointed.get(version)

    def default(self, name: str) -> int | None:
        """The number of the version that answers a request without one: the champion; None if no version may.

        If the champion is not served, this is the next lower version, which was in use before; without one the highest.
        A shadow never stands in. While the service starts, nothing stands in for a champion that is still to be
        verified.
        """
        champion = self.champion(name)
        versions = [version for version in self.models.get(name, ()) if not self.is_shadow(Key(name, version))]
        if self.starting and champion is not None and Key(name, champion) in self.unverified:
            return None
        below = [version for version in versions if champion is not None and version <= champion]
        return max(below or versions, default=None)

    def champion(self, name: str) -> int | None:
        """The version of a name that the alias `champion` points to, whether it is served or not."""
        return self.aliases.get(name, {}).get(CHAMPION)

    def is_shadow(self, key: Key) -> bool:
        """Whether a version only runs beside others: the shadow, as long as it is not the champion."""
        return key == self.shadow and self.champion(key.name) != key.version

    def none_ready(self) -> NotReady:
        """The error for a request while no model is served: the folder is empty, or the first scan runs."""
        if self.starting:
            count = len(self.unverified)
            why = f": {count} version{'s' * (count != 1)} not verified yet; /healthz says which" if count else ""
            return NotReady(self.reason or f"the server is starting{why}", retry_after_seconds=1)
        why = "; /healthz says why" if self.reason is None else f": {self.reason}"
        return NotReady(f"no model is ready{why}", retry_after_seconds=5)

    def without(self, name: str) -> Repository:
        """A copy of the repository without the models of a name, which is not served until a client loads it."""
        return Repository.of(
            (model for model in self if model.key.name != name),
            [refusal for refusal in self.refused if refusal.key.name != name],
            unloaded=self.unloaded | {name},
            states={key: state for key, state in self.states.items() if key.name != name},
            aliases=self.aliases,
        )


def listed(words: Sequence[str]) -> str:
    """Texts separated by commas, shortened to the first ten."""
    return ", ".join([*words[:MOST_LISTED], *(["..."] if len(words) > MOST_LISTED else [])])
