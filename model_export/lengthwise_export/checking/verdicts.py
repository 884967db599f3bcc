"""What the results of all trials say: the verdict, and the lengths at which answers moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from lengthwise_export.checking.baseline import Baseline
from lengthwise_export.checking.leaks import FailedTrial
from lengthwise_export.checking.report import TrialResult, Verdict
from lengthwise_export.checking.trials import CheckTrial

ONLY_SHORT: Final = (
    "only sequences of fewer than {0} steps get another answer: with --min-length {0} padding reaches no answer, and "
    "the service refuses shorter ones"
)
"""A note for a leak that only short sequences have."""

_MAX_NAMED: Final = 5  # at most this many trials are named in the reason


def verdict_and_reason(
    failed: Sequence[FailedTrial], results: Sequence[TrialResult], why_filled: str = ""
) -> tuple[Verdict, str]:
    """The verdict that the trials show, and the reason for it as text.

    Args:
        failed: The trials in which an answer changed. Those of finite padding are leaks; the others are warnings.
        results: The results of all trials.
        why_filled: How padding gets past the finite number of a mask; empty if it does not.
    """
    finite = [one for one in failed if one.trial.change != "poison"]
    trial_names = [one.trial.name for one in finite or failed]
    more = f"; and {len(trial_names) - _MAX_NAMED} more" if len(trial_names) > _MAX_NAMED else ""
    names = "; ".join(trial_names[:_MAX_NAMED]) + more
    if finite and all(one.nan_with for one in finite):
        return "leak", f"the answer to a sequence is finite alone, and not finite in a padded batch: {names}"
    if finite:
        return "leak", f"the answer to a sequence changes with: {names}"
    warnings = [why_filled] if why_filled else []
    warnings += [f"only NaN, Inf or an overflow in the padding reaches an answer: {names}"] if failed else []
    if warnings:
        return "warning", "; ".join(warnings)
    raising = sum(result.difference is None for result in results)
    lengths = f"; {raising} raised, at lengths that the model does not accept" if raising else ""
    return "sound", f"no answer changed in {len(results) - raising} trials{lengths}"


@dataclass(slots=True)
class PaddedLengths:
    """The longest padded sequences whose answer moved, and whose answer did not, in steps; 0 if there is none."""

    moved: int = 0
    steady: int = 0

    def note(
        self,
        baseline: Baseline,
        trial: CheckTrial,
        differences: Mapping[tuple[int, int], float],
        tolerance: float,
    ) -> None:
        """Notes the sequences of a trial that are padded, in it or in the baseline, by how far their answers moved."""
        width, lengths = max(baseline.batch.width, trial.batch.width), baseline.batch.lengths.tolist()
        padded = {pair: lengths[pair[0]] for pair in differences if lengths[pair[0]] < width}
        moved = {length for pair, length in padded.items() if not differences[pair] <= tolerance}  # NaN moves, too
        self.moved, self.steady = max([self.moved, *moved]), max([self.steady, *({*padded.values()} - moved)])

    @property
    def may_hold_from(self) -> int | None:
        """The length from which on no answer moved; None if the longest padded sequence moved as well."""
        return self.moved + 1 if self.moved < self.steady else None
