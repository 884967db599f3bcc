"""A model that can be run: what it wants, its graph, and what its batches cost here."""

from __future__ import annotations

from dataclasses import dataclass

from lengthwise.batching.buckets import Buckets
from lengthwise.batching.cost import CostTable
from lengthwise.padding import PaddedBatch
from lengthwise.runtime import answers
from lengthwise.runtime.answers import Answer
from lengthwise.runtime.manifest import Manifest, Promise
from lengthwise.runtime.session import OutputName, Session
from lengthwise.versions import Key


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
        wanted: tuple[OutputName, ...] = ("logits", "attention") if attention else ("logits",)
        outputs, lengths = self.session.run(batch, wanted), batch.lengths
        if batch.fillers:
            outputs, lengths = outputs.first(batch.rows - batch.fillers), lengths[: -batch.fillers]
        return answers.score(outputs, lengths, self.manifest)
