"""Runs recurrent layers of Keras by operators that ONNX has, with their weights in ONNX's layout.

Keras runs a recurrent layer as a Python loop over the steps, which a trace would unroll. Here it is one call of the
operator `recurrent`, which is a layer of torch, or of `recurrent_cells`, which also has other activations, runs
backwards, and applies a reset gate before the product. What Keras does at masked steps, `replaced` adds.

A *cell* is Keras's object with the weights of a recurrent layer in one direction. Its *form* is what it computes,
without the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from lengthwise_export.keras_models.backend import import_keras
from lengthwise_export.tracing.recurrent_op import (
    ACTIVATIONS,
    GATES,
    LayerWeights,
    recurrent,
    recurrent_cells,
    reordered,
)

_KINDS: Final = {"LSTMCell": "LSTM", "GRUCell": "GRU", "SimpleRNNCell": "RNN"}  # ONNX's operator for each class
# The indices of Keras's gates in the order of ONNX.
# LSTM: Keras i f c o, ONNX i o f c. GRU: z r h in both.
_ONNX_FROM_KERAS: Final = {"LSTM": (0, 3, 1, 2), "GRU": (0, 1, 2), "RNN": (0,)}
# The mode of torch's own layer, by the fields of `CellForm`
_TORCH_MODES: Final[dict[tuple[str, tuple[str, ...], bool], str]] = {
    ("LSTM", ("sigmoid", "tanh", "tanh"), False): "LSTM",
    ("GRU", ("sigmoid", "tanh"), True): "GRU",
    ("RNN", ("tanh",), False): "RNN_TANH",
    ("RNN", ("relu",), False): "RNN_RELU",
}


@dataclass(frozen=True, slots=True)
class CellForm:
    """The computation of a recurrent cell, without its weights."""

    kind: str  # `LSTM`, `GRU` or `RNN`
    activations: tuple[str, ...]  # Names in `ACTIVATIONS`, in the order of ONNX's operator
    reset_after: bool  # Whether a GRU applies the reset gate after the matrix product
    hidden: int  # The size of a state

    @property
    def mode(self) -> str | None:
        """The mode of torch's own layer that computes the same; None if there is none."""
        return _TORCH_MODES.get((self.kind, self.activations, self.reset_after))


def form_of(cell: Any) -> CellForm | str:
    """The form of a cell of Keras; or, as a text, why ONNX has no operator for it."""
    kind = _KINDS.get(type(cell).__name__) if type(cell).__module__.startswith("keras.") else None
    if kind is None:
        return f"the cell {type(cell).__name__} is a loop over the steps in Python: use LSTM, GRU or SimpleRNN"
    output_activation = _activation_name(cell.activation)
    gate_activation = output_activation if kind == "RNN" else _activation_name(cell.recurrent_activation)
    for name in (output_activation, gate_activation):
        if name not in ACTIVATIONS:
            return f"a recurrent layer of ONNX has no activation {name!r}: it has {', '.join(ACTIVATIONS)}"
    activations = {
        "LSTM": (gate_activation, output_activation, output_activation),
        "GRU": (gate_activation, output_activation),
        "RNN": (output_activation,),
    }[kind]
    return CellForm(kind, activations, bool(getattr(cell, "reset_after", False)), int(cell.units))


def own_activation(activation: Any) -> str | None:
    """The name of an activation that is a function of Keras or torch; None if it is another, whatever its name is."""
    keras, name = import_keras(), str(getattr(activation, "__name__", ""))
    modules = (keras.activations, keras.ops, torch)
    return name if any(getattr(module, name, None) is activation for module in modules) else None


def _activation_name(activation: Any) -> str:
    """The name of an activation, a function or an object; with a note if it only has the name of one of Keras."""
    name = getattr(activation, "__name__", None) or type(activation).__name__
    return own_activation(activation) or (f"{name} (not of Keras)" if name in ACTIVATIONS else str(name))


def weights_of(cells: Sequence[Any], form: CellForm) -> LayerWeights:
    """A copy of the weights of a layer in ONNX's layout; `cells` are its one cell, or the two of two directions."""
    order = _ONNX_FROM_KERAS[form.kind]
    inputs, states = (
        torch.stack([reordered(getattr(cell, kernel).value.detach().T, order) for cell in cells])
        for kernel in ("kernel", "recurrent_kernel")
    )
    return LayerWeights(inputs, states, torch.stack([_biases(cell, form) for cell in cells]))


