"""A loaded model: its manifest, its session, and the predicted costs of its batches on this machine.

It combines the runtime (session, answers) with batching (costs, buckets), so it is in the lowest package that may
import both.
"""

from __future__ import annotations

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
    """A verified model.

    Attributes:
        manifest: Its inputs, outputs and labels.
        session: Runs its graph.
        cost: Predicts the seconds of its batches here.
        graph_bytes: Size of the graph's files; counts against `--max-model-bytes`.
        promise: The promise of batch invariance here; None if nothing was verified.
        buckets: The shapes of its batches; None if any shape may run.
        steady: Whether the time of a run follows from the shape of its batch.
        golden: Its golden sequences; None if it has none.
        examples: A few labelled recordings, as JSON Lines; None if it has none.
    """

    manifest: Manifest
    session: Session
    cost: CostTable
    graph_bytes: int = 0
    promise: Promise | None = None
    buckets: Buckets | None = None
    steady: bool = True
    golden: Golden | None = None
    examples: bytes | None = None

    @property
    def key(self) -> Key:
        """Its name and version."""
        return Key(self.manifest.name, self.manifest.version)

    def answer(self, batch: PaddedBatch, attention: bool) -> list[Answer | None]:
        """Runs a batch, with attention or without: one answer for each sequence; None if its logits are not finite."""
        wanted: tuple[OutputName, ...] = ("logits", "attention") if attention else ("logits",)
        outputs, lengths = self.session.run(batch, wanted), batch.lengths
        if batch.fillers:
            outputs, lengths = outputs.first(batch.rows - batch.fillers), lengths[: -batch.fillers]
        return answers.score(outputs, lengths, self.manifest)
