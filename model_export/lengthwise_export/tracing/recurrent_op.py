"""Operators for recurrent layers with lengths, for torch and in ONNX: `recurrent` and `recurrent_cells`.

torch's layers take lengths only as a packed sequence, which no exporter can handle; ONNX's operators take a padded
batch and `sequence_lens`. `recurrent` is such an operator for torch: outputs are exactly 0 at padding, last states are
those at the last valid step of each row, and the reverse direction starts there, as on a packed sequence.

A layer of Keras may run backwards only, have other activations than `torch.nn`'s, or apply a GRU's reset gate
before the matrix product: `recurrent_cells` is one such layer. In ONNX that is a single node; in torch a loop.

Weights are in *ONNX's layout*: the weights of the gates are stacked along one axis, in ONNX's order of gates.
`directions` is 1, or 2 of a bidirectional layer, `hidden` the size of a state in one direction, `gates` as in `GATES`.
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

# The indices of torch's gates in the order of ONNX, by torch's mode.
# LSTM: torch i f g o, ONNX i o f c. GRU: torch r z n, ONNX z r h. See the operators' pages in onnx's Operators.md.
_ONNX_FROM_TORCH: Final = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN_TANH": (0,), "RNN_RELU": (0,)}


class LayerWeights(nn.Module):
    """The weights of one recurrent layer in ONNX's layout, as buffers."""

    inputs: Tensor  # `[directions, gates * hidden, features]`
    states: Tensor  # `[directions, gates * hidden, hidden]`
    biases: Tensor  # `[directions, 2 * gates * hidden]`: those of the inputs, then those of the states

    def __init__(self, inputs: Tensor, states: Tensor, biases: Tensor) -> None:
        super().__init__()
        for name, values in (("inputs", inputs), ("states", states), ("biases", biases)):
            self.register_buffer(name, values.detach())


def weights_of(module: nn.RNNBase) -> list[LayerWeights]:
    """The weights of each layer of a torch module without projections, in ONNX's layout."""

    def stacked(name: str, layer: int) -> Tensor:
        """The weights of this name in torch, such as `weight_ih`, for each direction: `[directions, ...]`."""
        suffixes = ("", "_reverse") if module.bidirectional else ("",)
        parts = [getattr(module, f"{name}_l{layer}{suffix}") for suffix in suffixes]
        return torch.stack([reordered(part, _ONNX_FROM_TORCH[module.mode]) for part in parts])

    layers = []
    for layer in range(module.num_layers):
        inputs, states = stacked("weight_ih", layer), stacked("weight_hh", layer)
        if module.bias:
            biases = torch.cat([stacked("bias_ih", layer), stacked("bias_hh", layer)], dim=1)
        else:
            biases = states.new_zeros(states.shape[0], 2 * states.shape[1])
        layers.append(LayerWeights(inputs, states, biases))
    return layers


def reordered(weight: Tensor, order: Sequence[int]) -> Tensor:
    """The gates of a weight `[gates * hidden, ...]` in this order of their indices."""
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
    """Runs a stack of recurrent layers, each over the outputs of the layer before; an operator of torch.

    Args:
        values: `[rows, width, features]`.
        lengths: `[rows]`; None to run every row over the full width.
        input_weights: For each layer, `[directions, gates * hidden, features]` in ONNX's layout.
        state_weights: For each layer, `[directions, gates * hidden, hidden]`.
        biases: For each layer, `[directions, 2 * gates * hidden]`: those of the inputs, then those of the states.
        initial_state: `[layers * directions, rows, hidden]`; None for zeros.
        initial_cell: The same for an LSTM's cells.
        mode: torch's name of the computation: `LSTM`, `GRU`, `RNN_TANH` or `RNN_RELU`.

    Returns:
        The outputs `[rows, width, directions * hidden]`, 0 at padding; the states `[layers * directions, rows, hidden]`
        at the last valid step of each row; the cells there, which for GRU and RNN are a copy of the states.
    """
    # The weights in torch's layout, as torch's functions take them
    order = _ONNX_FROM_TORCH[mode]
    inverse = [order.index(gate) for gate in range(len(order))]
    flat = []
    for weights_of_layer in zip(input_weights, state_weights, biases, strict=True):
        for input_weight, state_weight, bias in zip(*weights_of_layer, strict=True):  # for each direction
            flat += [reordered(input_weight, inverse), reordered(state_weight, inverse)]
            flat += [reordered(half, inverse) for half in bias.chunk(2)]
    # The rows in the order of torch's packed sequences, the longest first
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
    # has_biases, num_layers, dropout, train, bidirectional
    arguments = (flat, True, len(input_weights), 0.0, False, directions == 2)
    if mode == "LSTM":
        data, state, cell = torch.lstm(packed.data, packed.batch_sizes, starts, *arguments)
    else:
        run: Callable[..., tuple[Tensor, Tensor]] = getattr(torch, mode.lower())
        data, state = run(packed.data, packed.batch_sizes, starts[0], *arguments)
        cell = state.clone()
    outputs, _ = pad_packed_sequence(packed._replace(data=data), batch_first=True, total_length=width)
    return outputs[in_order], state[:, in_order], cell[:, in_order]  # in the order of the batch


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
    """Translates `recurrent` to ONNX, with its arguments and results as values of the graph."""
    directions = ir.Shape(state_weights[0].shape or ()).numpy()[0]
    attributes: dict[str, Any] = {"direction": "bidirectional" if directions == 2 else "forward"}
    if mode == "GRU":
        attributes["linear_before_reset"] = 1  # torch applies the reset gate after the matrix product
    elif mode != "LSTM":
        attributes["activations"] = [mode.removeprefix("RNN_").capitalize()] * directions
    weights = (input_weights, state_weights, biases)
    return _layers_to_onnx(mode.partition("_")[0], values, lengths, *weights, initial_state, initial_cell, attributes)


