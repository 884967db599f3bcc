"""Operators for recurrent layers with lengths, for torch and in ONNX: `recurrent` and `recurrent_cells`.

torch's layers take lengths only as a packed sequence, which no exporter can handle; ONNX's operators take a padded
batch and `sequence_lens`. `recurrent` is such an operator for torch: outputs are exactly 0 at padding, last states are
those at the last valid step of each row, and the reverse direction starts there, as on a packed sequence.

A layer from elsewhere may run backwards only, have other activations than `torch.nn`'s, or apply a GRU's reset gate
before the matrix product: `recurrent_cells` is one such layer. In ONNX that is a single node; in torch a loop.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import torch
from onnxscript import ir, opset18
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

# onnxscript's type annotations are for scripts. During an export its operators take and return `ir.Value`s.
op: Final[Any] = opset18

# The blocks of torch's weights, in the order in which ONNX stacks them.
# LSTM: torch i f g o, ONNX i o f c. GRU: torch r z n, ONNX z r h. See the operators' pages in onnx's Operators.md.
_ONNX_FROM_TORCH: Final = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN_TANH": (0,), "RNN_RELU": (0,)}


class LayerWeights(nn.Module):
    """The weights of one layer in ONNX layout, as buffers; `directions` is 1 or 2, `gates` as in `GATES`."""

    inputs: Tensor  # `[directions, gates * hidden, features]`
    states: Tensor  # `[directions, gates * hidden, hidden]`
    biases: Tensor  # `[directions, 2 * gates * hidden]`: those of the inputs, then those of the states

    def __init__(self, inputs: Tensor, states: Tensor, biases: Tensor) -> None:
        super().__init__()
        for name, values in (("inputs", inputs), ("states", states), ("biases", biases)):
            self.register_buffer(name, values.detach())


def weights_of(module: nn.RNNBase) -> list[LayerWeights]:
    """The weights of each layer of a torch module without projections, in ONNX layout."""

    def stacked(name: str, layer: int) -> Tensor:
        ends = ("", "_reverse") if module.bidirectional else ("",)
        parts = [getattr(module, f"{name}_l{layer}{end}") for end in ends]
        return torch.stack([_reordered(part, _ONNX_FROM_TORCH[module.mode]) for part in parts])

    layers = []
    for layer in range(module.num_layers):
        inputs, states = stacked("weight_ih", layer), stacked("weight_hh", layer)
        if module.bias:
            biases = torch.cat([stacked("bias_ih", layer), stacked("bias_hh", layer)], dim=1)
        else:
            biases = states.new_zeros(states.shape[0], 2 * states.shape[1])
        layers.append(LayerWeights(inputs, states, biases))
    return layers


def _reordered(weight: Tensor, order: Sequence[int]) -> Tensor:
    blocks = weight.chunk(len(order))
    return torch.cat([blocks[block] for block in order])


@torch.library.custom_op("lengthwise::recurrent", mutates_args=())
def recurrent(
    values: Tensor,
    lengths: Tensor | None,
    input_weights: list[Tensor],
    state_weights: list[Tensor],
    biases: list[Tensor],
    initial_state: Tensor | None,
    initial_cell: Tensor | None,
    mode: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs a stack of recurrent layers over `values [rows, width, features]`; weights as in `LayerWeights`.

    Without lengths every row runs over the full width; initial states are `[layers * directions, rows, hidden]`, None
    for zeros; `mode` is torch's. Returns the outputs `[rows, width, directions * hidden]`, 0 at padding; the states at
    the last valid step of each row; the cells there (for GRU and RNN a copy of the states).
    """
    order = _ONNX_FROM_TORCH[mode]
    inverse = [order.index(gate) for gate in range(len(order))]
    flat = []
    for inputs, states, bias in zip(input_weights, state_weights, biases, strict=True):
        for w, r, b in zip(inputs, states, bias, strict=True):
            flat += [_reordered(w, inverse), _reordered(r, inverse)]
            flat += [_reordered(half, inverse) for half in b.chunk(2)]
    directions, _, hidden = state_weights[0].shape
    width = values.shape[1]
    if lengths is None:
        lengths = torch.full((values.shape[0],), width, dtype=torch.int64)
    longest_first = torch.argsort(lengths, descending=True, stable=True)
    in_order = torch.argsort(longest_first)
    packed = pack_padded_sequence(values[longest_first], lengths[longest_first].cpu().long(), batch_first=True)
    shape = (len(input_weights) * directions, values.shape[0], hidden)
    starts = [
        values.new_zeros(shape) if start is None else start[:, longest_first] for start in (initial_state, initial_cell)
    ]
    arguments = (flat, True, len(input_weights), 0.0, False, directions == 2)
    if mode == "LSTM":
        data, state, cell = torch.lstm(packed.data, packed.batch_sizes, starts, *arguments)
    else:
        run: Callable[..., tuple[Tensor, Tensor]] = getattr(torch, mode.lower())
        data, state = run(packed.data, packed.batch_sizes, starts[0], *arguments)
        cell = state.clone()
    outputs, _ = pad_packed_sequence(packed._replace(data=data), batch_first=True, total_length=width)
    return outputs[in_order], state[:, in_order], cell[:, in_order]


