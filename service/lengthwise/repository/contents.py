"""The result of a scan of the model repository, immutable: what is served or refused, and what a request means.

| word here | meaning |
|---|---|
| refused | of a version: not served, as it was not verified or cannot be served; the reason is a `Refusal` |
| unloaded | of a name: a client asked not to serve it |
| champion | the version that an alias of this name points to: it answers calls without a version |
| default version | the version that answers calls without a version: the champion, or what stands in for it |
| unnamed | the name of a model for calls that give no name |
| starting | the first scan runs: a model that is missing may still come |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lengthwise.errors import ModelNotFound, NoSuchAlias, NotReady, Problem
from lengthwise.repository.aliases import CHAMPION, Aliases
from lengthwise.versions import Key, is_alias

if TYPE_CHECKING:
    from lengthwise.repository.loading import DirectoryState, LoadedModel

MOST_LISTED: Final = 10  # names or versions in a message


@dataclass(frozen=True, slots=True)
class Refusal:
    """A version that is not served, and why; it may still be served as it was before its directory changed."""

    key: Key
    reason: str


@dataclass(frozen=True, slots=True)
class Repository:
    """The models of one folder, served or refused."""

    models: Mapping[str, Mapping[int, LoadedModel]] = field(default_factory=dict)  # to serve, by name and version
    refused: Sequence[Refusal] = ()  # of the versions that the policy selects
    unloaded: frozenset[str] = frozenset()  # names
    # Of each version when it was verified, and until when its result holds, by `time.monotonic`
    states: Mapping[Key, tuple[DirectoryState, float]] = field(default_factory=dict)
    reason: str | None = None  # why the folder has nothing to serve; None if it has
    ignored: frozenset[str] = frozenset()  # folders with something that is no version; "" for the repository
    unnamed: str | None = None  # while a scan runs: models that it adds must not change this name; None afterwards
    unverified: Sequence[Key] = ()  # versions that the running scan has still to verify
    starting: bool = False  # the first scan runs: a model that is missing here may still come
    aliases: Mapping[str, Aliases] = field(default_factory=dict)  # by name

    @classmethod
    def of(cls, models: Iterable[LoadedModel], refused: Sequence[Refusal] = (), **fields: Any) -> Repository:
        """Makes the repository with these models and refusals; `fields` are its other fields."""
        by_name: dict[str, dict[int, LoadedModel]] = {}
        for model in models:
            by_name.setdefault(model.key.name, {})[model.key.version] = model
        return cls(by_name, tuple(refused), **fields)

    def __iter__(self) -> Iterator[LoadedModel]:
        """Yields all good models, by name and ascending version."""
        for name in sorted(self.models):
            for version in sorted(self.models[name]):
                yield self.models[name][version]

    def find(self, name: str | None, version: str | None) -> LoadedModel:
        """Returns the model that a request means.

        Args:
            name: The name in the request; None if it gives none.
            version: Digits or an alias; None if the request gives none.

        Raises:
            ModelNotFound: The name or the version is unknown, or there are several names and none was given.
            NotReady: There is no model at all, or this one may still come.
        """  # noqa: DOC502 - `none_ready` makes it
        # 1. The name of the model
        if not self.models:
            raise self.none_ready()
        name = self.unnamed if name is None else name
        if name is None and not self.starting:
            if len(self.models) > 1:
                raise ModelNotFound(f"say which 'model': {listed(sorted(self.models))}")
            name = next(iter(self.models))
        # 2. Its version
        versions = self.models.get(name or "", {})
        if (model := versions.get(self._number(name or "", version) or 0)) is not None:
            return model
        # 3. Why there is none
        if self.starting:
            raise self.none_ready()
        if not versions:
            # A request may give a text of any length; a name has at most 128 characters
            raise ModelNotFound(
                f"no such model is served: {name or ''!a:.130}; served are {listed(sorted(self.models))}"
            )
        raise ModelNotFound(
            f"the model {name!r} has no such version; served of it are {listed(sorted(versions, reverse=True))}; "
            "'lengthwise serve --versions' chooses which"
        )

    def _number(self, name: str, version: str | None) -> int | None:
        """Returns the number of the version that a request means, whether this version is served or not.

        - No version is given: the default version; None if there is none.
        - Digits: their number; None if it is too large for a version.
        - An alias: the version that it points to; None if no such name is served.

        Raises:
            NoSuchAlias: The model has no such alias.
        """
        if version is None:
            return self.default(name)
        if not is_alias(version):
            return int(version) if len(version) < 20 else None  # with 20 digits or more int() could be slow or raise
        aliases = self.aliases.get(name, {})
        if version not in aliases and name in self.models:
            raise NoSuchAlias(
                [
                    Problem(
                        "",
                        "a version is ASCII digits that do not start with 0, or an alias of the model: "
                        f"{listed(sorted(aliases)) or 'it has none'}",
                    )
                ]
            )
        return aliases.get(version)

    def default(self, name: str) -> int | None:
        """Returns the number of the default version of a name, which answers requests without a version.

        - The champion, if it is served.
        - If it is not, the next lower version, which was in use before.
        - Without a champion, or if no lower version is served, the highest version that is served.

        None if no version of the name is served; and, while the service starts, as long as the champion has still to
        be verified.
        """
        champion = self.champion(name)
        versions = self.models.get(name, ())
        if self.starting and champion is not None and Key(name, champion) in self.unverified:
            return None
        up_to_champion = [version for version in versions if champion is not None and version <= champion]
        return max(up_to_champion or versions, default=None)

    def champion(self, name: str) -> int | None:
        """The number of the version that a name's alias `champion` points to, served or not; None without the alias."""
        return self.aliases.get(name, {}).get(CHAMPION)

    @property
    def why_empty(self) -> str | None:
        """Why there is nothing to serve; None if there is, or if `refused` says why."""
        if self.reason is None and not self.models and not self.refused and self.unloaded:
            return f"unloaded, until a client loads them again, are {listed(sorted(self.unloaded))}"
        return self.reason

    def none_ready(self) -> NotReady:
        """Makes the error for a request while no model is served: the folder is empty, or the first scan runs."""
        if self.starting:
            count = len(self.unverified)
            why = f": {count} version{'' if count == 1 else 's'} not verified yet; /healthz says which" if count else ""
            return NotReady(self.reason or f"the server is starting{why}", retry_after_seconds=1)
        why = "; /healthz says why" if self.why_empty is None else f": {self.why_empty}"
        return NotReady(f"no model is ready{why}", retry_after_seconds=5)

    def without(self, name: str) -> Repository:
        """Copies the repository without the models of a name, which counts as unloaded in the copy."""
        return Repository.of(
            (model for model in self if model.key.name != name),
            [refusal for refusal in self.refused if refusal.key.name != name],
            unloaded=self.unloaded | {name},
            states={key: state for key, state in self.states.items() if key.name != name},
            aliases=self.aliases,
        )


def listed(words: Sequence[object]) -> str:
    """Names or versions separated by commas; of more than `MOST_LISTED` the first ones and `...`."""
    return ", ".join([*map(str, words[:MOST_LISTED]), *(["..."] if len(words) > MOST_LISTED else [])])
