"""The table of layers in docs/masking.md: what padding does to each. `python -m benchmarks.layer_table`.

    layers.toml -> expression -> module -> the trials of `lengthwise check` -> figures -> verdict -> table

Every layer, and what to write in its place, is an expression that is evaluated as it stands: what the table prints is
what was measured. The weights are random, biases and running statistics too, as training leaves them.

| verdict | means |
|---|---|
| safe | no answer moves, whatever stands at padding, and zeros there stay zeros |
| needs care | right while padding is zeros, and so not behind any layer; or it makes them something else |
| leaks | an answer moves although padding is zeros: with the width, or with the neighbours |
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import click
import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from benchmarks import keras_column
from benchmarks.keras_column import KerasFigures
from lengthwise.commands.command import Command, show_json
from lengthwise.padding import pad
from lengthwise.runtime.manifest import StepInput
from lengthwise.verification.promises import ROUNDING
from lengthwise_export.checking.baseline import Baseline
from lengthwise_export.checking.trace_torch import TorchSubject
from lengthwise_export.checking.trials import Sampler, base_sequences, choose_batch_sizes, lone_trials, trials
from lengthwise_export.errors import RunError
from lengthwise_export.masks import step_mask
from lengthwise_export.tracing.call_signature import CallSignature
from lengthwise_export.tracing.outputs import output_selector

LAYERS = Path(__file__).with_name("layers.toml")
LONGEST = 40

Verdict = Literal["safe", "needs care", "leaks"]


@dataclass(frozen=True, slots=True)
class Case:
    """One layer in its usual form: an entry of `layers.toml`."""

    group: str  # what kind of layer it is
    name: str
    written: str
    instead: str | None = None  # the one to write where that is not safe
    # expressions of torch modules, by the names that they have in the other expressions
    layers: dict[str, str] | None = None
    tokens: bool = False  # whether `x` holds token ids
    keras: str | None = None  # the same in Keras, behind a Masking layer; None where Keras has no such layer


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one expression; differences are in units of max(1, largest value)."""

    zeros: float  # how far an answer moves with the width, the neighbours or their lengths, padding being zeros
    junk: float  # the same if padding is replaced by other finite values; at least as much as with zeros
    not_finite: float | None  # the same with NaN, Inf and 1e30; None for tokens
    becomes: float | None  # the largest absolute value where zeros stood at padding; None where the steps are gone

    @property
    def verdict(self) -> Verdict:
        """The verdict of the figures."""
        if self.zeros > ROUNDING:
            return "leaks"
        return "safe" if self.keeps_out_all and not self.becomes else "needs care"

    @property
    def keeps_out_all(self) -> bool:
        """Whether no answer changes with the values at padding."""
        return self.junk <= ROUNDING and (self.not_finite is None or self.not_finite <= ROUNDING)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    case: Case
    written: Figures
    instead: Figures | None
    keras: KerasFigures | None


