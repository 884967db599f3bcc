"""A loaded model: its manifest, its session, and the predicted costs of its batches on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lengthwise.batching.buckets import Buckets
from lengthwise.batching.cost import CostTable
from lengthwise.padding import PaddedBatch
from lengthwise.runtime import answers
from lengthwise.runtime.answers import Answer
from lengthwise.runtime.manifest import Manifest, Promise
from lengthwise.runtime.session import OutputName, Session
from lengthwise.verification.golden import Golden
from lengthwise.versions import Key


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A verified model."""

    manifest: Manifest
    session: Session
    cost: CostTable
    graph_bytes: int = 0  # counts against `--max-model-bytes`
    promise: Promise | None = None  # of batch invariance here; None if nothing was verified
    buckets: Buckets | None = None  # the shapes of its batches; None for any
    steady: bool = True  # whether the time of a run follows from the shape of its batch
    golden: Golden | None = None
    examples: bytes | None = None  # a few labelled recordings, as JSON Lines

    @property
    def key(self) -> Key:
        """Its name and version."""
        return Key(self.manifest.name, self.manifest.version)

    def answer(
        self, batch: PaddedBatch, attention: bool, on_clipped: Callable[[int], None] | None = None
    ) -> list[Answer | None]:
        """Runs a batch, with attention or without: one answer for each sequence; None if its logits are not finite.

        `on_clipped` gets the number of values that a graph with the output `clipped` clipped.
        """
        wanted: tuple[OutputName, ...] = ("logits", "attention") if attention else ("logits",)
        if on_clipped is not None:
            wanted = (*wanted, "clipped")
        outputs, lengths = self.session.run(batch, wanted), batch.lengths
        if on_clipped is not None and outputs.clipped is not None:
            on_clipped(int(outputs.clipped[: batch.rows - batch.fillers].sum()))
        if batch.fillers:
            outputs, lengths = outputs.first(batch.rows - batch.fillers), lengths[: -batch.fillers]
        return answers.score(outputs, lengths, self.manifest)
