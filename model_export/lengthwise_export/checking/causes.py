"""Why an operator leaks, and code that fixes it, in the names of the user's module.

`rule.py` selects the rule by the operator and by what the trial changed (`Change`). The code in a rule contains
`$inputs` (the operator's input), `$layer` (the layer that it is in), `$lengths`, `$width`, `$valid` (a mask of valid
steps) and `$first` (the index of the first valid step of each row), which `explain` replaces. Where a mask is the fix,
and the user's statement is known, `masked_statement.py` writes the fix.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from string import Template
from typing import Final

from lengthwise_export.checking import rule
from lengthwise_export.checking.masked_statement import (
    NAN,
    possible_callees,
    rows_and_steps_axes,
    write_lengths,
    write_masked,
)
from lengthwise_export.checking.recording import DEFAULT_NAMES, ArgumentNames, Operation
from lengthwise_export.checking.rule import Cause
from lengthwise_export.checking.trials import Change, Geometry
from lengthwise_export.layouts import RIGHT

_SOFTMAX: Final = re.compile(r"(log_?)?softm(ax|in)|.*attention.*", re.IGNORECASE)
BY_PLACE: Final = re.compile("(Global)?MaxPool|Reduce(Max|Min)|Arg(Max|Min)|TopK")
"""Operators of ONNX to which a missing value (NaN) is the largest, or nothing, by its place among the steps.

The functions of torch return NaN wherever it is.
"""
_OF_THE_SIDE: Final = re.compile(r"flip|roll|lstm|gru|rnn_(tanh|relu)|__getitem__|select")
"""Operators whose statements `masked_statement.py` rewrites for rows that are padded on the right."""


def explain_nan(operation: Operation, names: ArgumentNames, batch: Geometry, *, at_valid_steps: bool) -> Cause:
    """The cause of a leak at an operation that gives NaN in a padded batch, and a fix.

    - A softmax that is NaN at valid steps: the scores of padding are +inf, and are to be the lowest number.
    - Otherwise the result of the operation is masked, such as the scores `[rows, width, width]` of an attention; or its
      input, where the result has no axis of steps.

    `at_valid_steps` is whether the result is NaN there, and not at padding alone.
    """
    if BY_PLACE.fullmatch(operation.kind):
        return rule.rules()["LW805"].cause()
    is_softmax = not batch.is_packed and _SOFTMAX.fullmatch(operation.kind) is not None
    if is_softmax and at_valid_steps:
        return rule.rules()["LW102"].cause(fix=explain(operation, "padding", names, batch).fix)
    shape = operation.outputs[0][1].shape
    row_axes, step_axes = (
        [axis for axis, size in enumerate(shape) if size == batch_size] for batch_size in (batch.rows, batch.width)
    )
    fix = None
    if row_axes and step_axes:
        scores = replace(operation, input_shape=shape, reduced_axes=(step_axes[0],))
        fix = write_masked(scores, (row_axes[0], step_axes[0]), names, NAN)
    fix = explain(operation, "poison", names, batch).fix if fix is None else fix
    return rule.rules()["LW108" if is_softmax else "LW802"].cause(fix=fix)


def explain(
    operation: Operation,
    change: Change,
    names: ArgumentNames = DEFAULT_NAMES,
    batch: Geometry | None = None,
    operations: Sequence[Operation] = (),
) -> Cause:
    """The cause of a leak at an operation, and a fix in the names of the user's module.

    Args:
        operation: The first operation whose output changes.
        change: What the trial changed.
        names: The names of the module's arguments.
        batch: The batch in which the operation was recorded; None if that is not known.
        operations: The operations of the run; without them, no number of all lengths is replaced.
    """
    # 1. What changes its output, whatever the trial changed: for an operation along the steps that is the padding, for
    #    one along the rows the other rows.
    axes = None if batch is None else rows_and_steps_axes(operation, batch)
    if axes is not None:
        row_axis, _ = axes
        if row_axis in operation.reduced_axes:
            change = "neighbours" if change in ("padding", "width", "batch") else change
        elif change in ("neighbours", "order", "lengths"):
            change = "padding"
    # 2. The table of rules has the cause for this kind of operator.
    layout = RIGHT if batch is None else batch.layout
    kind = "loop" if operation.is_loop else operation.kind.lower()
    if change == "width" and batch is not None and layout.is_right_padded and _is_position(operation, batch):
        kind = "position"
    rule_entry = rule.select("operators", kind, change, layout=layout.option)
    # 3. The fix is that of the framework, or the user's statement rewritten, or else the code of the rule.
    fix = names.fix
    of_side = not layout.is_right_padded and _OF_THE_SIDE.fullmatch(kind)  # then the code of the rule is for that side
    if fix is None and axes and not layout.packed and not of_side:
        fix = write_masked(operation, axes, names)
    if fix is None and batch is not None and layout.is_right_padded:
        fix = write_lengths(operation, batch, names, operations)
    return Cause(
        rule_entry.why, _fix_of_rule(rule_entry.fix, operation, names) if fix is None else fix, rule_entry.code
    )


def _fix_of_rule(code: str, operation: Operation, names: ArgumentNames) -> str:
    """The code of a rule's fix, with the names of the user's module."""
    code_before = "" if operation.location is None else f"{rule.TO_ADAPT}; inputs: what the operator gets\n"
    if names.role != "lengths" and "$lengths" in code:
        code_before += f"lengths = {names.lengths_or_mask if names.role == 'mask' else f'({names.valid})'}.sum(1)\n"
    lengths = names.lengths_or_mask if names.role == "lengths" else "lengths"
    layer = min((name for name in possible_callees(operation) if name.startswith("self.")), key=len, default="layer")
    words = {"lengths": lengths, "width": names.width, "valid": names.valid, "first": names.first, "layer": layer}
    return Template(code_before + code).substitute(words, inputs="inputs")


def _is_position(operation: Operation, batch: Geometry) -> bool:
    """Whether the output of an operation has an axis of steps and none of rows, as positions have."""
    shape = operation.outputs[0][1].shape if operation.outputs else ()
    return batch.width in shape and batch.rows not in shape
