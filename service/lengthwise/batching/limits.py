"""What bounds one batch: its rows, its padded steps and its predicted seconds.

They are the operator's, of a model and its device. For the next batch, the deadline of its anchor is added (`plan`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lengthwise.batching.cost import CostTable
from lengthwise.batching.pending import WaitingSequence


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The limits of one batch. A single sequence that exceeds them still runs, unbatched."""

    rows: int = 64  # most sequences
    padded_steps: int = 16_384  # most rows x width
    seconds: float = float("inf")  # longest predicted run
    turn_seconds: float = float("inf")  # the same for rows past `Column.enough_rows`: they gain little, others wait
    multiple: int = 1  # widths are rounded up to a multiple of it
    by_table: bool = (
        False  # not the operator's: a device's table lowers them (`buckets.lowered`), a processor's may raise steps
    )
    share: float = 1.0  # by arrival: the part of the queue that one runner takes, if that is more than enough rows

    def most_rows(self, width: int) -> int:
        """Most rows of a batch of this width, in steps; at least 1."""
        return min(self.rows, self.padded_steps // (-(-width // self.multiple) * self.multiple)) or 1

    def at_most(self, rows: int | None) -> BatchLimits:
        """These limits with at most `rows` rows; None for no further limit."""
        return self if rows is None or rows >= self.rows else replace(self, rows=rows)

    def longest_seconds(self, width: int, cost: CostTable, *, tail: float = 1.0) -> float:
        """The longest predicted run of a batch of this width whatever its deadlines, in seconds before the drift.

        The shorter of two times:

        1. `self.seconds`, which no run may exceed.
        2. A fair turn, after which others run: `self.turn_seconds`; but a batch with enough rows to be cheap may always
           run, and take `tail` times as long.
        """
        column = cost.column(width, self.rows)
        seconds_of_enough = column.seconds[min(column.enough_rows, self.most_rows(width))]
        return min(self.seconds / cost.drift, max(self.turn_seconds / cost.drift, tail * seconds_of_enough))

    def allowed_seconds(
        self, anchor: WaitingSequence, width: int, cost: CostTable, now: float, *, tail: float = 1.0
    ) -> float:
        """The longest predicted run of a batch of this width with the anchor, in seconds before the drift.

        It is `longest_seconds`, or the time to the anchor's deadline if that is shorter, unless even the anchor alone
        takes longer: it is late anyway.
        """
        longest = self.longest_seconds(width, cost, tail=tail)
        slack = (anchor.deadline - now) / cost.drift
        return min(longest, slack) if slack >= cost.seconds_of(1, anchor.width) else longest