def _layers_to_onnx(
    kind: str,
    values: ir.Value,
    lengths: ir.Value | None,
    input_weights: Sequence[ir.Value],
    state_weights: Sequence[ir.Value],
    biases: Sequence[ir.Value],
    initial_state: ir.Value | None,
    initial_cell: ir.Value | None,
    attributes: Mapping[str, Any],
) -> tuple[Any, Any, Any]:
    """Adds a node of ONNX's operator `kind` for each layer, whose arguments are those of `recurrent`.

    The nodes are time-major, `[width, rows, ...]`, because onnxruntime does not support `layout=1`.

    Returns:
        The outputs, rows first; the last states of all layers; the last cells, which for GRU and RNN are the states.
    """
    layers = len(input_weights)
    directions, _, hidden = ir.Shape(state_weights[0].shape or ()).numpy()
    operator = {"LSTM": op.LSTM, "GRU": op.GRU, "RNN": op.RNN}[kind]
    ends = None if lengths is None else op.Cast(lengths, to=ir.DataType.INT32)  # `sequence_lens`
    initial = (initial_state, initial_cell) if kind == "LSTM" else (initial_state,)
    initial_by_layer = zip(*(_split(value, layers, directions) for value in initial), strict=True)
    steps = op.Transpose(values, perm=[1, 0, 2])
    states, cells = [], []
    for layer, starts in enumerate(initial_by_layer):
        weights = (input_weights[layer], state_weights[layer], biases[layer])
        outputs, state, *cell = operator(steps, *weights, ends, *starts, hidden_size=hidden, **attributes)
        states.append(state)
        cells += cell  # of an LSTM
        # Outputs are [width, directions, rows, hidden]: time-major for the next layer, rows first after the last.
        perm = [2, 0, 1, 3] if layer == layers - 1 else [0, 2, 1, 3]
        steps = op.Reshape(op.Transpose(outputs, perm=perm), op.Constant(value_ints=[0, 0, directions * hidden]))
    last = op.Concat(*states, axis=0) if layers > 1 else states[0]
    if kind != "LSTM":
        return steps, last, last
    return steps, last, op.Concat(*cells, axis=0) if layers > 1 else cells[0]


def _split(initial: ir.Value | None, layers: int, directions: int) -> Sequence[ir.Value | None]:
    """Slices an initial state `[layers * directions, rows, hidden]`: one `[directions, rows, hidden]` for each layer.

    If it is None, for zeros, the state of each layer is None.
    """
    if initial is None:
        return [None] * layers
    if layers == 1:
        return [initial]
    edges = [op.Constant(value_ints=[layer * directions]) for layer in range(layers + 1)]
    axis = op.Constant(value_ints=[0])
    return [op.Slice(initial, begin, end, axis) for begin, end in itertools.pairwise(edges)]


GATES: Final[Mapping[str, int]] = MappingProxyType({"LSTM": 4, "GRU": 3, "RNN": 1})  # gates of each kind
_REVERSED: Final = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
"""For each direction in a layer: whether it runs from the last step to the first."""