def _to_onnx(
    values: ir.Value,
    lengths: ir.Value | None,
    input_weights: Sequence[ir.Value],
    state_weights: Sequence[ir.Value],
    biases: Sequence[ir.Value],
    initial_state: ir.Value | None,
    initial_cell: ir.Value | None,
    mode: str,
) -> tuple[Any, Any, Any]:
    """`recurrent` in ONNX: one node for each layer, time-major because onnxruntime does not support `layout=1`."""
    layers = len(input_weights)
    directions, _, hidden = ir.Shape(state_weights[0].shape or ()).numpy()
    form: dict[str, Any] = {"hidden_size": hidden, "direction": "bidirectional" if directions == 2 else "forward"}
    if mode == "GRU":
        form["linear_before_reset"] = 1  # torch applies the reset gate after the matrix product
    elif mode != "LSTM":
        form["activations"] = [mode[4:].capitalize()] * directions
    ends = None if lengths is None else op.Cast(lengths, to=ir.DataType.INT32)
    starts = [_split(initial, layers, directions) for initial in (initial_state, initial_cell)]
    steps = op.Transpose(values, perm=[1, 0, 2])
    states, cells = [], []
    for layer in range(layers):
        before = (input_weights[layer], state_weights[layer], biases[layer], ends)
        outputs, state, cell = _node(mode, steps, *before, *(start[layer] for start in starts), form)
        states.append(state)
        cells.append(cell)
        # Outputs are [width, directions, rows, hidden]: time-major for the next layer, rows first after the last.
        perm = [2, 0, 1, 3] if layer == layers - 1 else [0, 2, 1, 3]
        steps = op.Reshape(op.Transpose(outputs, perm=perm), op.Constant(value_ints=[0, 0, directions * hidden]))
    last = op.Concat(*states, axis=0) if layers > 1 else states[0]
    if mode != "LSTM":
        return steps, last, last
    return steps, last, op.Concat(*cells, axis=0) if layers > 1 else cells[0]


def _node(mode: str, *inputs: Any) -> tuple[Any, Any, Any]:
    """One recurrent node: its outputs, last states and last cells; the last of `inputs` are its attributes."""
    *before, cell, form = inputs
    if mode == "LSTM":
        outputs, state, cells = op.LSTM(*before, cell, **form)
        return outputs, state, cells
    outputs, state = op.GRU(*before, **form) if mode == "GRU" else op.RNN(*before, **form)
    return outputs, state, state


def _split(initial: ir.Value | None, layers: int, directions: int) -> Sequence[ir.Value | None]:
    """Splits `[layers * directions, rows, hidden]` into `[directions, rows, hidden]` for each layer."""
    if initial is None:
        return [None] * layers
    if layers == 1:
        return [initial]
    edges = [op.Constant(value_ints=[layer * directions]) for layer in range(layers + 1)]
    axis = op.Constant(value_ints=[0])
    return [op.Slice(initial, begin, end, axis) for begin, end in itertools.pairwise(edges)]


