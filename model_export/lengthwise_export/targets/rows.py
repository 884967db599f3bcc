"""Finds out whether a module that takes the steps alone keeps rows apart, or takes its axes in another order.

A model with lengths is checked for this with its padding. A model that is to be mended is not checked before the mend,
and a mend with the wrong order of axes would be no use.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from torch import nn

from lengthwise.errors import ConfigurationError
from lengthwise.padding import PaddedBatch, pad
from lengthwise.runtime.manifest import StepInput
from lengthwise_export.checking.alternative_calls import alternative_calls
from lengthwise_export.checking.recording import Subject
from lengthwise_export.checking.trace_torch import TorchSubject
from lengthwise_export.checking.trials import Sampler
from lengthwise_export.errors import RunError
from lengthwise_export.tracing.call_signature import CallSignature, OutputSelector

_ROWS: Final = 3
_WIDTHS: Final = (11, 64, 515)
"""Widths to try; convolutions without padding need many steps."""
_SAME: Final = 1e-4
"""Answers that differ by less are the same, in units of max(1, |logit|)."""


def require_order_of_axes(
    text: str, module: nn.Module, steps: StepInput, signature: CallSignature, select_output: OutputSelector
) -> None:
    """Makes sure that a module does not mix rows only because it takes its axes in another order."""
    if _keeps_rows_apart(TorchSubject(module, steps, signature=signature, select_output=select_output)):
        return
    for other in alternative_calls(signature):
        if steps.kind == "tokens" and other.signature.channels_first:
            continue
        if _keeps_rows_apart(TorchSubject(module, steps, signature=other.signature, select_output=select_output)):
            raise ConfigurationError(
                f"{text}: the answer to a sequence depends on the other rows of its batch, or is not in its row. It "
                f"keeps to its row {other.runs}"
            )


def _keeps_rows_apart(subject: Subject) -> bool:
    """Whether there is one answer for each row (and step), which another first row does not change."""
    sampler = Sampler(subject.steps, seed=0)
    for width in _WIDTHS:
        batch = pad([sampler.sequence(width) for _ in range(_ROWS)], width=width)
        changed = batch.steps.copy()
        changed[0] = sampler.sequence(width)
        try:
            before = subject.answer(batch).logits
            after = subject.answer(PaddedBatch(changed, batch.lengths)).logits
        except RunError:
            continue
        if before.shape[:-1] not in ((_ROWS,), (_ROWS, width)) or before.shape != after.shape:
            return False
        gap = np.abs(before[1:] - after[1:]).max()
        return bool(gap <= _SAME * max(1.0, float(np.abs(before[1:]).max())))
    return False