class Applied(nn.Module):
    """An expression over steps and lengths, with its layers."""

    def __init__(self, expression: str, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self._code = compile(expression, expression, "eval")

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """`[rows, width, features]`, or `[rows, features]`, of `x [rows, width, 4]` or token ids `[rows, width]`."""
        answer: Tensor = eval(self._code, {"torch": torch, "F": functional, **seen(x, lengths), **self.layers})
        return answer


def seen(x: Tensor, lengths: Tensor) -> dict[str, Any]:
    """The names that an expression can use beside its layers; docs/masking.md says the same to readers."""
    width = x.size(1)
    valid = step_mask(lengths, width)

    def keep(y: Tensor) -> Tensor:
        return torch.where(valid[..., None], y, 0)

    def total(y: Tensor) -> Tensor:
        return keep(y).sum(1, keepdim=True)

    def packed(rnn: nn.Module, y: Tensor) -> tuple[Tensor, Any]:
        steps, state = rnn(pack_padded_sequence(y, lengths, batch_first=True, enforce_sorted=False))
        return pad_packed_sequence(steps, batch_first=True, total_length=width)[0], state

    labels = torch.where(valid, x.nan_to_num().argmax(2), 0) if x.dim() == 3 else x
    return {
        "x": x,
        "lengths": lengths,
        "width": width,
        "valid": valid,
        "n": lengths[:, None, None],
        "keep": keep,
        "total": total,
        "packed": packed,
        "labels": labels,
    }


def cases() -> list[Case]:
    """The entries of `layers.toml`."""
    return [Case(**entry) for entry in tomllib.loads(LAYERS.read_text())["layer"]]


def measure(case: Case) -> Row:
    """Measures a layer, its replacement, and what Keras has for it."""
    instead = None if case.instead is None else figures(case.instead, case)
    keras = None if case.keras is None else keras_column.measure(case.keras, tokens=case.tokens)
    return Row(case, figures(case.written, case), instead, keras)


def figures(expression: str, case: Case) -> Figures:
    """Runs the trials of `lengthwise check` on one expression."""
    subject = TorchSubject(
        Applied(expression, trained(case.layers or {})),
        StepInput(kind="tokens", vocabulary=12) if case.tokens else StepInput(features=4),
        signature=CallSignature(),
        select_output=output_selector(None),
    )
    sampler = Sampler(subject.steps, seed=0)
    sizes = choose_batch_sizes(subject.sizes, widest=LONGEST)
    sequences = base_sequences(sampler, sizes)
    batch = pad(sequences, width=sizes.width)
    first = Baseline(sequences, batch, subject.answer(batch))
    moved = {"zeros": 0.0, "padding": 0.0, "poison": 0.0}
    for trial in (*trials(sequences, sizes, sampler), *lone_trials(sequences, [None] * len(sequences))):
        kind = trial.change if trial.change in moved else "zeros"
        try:
            answer = subject.answer(trial.batch)
        except RunError:
            # A norm of one step has no variance: torch refuses it.
            if trial.batch.rows > 1:
                raise
            continue
        moved[kind] = max(moved[kind], *(first.row_difference(answer, row, other) for row, other in trial.rows))
    return Figures(
        zeros=moved["zeros"],
        junk=max(moved["padding"], moved["zeros"]),
        not_finite=None if case.tokens else moved["poison"],
        becomes=_at_padding(first),
    )


def trained(layers: dict[str, str]) -> dict[str, nn.Module]:
    """The layers with every weight and statistic as training leaves it: none exactly 0 or 1."""
    torch.manual_seed(0)
    made: dict[str, nn.Module] = {
        name: eval(expression, {"nn": nn, "torch": torch}) for name, expression in layers.items()
    }
    for name, tensor in nn.ModuleDict(made).state_dict().items():
        # Training holds the vector of padding_idx at zero too.
        if tensor.is_floating_point() and "table" not in name:
            moved = tensor + 0.3 * torch.randn_like(tensor)
            tensor.copy_(moved.abs() if name.endswith("running_var") else moved)
    return made


def _at_padding(first: Baseline) -> float | None:
    if first.answer.logits.ndim != 3:
        return None
    padding = ~step_mask(torch.from_numpy(first.batch.lengths), first.batch.width)
    return float(abs(first.answer.logits[padding.numpy()]).max())


def cells(row: Row) -> list[str]:
    """A line of the table in docs/masking.md."""
    written, instead = row.written, row.instead
    return [
        row.case.name,
        f"`{row.case.written}`",
        f"**{written.verdict}**" if written.verdict == "leaks" else written.verdict,
        _number(written.zeros),
        _number(written.junk),
        "" if written.not_finite is None else ("out" if written.not_finite <= ROUNDING else "in"),
        "" if written.becomes is None else f"{written.becomes:.2g}",
        "" if row.case.instead is None else f"`{row.case.instead}`",
        "" if instead is None else f"{instead.verdict}, {_number(instead.junk)}",
        keras_column.cell(row.case.keras, row.keras),
    ]


def _number(difference: float) -> str:
    return f"{difference:.2g}" if math.isfinite(difference) else "not finite"


def _on_terminal(rows: Sequence[Row]) -> Table:
    """The same for 80 columns: with the expressions below the layer's name."""
    shown = Table(box=box.SIMPLE)
    shown.add_column("layer, as written", overflow="fold")
    for name in ("verdict", "zeros", "junk", "NaN", "0 becomes"):
        shown.add_column(name, no_wrap=True)
    for row in rows:
        layer, written, *figures, instead, then, keras = (cell.strip("*`") for cell in cells(row))
        told = Text.assemble(
            (layer, "bold"),
            f"\n{written}",
            f"\ninstead: {instead}\nthen {then}" if instead else "",
            f"\nKeras: {keras.replace('`', ':').replace('*', '')}" if keras else "",
        )
        shown.add_row(told, *map(Text, figures), end_section=True)
    return shown


@click.command(cls=Command)
@click.option("--only", default="", help="Layers whose group or name contains this.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def main(only: str, as_json: bool) -> None:
    """Measures what padding does to each kind of layer."""
    torch.set_num_threads(1)
    chosen = [case for case in cases() if only.lower() in f"{case.group} {case.name}".lower()]
    if not chosen:
        raise click.UsageError(f"no layer is called {only}")
    rows = [measure(case) for case in track(chosen, "layers measured", console=Console(stderr=True), transient=True)]
    if as_json:
        show_json([asdict(row) | {"verdict": row.written.verdict} for row in rows])
    else:
        Console().print(_on_terminal(rows))


if __name__ == "__main__":
    main()