@dataclass(frozen=True, slots=True)
class CellActivation:
    """An activation of a recurrent layer."""

    name: str  # that of ONNX's recurrent operators
    compute: Callable[[Tensor], Tensor]  # the same function in torch
    alpha: float | None = None  # its parameters in ONNX; None if it has none
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
    """Runs one recurrent layer, in a loop over the steps; an operator of torch.

    Args:
        values: `[rows, width, features]`.
        lengths: `[rows]`; None to run every row over the full width.
        inputs: The weights of the inputs, `[directions, gates * hidden, features]` in ONNX's layout.
        states: The weights of the states, `[directions, gates * hidden, hidden]`.
        biases: `[directions, 2 * gates * hidden]`: those of the inputs, then those of the states.
        initial_state: `[directions, rows, hidden]`; None for zeros.
        initial_cell: The same for an LSTM's cells.
        kind: `LSTM`, `GRU` or `RNN`.
        activations: Names in `ACTIVATIONS` with commas between, in ONNX's order; the same in each direction.
        direction: `forward`, `reverse` or `bidirectional`.
        reset_after: Whether a GRU applies the reset gate after the matrix product.

    Returns:
        The outputs `[rows, width, directions * hidden]`, 0 at padding; the last states `[directions, rows, hidden]`;
        the last cells, which for GRU and RNN are a copy of the states.
    """
    rows, width, _ = values.shape
    hidden = states.shape[2]
    if lengths is None:
        lengths = torch.full((rows,), width, dtype=torch.int64)
    functions = [ACTIVATIONS[name].compute for name in activations.split(",")]
    results: list[tuple[Tensor, Tensor, Tensor]] = []
    for index, backwards in enumerate(_REVERSED[direction]):
        # The inputs of all steps times their weights, and the initial state
        projected = functional.linear(values, inputs[index], biases[index, : GATES[kind] * hidden])
        state = values.new_zeros(rows, hidden) if initial_state is None else initial_state[index].clone()
        cell = values.new_zeros(rows, hidden) if initial_cell is None else initial_cell[index].clone()
        outputs = values.new_zeros(rows, width, hidden)
        # The steps: at padding the state stays, and the output is 0
        weights_of_states = (states[index], biases[index, GATES[kind] * hidden :])
        for step in reversed(range(width)) if backwards else range(width):
            valid = (step < lengths).unsqueeze(1)
            new_state, new_cell = _step(
                kind, projected[:, step], state, cell, *weights_of_states, functions, reset_after
            )
            state, cell = torch.where(valid, new_state, state), torch.where(valid, new_cell, cell)
            outputs[:, step] = torch.where(valid, new_state, 0.0)
        results.append((outputs, state, cell if kind == "LSTM" else state.clone()))
    merged, last, cells = (list(of_directions) for of_directions in zip(*results, strict=True))
    return torch.cat(merged, dim=2), torch.stack(last), torch.stack(cells)


@recurrent.register_fake
@recurrent_cells.register_fake
def _shapes(
    values: Tensor, lengths: Tensor | None, inputs: Any, states: list[Tensor] | Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The version of both operators that a trace calls: returns empty tensors with the shapes of the results.

    `states` are the weights of the states: of `recurrent` one tensor for each layer, of `recurrent_cells` one tensor.
    """
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
    functions: Sequence[Callable[[Tensor], Tensor]],
    reset_after: bool,
) -> tuple[Tensor, Tensor]:
    """The state and the cell `[rows, hidden]` after one step of a layer in one direction.

    Args:
        kind: `LSTM`, `GRU` or `RNN`.
        projected: `[rows, gates * hidden]`, the inputs of the step times their weights, plus their biases.
        state: `[rows, hidden]` before the step.
        cell: The same for an LSTM's cells; otherwise it is returned as it is.
        weights: `[gates * hidden, hidden]` of the states.
        biases: `[gates * hidden]` of the states.
        functions: The activations of the gates, of the candidate and, for an LSTM, of the output; of an RNN one.
        reset_after: Whether a GRU applies the reset gate after the matrix product.
    """
    if kind == "RNN":
        return functions[0](projected + functional.linear(state, weights, biases)), cell
    gate_activation, candidate_activation, *output_activation = functions
    if kind == "LSTM":
        summed = projected + functional.linear(state, weights, biases)
        input_gate, output_gate, forget_gate, candidate = summed.chunk(4, dim=1)  # in ONNX's order
        cell = gate_activation(forget_gate) * cell + gate_activation(input_gate) * candidate_activation(candidate)
        return gate_activation(output_gate) * output_activation[0](cell), cell
    # GRU: the gates, and the functions that multiply a state by their weights, in ONNX's order
    update, reset, candidate = projected.chunk(3, dim=1)
    parts = zip(weights.chunk(3), biases.chunk(3), strict=True)
    for_update, for_reset, for_candidate = (
        partial(functional.linear, weight=weight, bias=bias) for weight, bias in parts
    )
    update = gate_activation(update + for_update(state))
    reset = gate_activation(reset + for_reset(state))
    product = reset * for_candidate(state) if reset_after else for_candidate(reset * state)
    return update * state + (1 - update) * candidate_activation(candidate + product), cell


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
    """Translates `recurrent_cells` to ONNX, with its arguments and results as values of the graph."""
    cell_activations = [ACTIVATIONS[name] for name in activations.split(",")] * ir.Shape(states.shape or ()).numpy()[0]
    names = [activation.name for activation in cell_activations]
    attributes: dict[str, Any] = {"direction": direction, "activations": names}
    for parameter in ("alpha", "beta"):
        # Listed for the activations that have it only
        if numbers := [
            number for activation in cell_activations if (number := getattr(activation, parameter)) is not None
        ]:
            attributes[f"activation_{parameter}"] = numbers
    if kind == "GRU":
        attributes["linear_before_reset"] = int(reset_after)
    return _layers_to_onnx(kind, values, lengths, [inputs], [states], [biases], initial_state, initial_cell, attributes)


TRANSLATIONS: Final[dict[Callable[..., Any], Callable[..., Any]]] = {
    torch.ops.lengthwise.recurrent.default: _to_onnx,
    torch.ops.lengthwise.recurrent_cells.default: _cells_to_onnx,
}
"""The translations to ONNX of the operators that this package adds to torch."""
