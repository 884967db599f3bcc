"""The operator `lengthwise::recurrent_cells`: one recurrent layer with any of ONNX's activations and directions.

A layer from elsewhere may run backwards only, have other activations than `torch.nn`'s, or apply a GRU's reset gate
before the matrix product. In ONNX that is a single node; in torch a loop over the steps computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import torch
from onnxscript import ir, opset18
from torch import Tensor
from torch.nn import functional

# onnxscript's type annotations are for scripts. During an export its operators take and return `ir.Value`s.
op: Final[Any] = opset18

GATES: Final[Mapping[str, int]] = MappingProxyType({"LSTM": 4, "GRU": 3, "RNN": 1})
"""The kinds of cells, with the number of their gates."""
_REVERSED: Final = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


@dataclass(frozen=True, slots=True)
class CellActivation:
    """An activation of a recurrent layer: its name in ONNX, its parameters there, and the same in torch."""

    name: str
    compute: Callable[[Tensor], Tensor]
    alpha: float | None = None
    beta: float | None = None


ACTIVATIONS: Final[Mapping[str, CellActivation]] = MappingProxyType(
    {
        "tanh": CellActivation("Tanh", torch.tanh),
        "sigmoid": CellActivation("Sigmoid", torch.sigmoid),
        "relu": CellActivation("Relu", torch.relu),
        "linear": CellActivation("Affine", torch.clone, 1.0, 0.0),
        "hard_sigmoid": CellActivation("HardSigmoid", functional.hardsigmoid, 1 / 6, 0.5),
        "elu": CellActivation("Elu", functional.elu, 1.0),
        "leaky_relu": CellActivation("LeakyRelu", lambda values: functional.leaky_relu(values, 0.2), 0.2),
        "softsign": CellActivation("Softsign", functional.softsign),
        "softplus": CellActivation("Softplus", functional.softplus),
    }
)
"""The activations, by the names that they have in Keras."""


@torch.library.custom_op("lengthwise::recurrent_cells", mutates_args=())
def recurrent_cells(
    values: Tensor,
    lengths: Tensor | None,
    inputs: Tensor,
    states: Tensor,
    biases: Tensor,
    initial_state: Tensor | None,
    initial_cell: Tensor | None,
    kind: str,
    activations: str,
    direction: str,
    reset_after: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs one recurrent layer over `values [rows, width, features]`; without lengths every row has the full width.

    Weights: `inputs [directions, gates * hidden, features]` with the gates in ONNX's order, `states [directions, gates
    * hidden, hidden]`, `biases [directions, 2 * gates * hidden]` of inputs, then states. Initial states are
    `[directions, rows, hidden]`, None for zeros. `activations` are names in `ACTIVATIONS` with commas, in ONNX's order,
    the same in each direction. Returns the outputs `[rows, width, directions * hidden]`, 0 at padding; the last states;
    the last cells.
    """
    rows, width, _ = values.shape
    hidden = states.shape[2]
    if lengths is None:
        lengths = torch.full((rows,), width, dtype=torch.int64)
    compute = [ACTIVATIONS[name].compute for name in activations.split(",")]
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for place, backwards in enumerate(_REVERSED[direction]):
        step = _STEPS[kind](states[place], biases[place], compute, reset_after)
        projected = functional.linear(values, inputs[place], biases[place, : GATES[kind] * hidden])
        state = values.new_zeros(rows, hidden) if initial_state is None else initial_state[place].clone()
        cell = values.new_zeros(rows, hidden) if initial_cell is None else initial_cell[place].clone()
        outputs = values.new_zeros(rows, width, hidden)
        for at in reversed(range(width)) if backwards else range(width):
            valid = (at < lengths).unsqueeze(1)
            new_state, new_cell = step(projected[:, at], state, cell)
            state, cell = torch.where(valid, new_state, state), torch.where(valid, new_cell, cell)
            outputs[:, at] = torch.where(valid, new_state, 0.0)
        found.append((outputs, state, cell if kind == "LSTM" else state.clone()))
    merged, last, cells = (list(each) for each in zip(*found, strict=True))
    return torch.cat(merged, dim=2), torch.stack(last), torch.stack(cells)