GATES: Final[Mapping[str, int]] = MappingProxyType({"LSTM": 4, "GRU": 3, "RNN": 1})  # gates of each kind
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
    results: list[tuple[Tensor, Tensor, Tensor]] = []
    for index, backwards in enumerate(_REVERSED[direction]):
        projected = functional.linear(values, inputs[index], biases[index, : GATES[kind] * hidden])
        state = values.new_zeros(rows, hidden) if initial_state is None else initial_state[index].clone()
        cell = values.new_zeros(rows, hidden) if initial_cell is None else initial_cell[index].clone()
        outputs = values.new_zeros(rows, width, hidden)
        weights, added = states[index], biases[index, GATES[kind] * hidden :]
        for at in reversed(range(width)) if backwards else range(width):
            valid = (at < lengths).unsqueeze(1)
            new_state, new_cell = _step(kind, projected[:, at], state, cell, weights, added, compute, reset_after)
            state, cell = torch.where(valid, new_state, state), torch.where(valid, new_cell, cell)
            outputs[:, at] = torch.where(valid, new_state, 0.0)
        results.append((outputs, state, cell if kind == "LSTM" else state.clone()))
    merged, last, cells = (list(each) for each in zip(*results, strict=True))
    return torch.cat(merged, dim=2), torch.stack(last), torch.stack(cells)


@recurrent.register_fake
@recurrent_cells.register_fake
def _shapes(
    values: Tensor, lengths: Tensor | None, inputs: Any, states: list[Tensor] | Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    layers = [states] if isinstance(states, Tensor) else states
    rows, width = values.shape[:2]
    directions, hidden = layers[0].shape[::2]
    state = values.new_empty(len(layers) * directions, rows, hidden)
    return values.new_empty(rows, width, directions * hidden), state, torch.empty_like(state)


def _step(
    kind: str,
    projected: Tensor,
    state: Tensor,
    cell: Tensor,
    weights: Tensor,
    biases: Tensor,
    compute: Sequence[Callable[[Tensor], Tensor]],
    reset_after: bool,
) -> tuple[Tensor, Tensor]:
    """The next state and cell of a projected input `[rows, gates * hidden]`."""
    if kind == "RNN":
        return compute[0](projected + functional.linear(state, weights, biases)), cell
    gate, candidate, *output = compute
    if kind == "LSTM":
        into, out, forget, new = (projected + functional.linear(state, weights, biases)).chunk(4, dim=1)
        cell = gate(forget) * cell + gate(into) * candidate(new)
        return gate(out) * output[0](cell), cell
    update, reset, new = projected.chunk(3, dim=1)
    parts = zip(weights.chunk(3), biases.chunk(3), strict=True)
    of_update, of_reset, of_new = (partial(functional.linear, weight=weight, bias=bias) for weight, bias in parts)
    update, reset = gate(update + of_update(state)), gate(reset + of_reset(state))
    new = candidate(new + (reset * of_new(state) if reset_after else of_new(reset * state)))
    return update * state + (1 - update) * new, cell


def _cells_to_onnx(
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
    functions = [ACTIVATIONS[name] for name in activations.split(",")] * directions
    names = [each.name for each in functions]
    form: dict[str, Any] = {"hidden_size": hidden, "direction": direction, "activations": names}
    for number in ("alpha", "beta"):  # of those activations that have one, in their order
        if numbers := [value for each in functions if (value := getattr(each, number)) is not None]:
            form[f"activation_{number}"] = numbers
    if kind == "GRU":
        form["linear_before_reset"] = int(reset_after)
    before = (op.Transpose(values, perm=[1, 0, 2]), inputs, states, biases, ends, initial_state, initial_cell)
    outputs, state, cell = _node(kind, *before, form)
    # [width, directions, rows, hidden] to rows first
    merged = op.Reshape(op.Transpose(outputs, perm=[2, 0, 1, 3]), op.Constant(value_ints=[0, 0, directions * hidden]))
    return merged, state, cell


TRANSLATIONS: Final[dict[Callable[..., Any], Callable[..., Any]]] = {
    torch.ops.lengthwise.recurrent.default: _to_onnx,
    torch.ops.lengthwise.recurrent_cells.default: _cells_to_onnx,
}
"""The translations to ONNX of the operators that this package adds to torch."""
