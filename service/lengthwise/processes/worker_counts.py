"""The counts of all workers, as their parent keeps them: of those that run, and of those that have ended."""

from __future__ import annotations

from collections.abc import Iterable

from lengthwise.processes.shared_memory import READY, SharedMemory
from lengthwise.telemetry.metrics import KEPT_GONE
from lengthwise.telemetry.snapshots import EndedCounts, Snapshot, drop, renewed, snapshot_of, with_rows


class WorkerCounts:
    """The last snapshot of each worker, by its index, and the sum over those that have ended."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        self._last: list[Snapshot] = [{} for _ in memory.counts]
        self._ended = EndedCounts()

    def note(self, index: int, snapshot: Snapshot) -> None:
        """Keeps the metrics of a worker.

        A family that is missing, because the worker had no files left to read it from, keeps its last values.
        """
        self._last[index] = renewed(self._last[index], snapshot)

    def forget(self, index: int, model: list[str], counts: Snapshot) -> None:
        """Moves the counts of a model that a worker has dropped to the ended ones, so that no sum decreases."""
        drop(self._last[index], [(model[0], model[1])])
        self._ended.add(counts, [(model[0], model[1])])

    def end(self, index: int) -> None:
        """Adds the counts of a worker that has ended to the ended ones; exact counts come from the shared memory."""
        counts = self._memory.counts[index]
        # A model without a row in the memory has the counts of its last snapshot.
        self._ended.add(with_rows(self._last[index], snapshot_of(*counts.counts())), counts.model_rows())
        counts.clear()
        self._last[index] = {}

    def snapshots_to_add(self, index: int, own: Snapshot, other_indices: Iterable[int]) -> list[Snapshot]:
        """The snapshots that the worker `index` adds to its `own` one, to report the counts of the whole service.

        They are, in this order: the families that `own` lacks, as they were in the worker's last snapshot; the last
        snapshots of the workers `other_indices`; and the sum over the workers that have ended.
        """
        # A worker that starts may still count the models of ended ones, so nothing is forgotten until all are ready.
        if self._ended.snapshot and (self._memory.table["state"] == READY).all():
            self._ended.forget({model for counts in self._memory.counts for model in counts.model_rows()}, KEPT_GONE)
        last = self._last[index].get("families", {})
        missing = {name: last[name] for name in last.keys() - own["families"].keys()}
        return [
            {"families": missing},
            *(self._last[other] for other in other_indices),
            self._ended.snapshot,
        ]