@recurrent_cells.register_fake
def _shapes(
    values: Tensor, lengths: Tensor | None, inputs: Tensor, states: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    rows, width = values.shape[:2]
    directions, hidden = states.shape[0], states.shape[2]
    state = values.new_empty(directions, rows, hidden)
    return values.new_empty(rows, width, directions * hidden), state, torch.empty_like(state)


_Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From the projected input `[rows, gates * hidden]`, the state and the cell to the next state and cell."""


def _lstm(states: Tensor, biases: Tensor, compute: Sequence[Callable[[Tensor], Tensor]], _: bool) -> _Step:
    gate, candidate, output = compute
    added = biases[biases.shape[0] // 2 :]

    def step(projected: Tensor, state: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        into, out, forget, new = (projected + functional.linear(state, states, added)).chunk(4, dim=1)
        cell = gate(forget) * cell + gate(into) * candidate(new)
        return gate(out) * output(cell), cell

    return step


def _gru(states: Tensor, biases: Tensor, compute: Sequence[Callable[[Tensor], Tensor]], reset_after: bool) -> _Step:
    gate, candidate = compute
    gates, last = states.chunk(3), states.shape[1]
    added = biases[biases.shape[0] // 2 :]

    def step(projected: Tensor, state: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        update, reset, new = projected.chunk(3, dim=1)
        of_update, of_reset, of_new = (added[at * last : (at + 1) * last] for at in range(3))
        update = gate(update + functional.linear(state, gates[0], of_update))
        reset = gate(reset + functional.linear(state, gates[1], of_reset))
        if reset_after:
            new = candidate(new + reset * functional.linear(state, gates[2], of_new))
        else:
            new = candidate(new + functional.linear(reset * state, gates[2], of_new))
        return update * state + (1 - update) * new, cell

    return step


def _rnn(states: Tensor, biases: Tensor, compute: Sequence[Callable[[Tensor], Tensor]], _: bool) -> _Step:
    added = biases[biases.shape[0] // 2 :]

    def step(projected: Tensor, state: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        return compute[0](projected + functional.linear(state, states, added)), cell

    return step


_STEPS: Final = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}


def _to_onnx(
    values: ir.Value,
    lengths: ir.Value | None,
    inputs: ir.Value,
    states: ir.Value,
    biases: ir.Value,
    initial_state: ir.Value | None,
    initial_cell: ir.Value | None,
    kind: str,
    activations: str,
    direction: str,
    reset_after: bool,
) -> tuple[Any, Any, Any]:
    """`recurrent_cells` in ONNX: one node between two transposes, as onnxruntime does not support `layout=1`."""
    directions, _, hidden = ir.Shape(states.shape or ()).numpy()
    ends = None if lengths is None else op.Cast(lengths, to=ir.DataType.INT32)
    chosen = [ACTIVATIONS[name] for name in activations.split(",")] * directions
    names = [each.name for each in chosen]
    form: dict[str, Any] = {"hidden_size": hidden, "direction": direction, "activations": names}
    for number in ("alpha", "beta"):  # of those activations that have one, in their order
        given = [value for each in chosen if (value := getattr(each, number)) is not None]
        if given:
            form[f"activation_{number}"] = given
    before = (op.Transpose(values, perm=[1, 0, 2]), inputs, states, biases, ends, initial_state)
    if kind == "LSTM":
        outputs, state, cell = op.LSTM(*before, initial_cell, **form)
    else:
        outputs, state = (
            op.GRU(*before, **form, linear_before_reset=int(reset_after)) if kind == "GRU" else op.RNN(*before, **form)
        )
        cell = state
    # [width, directions, rows, hidden] to rows first
    merged = op.Reshape(op.Transpose(outputs, perm=[2, 0, 1, 3]), op.Constant(value_ints=[0, 0, directions * hidden]))
    return merged, state, cell


TRANSLATIONS: Final[dict[Callable[..., Any], Callable[..., Any]]] = {
    torch.ops.lengthwise.recurrent_cells.default: _to_onnx
}
"""The translation to ONNX."""