def _biases(cell: Any, form: CellForm) -> Tensor:
    """The biases of a cell in ONNX's layout, `[2 * gates * hidden]`: those of the inputs, then those of the states."""
    size = GATES[form.kind] * form.hidden
    if not cell.use_bias:
        return torch.zeros(2 * size)
    bias = cell.bias.value.detach()
    pair = bias if bias.dim() == 2 else (bias, torch.zeros(size))  # of inputs and states; often the states have none
    return torch.cat([reordered(biases, _ONNX_FROM_KERAS[form.kind]) for biases in pair])


def run(
    form: CellForm,
    weights: LayerWeights,
    values: Tensor,
    lengths: Tensor | None,
    direction: str,
    initial_states: Sequence[Tensor] = (),
) -> tuple[Tensor, list[Tensor]]:
    """Runs a recurrent layer with one of the two operators.

    Args:
        form: What its cells compute.
        weights: Their weights.
        values: `[rows, width, features]`.
        lengths: `[rows]`; None to run every row over the full width.
        direction: `forward`, `reverse` or `bidirectional`.
        initial_states: The state `[rows, hidden]` and, of an LSTM, the cell; empty for zeros. Not for two directions.

    Returns:
        The outputs `[rows, width, directions * hidden]`, 0 at padding; and the last states `[directions, rows, hidden]`
        in a list, of an LSTM followed by the last cells.
    """
    state, cell = (*(tensor.unsqueeze(0) for tensor in initial_states), None, None)[:2]  # None for what is missing
    if form.mode is not None and direction != "reverse":
        outputs, states, cells = recurrent(
            values, lengths, [weights.inputs], [weights.states], [weights.biases], state, cell, form.mode
        )
    else:
        layer = (weights.inputs, weights.states, weights.biases)
        computation = (form.kind, ",".join(form.activations), direction, form.reset_after)
        outputs, states, cells = recurrent_cells(values, lengths, *layer, state, cell, *computation)
    return outputs, [states, cells] if form.kind == "LSTM" else [states]


class GatheredSteps:
    """Moves the valid steps of a batch to the front of each row, and the outputs back to the valid steps.

    A `mask [rows, width]` that Keras computes between layers may have gaps, or no valid step in a row. At a masked step
    a recurrent layer keeps its state. The operators take lengths only, so they get the valid steps, in their order.
    """

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask.bool()
        width = mask.shape[1]
        indices = torch.arange(width).expand_as(self._mask)
        # The indices of the steps in the new order: masked ones get a larger key, so that they are sorted behind
        self._order = torch.where(self._mask, indices, indices + width).sort(dim=1).values % width
        self._count = self._mask.sum(1)  # of valid steps, `[rows]`
        self.lengths = self._count.clamp(min=1)  # for the operator, which takes no length of 0

    def to_front(self, values: Tensor) -> Tensor:
        """The values `[rows, width, features]` with the valid steps of each row first."""
        return _gather_steps(values, self._order)

    def last_state(self, state: Tensor, initial: Tensor | None) -> Tensor:
        """The last `state [rows, hidden]`; in a row without valid steps, the `initial` one, which is None for zeros."""
        return torch.where((self._count > 0).unsqueeze(1), state, 0.0 if initial is None else initial)

    def from_front(self, outputs: Tensor, *, backwards: bool, repeated: bool) -> Tensor:
        """Undoes `to_front` for outputs: each output of a valid step moves back to where the mask has that step.

        Args:
            outputs: `[rows, width, hidden]`, of a layer that ran over the valid steps only, moved to the front of their
                row. The output of the n-th valid step of the row is at index n, in either direction.
            backwards: Whether the layer ran from the last step to the first: then the result has the steps in the
                order in which they ran, as Keras returns them.
            repeated: Whether a masked step gets the output of the valid step that ran before it; otherwise 0.
        """
        # The number of valid steps that have run when a step has run
        steps_run = self._mask.flip(1).cumsum(1).flip(1) if backwards else self._mask.cumsum(1)
        # The index in `outputs` of the valid step that ran last
        indices = self._count.unsqueeze(1) - steps_run if backwards else steps_run - 1
        has_output = steps_run > 0 if repeated else self._mask
        gathered = _gather_steps(outputs, indices.clamp(min=0, max=self._mask.shape[1] - 1))
        moved = torch.where(has_output.unsqueeze(-1), gathered, 0.0)
        return moved.flip(1) if backwards else moved


def _gather_steps(values: Tensor, indices: Tensor) -> Tensor:
    """The steps of values `[rows, width, features]` at the indices `[rows, width]`."""
    return values.gather(1, indices.unsqueeze(-1).expand(-1, -1, values.shape[2]))
