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

        A family that they lack for once, as it has no files left to read it from, stays as it was.
        """
        self._last[index] = renewed(self._last[index], snapshot)

    def forget(self, index: int, model: list[str], counts: Snapshot) -> None:
        """Keeps the counts of a model that a worker has dropped: others may still have it, and no sum may go back."""
        drop(self._last[index], [(model[0], model[1])])
        self._ended.add(counts, [(model[0], model[1])])

    def end(self, index: int) -> None:
        """Adds the counts of a worker that has ended to the sum; exact ones come from the shared memory."""
        counts = self._memory.counts[index]
        # A model without a row in the memory has the numbers of its last snapshot.
        self._ended.add(with_rows(self._last[index], snapshot_of(*counts.counts())), counts.model_rows())
        counts.clear()
        self._last[index] = {}

    def beside(self, index: int, own: Snapshot, others: Iterable[int]) -> list[Snapshot]:
        """The snapshots to add to a worker's `own`: of other workers, of ended ones, and of families it lacks."""
        if self._ended.snapshot and (self._memory.table["state"] == READY).all():  # one that starts may count them yet
            self._ended.forget({model for counts in self._memory.counts for model in counts.model_rows()}, KEPT_GONE)
        last = self._last[index].get("families", {})
        lacked = {name: last[name] for name in last.keys() - own["families"].keys()}
        return [{"families": lacked}, *(self._last[other] for other in others), self._ended.snapshot]
