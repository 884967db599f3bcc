"""The models that are served: which are good, and which one a request means.

A model directory is served only after its own proof: its manifest is read, its digests are compared, its recorded
verification is looked through, its graph is loaded, its golden sequences are run, and its costs are measured (`load`).
A `Repository` is what came of a folder at one moment. It is never changed, only replaced, as a whole: `scan` makes the
next one. The highest version of a name is its default, and a repository with one name needs no name in a request.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from service import answers, buckets, golden, kept_costs, kept_promises, promises
from service.answers import Answer
from service.buckets import BucketedCosts, Buckets
from service.cost import CostTable, measure
from service.errors import ModelError, ModelNotFound, NotReady, VerificationError
from service.manifest import GOLDEN_FILE, MANIFEST_FILE, VERIFICATION_FILE, Manifest, Promise
from service.padding import PaddedBatch, Steps, pad, rounded_width
from service.plan import BatchLimits
from service.provider import CPU, Device
from service.session import Output, Session
from service.versions import Key

Look = tuple[tuple[str, int, int, int], ...]
"""How a model directory looks from outside: name, bytes, and times of change (of content, of anything) of each file."""

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
    """

    manifest: Manifest
    session: Session
    cost: CostTable
    graph_bytes: int = 0
    promise: Promise | None = None
    buckets: Buckets | None = None

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
    """

    models: Mapping[str, Mapping[int, Model]] = field(default_factory=dict)
    refused: Sequence[Refusal] = ()
    unloaded: frozenset[str] = frozenset()
    looks: Mapping[Key, Look] = field(default_factory=dict)
    reason: str | None = None

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
            NotReady: There is no good model at all.
            ModelNotFound: There is none of that name or version, or several names and none was said.
        """
        if not self.models:
            raise self.none_ready()
        if name is None:
            if len(self.models) > 1:
                raise ModelNotFound(f"say which 'model': {', '.join(sorted(self.models))}")
            name = next(iter(self.models))
        versions = self.models.get(name)
        if versions is None:
            raise ModelNotFound(f"no such model is served; served are {', '.join(sorted(self.models))}")
        if version is None:
            return versions[max(versions)]
        # A version of more digits than any file system has cannot be one; int() of it would be slow or refused.
        model = versions.get(int(version)) if len(version) < 20 else None
        if model is None:
            raise ModelNotFound(f"the model {name!r} has no such version")
        return model

    def none_ready(self) -> NotReady:
        """The refusal of a request while there is no good model."""
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

    def allowing(self, name: str) -> Repository:
        """The same, but the next scan may serve that name."""
        return replace(self, unloaded=self.unloaded - {name})


def load(
    directory: Path, limits: BatchLimits, *, budget_seconds: float = 1.0, devices: Sequence[Device] = (CPU,)
) -> Model:
    """One model directory, proved and measured.

    Args:
        directory: Holds the model.
        limits: What one batch may be; bounds what is measured.
        budget_seconds: Time to spend on measuring; on devices more, see `WARM_UP`.
        devices: Where it runs.

    Raises:
        ModelError: It must not be served; says why.
    """
    manifest = Manifest.read(directory)
    if (manifest.name, str(manifest.version)) != (directory.parent.name, directory.name):
        raise ModelError(
            f"the manifest is of {manifest.key}, the folder says {directory.parent.name}/{directory.name}: give the "
            "folder its name back, or export under the other name"
        )
    manifest.check_digests(directory)
    _check_verification(directory, manifest)
    session = Session.load(directory, manifest, devices=devices)
    expected = golden.Golden.read(directory / GOLDEN_FILE, manifest)
    try:
        promise = promises.held(directory, session, expected, manifest, tf32=devices[0].tf32)
        limits = limits.at_most(manifest.max_batch_rows)
        under = kept_costs.conditions(manifest, session, limits)
        cost = kept_costs.read(directory, under, clock=session.clock) or measure_cost(
            session, manifest, limits, budget_seconds=budget_seconds
        )
        shapes = None
        if session.bound:
            shapes = _warmed(session, cost, manifest, limits, seconds=WARM_UP * budget_seconds)
            cost = BucketedCosts(cost, shapes)
        return Model(manifest, session, cost, graph_bytes(look(directory)), promise, shapes)
    except ModelError:
        raise
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise ModelError(f"{manifest.key}: the graph cannot be run here: {error}") from error


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


def measure_cost(
    session: Session, manifest: Manifest, limits: BatchLimits, *, budget_seconds: float = 1.0
) -> CostTable:
    """The cost table of a session, measured with sequences of zeros: padding, run and scoring."""
    multiple = manifest.width_multiple

    def run(rows: int, width: int) -> None:
        tokens = manifest.input.kind == "tokens"
        length = min(width, manifest.max_length)
        shape = (length,) if tokens else (length, manifest.input.features or 1)
        steps: Steps = np.zeros(shape, dtype=np.int64) if tokens else np.zeros(shape, dtype=np.float32)
        batch = pad([steps] * rows, multiple=multiple)
        answers.score(session.run(batch), batch.lengths, manifest)

    return measure(
        run,
        max_rows=limits.rows,
        max_width=rounded_width(manifest.max_length, multiple),
        max_cost_steps=limits.cost_steps,
        multiple=multiple,
        budget_seconds=budget_seconds,
        clock=session.clock,
    )


def look(directory: Path) -> Look:
    """How a model directory looks from outside; empty where it is gone."""
    seen = []
    for folder, _, names in os.walk(directory):
        for name in names:
            path = Path(folder, name)
            with suppress(OSError):  # it went away meanwhile, or is a link to nowhere: `load` says so if it matters
                found = path.stat()
                seen.append((str(path.relative_to(directory)), found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    return tuple(sorted(seen))


def graph_bytes(seen: Look) -> int:
    """Bytes of the graph's files among those of a model directory: all but those that describe and prove it."""
    return sum(size for name, size, *_ in seen if name not in _ABOUT_THE_GRAPH)


def _check_verification(directory: Path, manifest: Manifest) -> None:
    """Looks through the recorded proof: it must be there, be the one that was published, and hold.

    Raises:
        VerificationError: It does not.
    """
    if VERIFICATION_FILE not in manifest.digests or GOLDEN_FILE not in manifest.digests:
        raise VerificationError(f"{manifest.key}: the manifest has no digest of {VERIFICATION_FILE} or {GOLDEN_FILE}")
    try:
        recorded: Any = json.loads((directory / VERIFICATION_FILE).read_bytes())
        failed = [str(case["name"]) for case in recorded["cases"] if case["holds"] is not True]
        count = len(recorded["cases"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise VerificationError(f"{manifest.key}: {VERIFICATION_FILE} cannot be read: {error!r}") from error
    if failed or not count:
        what = f"its cases failed: {', '.join(failed[:5])}" if failed else "it has no case"
        raise VerificationError(f"{manifest.key}: the recorded proof does not hold: {what}")
