"""What a model repository holds at one moment: what is served, what is refused, and which model a request means.

A `Repository` is never changed, only replaced, as a whole: `scan` makes the next one. The highest version of a name is
its default, and a repository with one name needs no name in a request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from lengthwise.errors import ModelNotFound, NotReady
from lengthwise.repository.model import Model
from lengthwise.versions import Key

Look = tuple[tuple[str, int, int, int], ...]
"""How a model directory looks from outside: name, bytes, and times of change (of content, of anything) of each file."""

MOST_LISTED: Final = 10
"""How many names or versions a message lists."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A version that is not served, and why.

    Attributes:
        path: `NAME/VERSION`. A version of that name may be served all the same: the one that stood there before.
        reason: A sentence.
    """

    path: str
    reason: str

    @property
    def key(self) -> Key:
        """Its name and version."""
        name, _, version = self.path.partition("/")
        return Key(name, int(version))


@dataclass(frozen=True, slots=True)
class Repository:
    """What is served of one folder, and what is not.

    Attributes:
        models: By name, and by version.
        refused: What is in the folder, is wanted, and is not served.
        unloaded: Names that are not served because somebody asked for that.
        looks: How the directory of each version in `models` and `refused` looked when it was judged. A version that
            looks otherwise is judged again, and one that is not here.
        reason: Why the folder has nothing that could be served, or None where it has a version at all.
        passed: Names of folders that were passed over: they cannot be read, or no model can have such a name.
        unnamed: Which name a request means that says none, while a look goes on: what else is found must not change it.
        unjudged: What the look has still to find out about; empty when it is over.
        starting: Whether the look goes on and nothing was served before it: what is not here may still come.
    """

    models: Mapping[str, Mapping[int, Model]] = field(default_factory=dict)
    refused: Sequence[Refusal] = ()
    unloaded: frozenset[str] = frozenset()
    looks: Mapping[Key, Look] = field(default_factory=dict)
    reason: str | None = None
    passed: frozenset[str] = frozenset()
    unnamed: str | None = None
    unjudged: Sequence[Key] = ()
    starting: bool = False

    @classmethod
    def of(
        cls,
        models: Iterable[Model],
        refused: Sequence[Refusal] = (),
        unloaded: frozenset[str] = frozenset(),
        looks: Mapping[Key, Look] | None = None,
        reason: str | None = None,
    ) -> Repository:
        """The repository of some models."""
        by_name: dict[str, dict[int, Model]] = {}
        for model in models:
            by_name.setdefault(model.key.name, {})[model.key.version] = model
        return cls(by_name, tuple(refused), unloaded, looks or {}, reason)

    def __iter__(self) -> Iterator[Model]:
        """All good models, by name and ascending version."""
        for name in sorted(self.models):
            for version in sorted(self.models[name]):
                yield self.models[name][version]

    def find(self, name: str | None, version: str | None) -> Model:
        """The model that a request means.

        Args:
            name: Or None, where there is one name only.
            version: Its digits, or None for the highest.

        Raises:
            NotReady: There is no good model at all, or this one may still come.
            ModelNotFound: There is none of that name or version, or several names and none was said.
        """
        if not self.models:
            raise self.none_ready()
        name = self.unnamed if name is None else name
        if name is None and not self.starting:
            if len(self.models) > 1:
                raise ModelNotFound(f"say which 'model': {listed(sorted(self.models))}")
            name = next(iter(self.models))
        versions = self.models.get(name, {}) if name is not None else {}
        if version is None:
            model = versions[max(versions)] if versions else None
        else:
            # A version of more digits than any file system has cannot be one; int() of it would be slow or refused.
            model = versions.get(int(version)) if len(version) < 20 else None
        if model is not None:
            return model
        if self.starting:
            raise self.none_ready()
        if not versions:
            raise ModelNotFound(f"no such model is served; served are {listed(sorted(self.models))}")
        numbers = listed([str(number) for number in sorted(versions, reverse=True)])
        raise ModelNotFound(f"the model {name!r} has no such version; served of it are {numbers}")

    def none_ready(self) -> NotReady:
        """The refusal of a request while there is no good model, or the first look at the folder goes on."""
        if self.starting:
            left = len(self.unjudged)
            why = f": {left} version{'s' * (left != 1)} not judged yet; /healthz says which" if left else ""
            return NotReady(f"the server is starting{why}", retry_after_seconds=1)
        why = "; /healthz says why" if self.reason is None else f": {self.reason}"
        return NotReady(f"no model is ready{why}", retry_after_seconds=5)

    def without(self, name: str) -> Repository:
        """The same without a model, which stays away until it is loaded by name."""
        return Repository(
            {other: versions for other, versions in self.models.items() if other != name},
            [refusal for refusal in self.refused if refusal.key.name != name],
            self.unloaded | {name},
            {key: seen for key, seen in self.looks.items() if key.name != name},
        )

    def settled(self) -> Repository:
        """The same, with nothing more to come of this look."""
        return replace(self, unnamed=None, unjudged=(), starting=False)

    def allowing(self, name: str) -> Repository:
        """The same, but the next scan may serve that name."""
        return replace(self, unloaded=self.unloaded - {name})


def listed(words: Sequence[str]) -> str:
    """The words, or the first of many."""
    return ", ".join([*words[:MOST_LISTED], *(["..."] if len(words) > MOST_LISTED else [])])
