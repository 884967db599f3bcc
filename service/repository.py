"""The models that are served: which are good, and which one a request means.

A model directory is served only after its own proof (`load`): its files are read once and compared with their digests,
and what was read is judged (`service.judging`), in a process of its own where a service loads it.
A `Repository` is what came of a folder at one moment. It is never changed, only replaced, as a whole: `scan` makes the
next one. The highest version of a name is its default, and a repository with one name needs no name in a request.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from service import answers, buckets, judging, kept_costs, kept_promises, promises
from service.answers import Answer
from service.buckets import BucketedCosts, Buckets
from service.cost import CostTable
from service.errors import ModelError, ModelNotFound, NotReady
from service.files import bundled_models
from service.judging import Judge, ModelFiles
from service.manifest import GOLDEN_FILE, MANIFEST_FILE, MOST_BYTES, VERIFICATION_FILE, Manifest, Promise
from service.padding import PaddedBatch
from service.plan import BatchLimits
from service.provider import CPU, Device
from service.session import Output, Session
from service.stopping import Stopping
from service.versions import Key

Look = tuple[tuple[str, int, int, int], ...]
"""How a model directory looks from outside: name, bytes, and times of change (of content, of anything) of each file."""

MOST_LISTED: Final = 10
"""How many names or versions a refusal lists."""
MOST_NESTED: Final = 32
"""How deep folders in a model directory are looked into."""
WARM_UP: Final = 25
"""How much longer than measuring the warm-up of a device may take: 10 s at the start, 4 s beside others that serve."""

log = logging.getLogger("lengthwise.repository")

_ABOUT_THE_GRAPH = frozenset({MANIFEST_FILE, VERIFICATION_FILE, GOLDEN_FILE, kept_costs.FILE, kept_promises.FILE})


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A model that passed its proof and can be run.

    Attributes:
        manifest: What it wants and answers.
        session: Its graph.
        cost: What its batches cost here.
        promise: What holds here of a sequence alone and in company; None where nothing was proved.
        buckets: The shapes that its batches have; None where any will do.
        graph_bytes: Of the graph's files; what it counts for where memory is bounded.
        steady: Whether the time of a run follows from the shape of its batch.
    """

    manifest: Manifest
    session: Session
    cost: CostTable
    graph_bytes: int = 0
    promise: Promise | None = None
    buckets: Buckets | None = None
    steady: bool = True

    @property
    def key(self) -> Key:
        """Its name and version."""
        return Key(self.manifest.name, self.manifest.version)

    def answer(self, batch: PaddedBatch, attention: bool) -> list[Answer | None]:
        """Runs a batch: one answer for each sequence, or None for one whose logits are not finite."""
        wanted: tuple[Output, ...] = ("logits", "attention") if attention else ("logits",)
        outputs, lengths = self.session.run(batch, wanted), batch.lengths
        if batch.fillers:
            outputs, lengths = outputs.first(batch.rows - batch.fillers), lengths[: -batch.fillers]
        return answers.score(outputs, lengths, self.manifest)


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


def load(
    directory: Path,
    limits: BatchLimits,
    *,
    budget_seconds: float = 1.0,
    devices: Sequence[Device] = (CPU,),
    judge: Judge = judging.judge,
    most_bytes: int = MOST_BYTES,
    stopping: Stopping | None = None,
) -> Model:
    """One model directory, proved and measured.

    Its files are read once: what was held against its digests is what is judged, and what is opened.

    Args:
        directory: Holds the model.
        limits: What one batch may be; bounds what is measured.
        budget_seconds: Time to spend on measuring; on devices more, see `WARM_UP`.
        devices: Where it runs.
        judge: Judges it, in this process or in another.
        most_bytes: Of its files.
        stopping: Whether to end early.

    Raises:
        ModelError: It must not be served; says why.
        Stopped: It was stopped.
    """
    files = ModelFiles.read(directory, most_bytes=most_bytes)
    manifest = files.manifest
    judged = judge(files, limits, budget_seconds, devices, stopping or Stopping())
    session = judged.session or files.open(devices)
    if session.kernels != judged.kernels:
        raise ModelError(
            f"{manifest.key}: it was proved with the recurrent kernels of {judged.kernels}, and those of "
            f"{session.kernels} would serve it"
        )
    if judged.cases and not directory.is_relative_to(bundled_models()):  # what is installed stays as it is
        promises.keep(directory, session, manifest, judged.promise, judged.cases)
    try:
        cost = CostTable.from_json(dict(judged.costs), clock=session.clock)
        shapes = None
        if session.bound:
            shapes = _warmed(
                session, cost, manifest, limits.at_most(manifest.max_batch_rows), seconds=WARM_UP * budget_seconds
            )
            cost = BucketedCosts(cost, shapes)
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise ModelError(f"{manifest.key}: the graph cannot be run here: {error}") from error
    return Model(manifest, session, cost, graph_bytes(look(directory)), judged.promise, shapes, judged.steady)


def _warmed(session: Session, cost: CostTable, manifest: Manifest, limits: BatchLimits, *, seconds: float) -> Buckets:
    """The shapes that batches will have on a device, each seen by it once as far as the time goes."""
    chosen = buckets.choose(cost, limits, max_length=manifest.max_length, multiple=manifest.width_multiple)
    shapes = chosen.shapes()
    ran = session.warm_up(shapes, seconds=seconds)
    log.info(
        "%s: %d widths and %d numbers of rows on %s; %d of %d shapes run before the first request, the largest first",
        manifest.key,
        len(chosen.widths),
        len(chosen.rows),
        session.provider,
        ran,
        len(shapes),
    )
    return chosen


def look(directory: Path) -> Look:
    """How a model directory looks from outside; empty where it is gone."""
    seen = []
    for folder, inside, names in os.walk(directory):
        if folder.count(os.sep) - str(directory).count(os.sep) >= MOST_NESTED:
            inside.clear()
        for name in names:
            path = Path(folder, name)
            with suppress(OSError):  # it went away meanwhile, or is a link to nowhere: `load` says so if it matters
                found = path.stat()
                seen.append((str(path.relative_to(directory)), found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    return tuple(sorted(seen))


def graph_bytes(seen: Look) -> int:
    """Bytes of the graph's files among those of a model directory: all but those that describe and prove it."""
    return sum(size for name, size, *_ in seen if name not in _ABOUT_THE_GRAPH)
