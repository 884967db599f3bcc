"""Why an operator leaks, and code that fixes it, in the names of the user's module.

`rule.py` selects the rule by the operator and the change that moved its output. The code in it contains `$inputs` (the
operator's input), `$layer` (the layer that it is in), `$lengths`, `$width` and `$valid` (a mask of valid steps), which
`explain` replaces. Where a mask is the fix, and the user's statement is known, `masked_statement.py` writes the fix
instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from string import Template
from typing import TYPE_CHECKING, Final, Literal

from lengthwise_export.checking import rule
from lengthwise_export.checking.masked_statement import NAN, axes_of_steps, called_as, write_lengths, write_masked
from lengthwise_export.checking.rule import Cause
from lengthwise_export.checking.trials import Change, Geometry
from lengthwise_export.layouts import RIGHT

if TYPE_CHECKING:
    from lengthwise_export.checking.recording import Operation

SecondRole = Literal["lengths", "mask", "padding-mask"]  # As `Role` in `tracing.call_signature`


@dataclass(frozen=True, slots=True)
class ArgumentNames:
    """The names of a module's arguments, for the code of a fix."""

    width: str = "width"
    second: str = "lengths"
    role: SecondRole = "lengths"
    # Code that is shown in the place of that of the table, for a model of another framework; None for the table's
    fix: str | None = None
    is_at_end: bool = False  # Whether each sequence is at the end of its row

    @property
    def valid(self) -> str:
        """Code for a mask `[rows, width]` that is true at valid steps."""
        if self.role == "lengths":
            steps, lengths = f"torch.arange({self.width}, device={self.second}.device)", f"{self.second}[:, None]"
            return f"{steps} >= {self.width} - {lengths}" if self.is_at_end else f"{steps} < {lengths}"
        return f"{self.second}.bool()" if self.role == "mask" else f"~{self.second}.bool()"


DEFAULT_NAMES: Final = ArgumentNames()  # used if the names in the module are not known

_TO_ADAPT: Final = "# to adapt, not to paste: more than this statement has to change; inputs: what the operator gets\n"


def explain_nan(at: Operation, names: ArgumentNames, run: Geometry) -> Cause:
    """The cause of a leak at an operation that gives NaN in a padded run, and a fix."""
    shape = at.outputs[0][1].shape
    rows, steps = ([axis for axis, size in enumerate(shape) if size == own] for own in (run.rows, run.width))
    written = None
    if rows and steps:  # of the scores [rows, width, width] of an attention, whole steps
        written = write_masked(replace(at, shape=shape, reduced=(steps[0],)), (rows[0], steps[0]), names, NAN)
    return rule.rules()["LW802"].cause(fix=explain(at, "poison", names).fix if written is None else written)


def explain(at: Operation, change: Change, names: ArgumentNames = DEFAULT_NAMES, run: Geometry | None = None) -> Cause:
    """The cause of a leak at an operation of a run, and a fix in the names of the user's module."""
    axes = None if run is None else axes_of_steps(at, run)
    reduces_rows = axes is None or axes[0] in at.reduced
    if not reduces_rows and change in ("neighbours", "order", "lengths"):  # so the steps move it
        change = "padding"
    elif axes is not None and reduces_rows and change in ("padding", "width", "batch"):  # those of other rows
        change = "neighbours"
    layout = RIGHT if run is None else run.layout
    kind = "loop" if at.is_loop else at.kind.lower()
    if change == "width" and run is not None and layout.is_usual and _is_position(at, run):
        kind = "position"
    entry = rule.select("operators", kind, change, layout=layout.word)
    if names.fix is not None:
        return Cause(entry.why, names.fix, entry.code)
    written = write_masked(at, axes, names) if axes and not layout.packed else None
    if run is not None and written is None and layout.is_usual:
        written = write_lengths(at, run, names)
    if written is not None:
        return Cause(entry.why, written, entry.code)
    before = "" if at.location is None else _TO_ADAPT
    if names.role != "lengths" and "$lengths" in entry.fix:
        before += f"lengths = {names.second if names.role == 'mask' else f'({names.valid})'}.sum(1)\n"
    words = {"lengths": names.second if names.role == "lengths" else "lengths", "width": names.width}
    layer = min((name for name in called_as(at) if name.startswith("self.")), key=len, default="layer")
    fix = Template(before + entry.fix).substitute(words, valid=names.valid, layer=layer, inputs="inputs")
    return Cause(entry.why, fix, entry.code)


def _is_position(at: Operation, run: Geometry) -> bool:
    """Whether its output has the steps of a batch, and not its rows, as positions have."""
    shape = at.outputs[0][1].shape if at.outputs else ()
    return run.width in shape and run.rows not in shape
