"""Runs recurrent layers of Keras by operators that ONNX has, with their weights in ONNX's layout.

Keras runs a recurrent layer as a Python loop over the steps, which a trace would unroll. Here it is one call of the
operator `recurrent`, which is a layer of torch, or of `recurrent_cells`, which also has other activations, runs
backwards, and applies a reset gate before the product. What Keras does at masked steps, `replaced` adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from lengthwise_export.tracing.recurrent_op import ACTIVATIONS, GATES, recurrent, recurrent_cells

_KINDS: Final = {"LSTMCell": "LSTM", "GRUCell": "GRU", "SimpleRNNCell": "RNN"}
# Keras orders an LSTM's gates i f c o, ONNX i o f c. A GRU's are z r h in both.
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
    hidden: int

    @property
    def mode(self) -> str | None:
        """The mode of torch's own layer that computes the same; None if there is none."""
        return _TORCH_MODES.get((self.kind, self.activations, self.reset_after))


def form_of(cell: Any) -> CellForm | str:
    """The form of a cell of Keras; or, as a text, the reason why ONNX has no operator for it."""
    kind = _KINDS.get(type(cell).__name__) if type(cell).__module__.startswith("keras.") else None
    if kind is None:
        return f"the cell {type(cell).__name__} is a loop over the steps in Python: use LSTM, GRU or SimpleRNN"
    output = _activation_name(cell.activation)
    gate = output if kind == "RNN" else _activation_name(cell.recurrent_activation)
    for name in (output, gate):
        if name not in ACTIVATIONS:
            return f"a recurrent layer of ONNX has no activation {name!r}: it has {', '.join(ACTIVATIONS)}"
    activations = {"LSTM": (gate, output, output), "GRU": (gate, output), "RNN": (output,)}[kind]
    return CellForm(kind, activations, bool(getattr(cell, "reset_after", False)), int(cell.units))


def _activation_name(activation: Any) -> str:
    return str(getattr(activation, "__name__", None) or type(activation).__name__)


class CellWeights(nn.Module):
    """The weights of one cell, or of the two of a bidirectional layer, as buffers in ONNX's layout."""

    inputs: Tensor
    states: Tensor
    biases: Tensor

    def __init__(self, cells: Sequence[Any], form: CellForm) -> None:
        super().__init__()
        for name, kernel in (("inputs", "kernel"), ("states", "recurrent_kernel")):
            weights = [_in_onnx_order(getattr(cell, kernel).value.detach().T, form) for cell in cells]
            self.register_buffer(name, torch.stack(weights))
        self.register_buffer("biases", torch.stack([_biases(cell, form) for cell in cells]))


def _in_onnx_order(weight: Tensor, form: CellForm) -> Tensor:
    """The gates of a weight `[gates * hidden, ...]` in ONNX's order."""
    blocks = weight.chunk(GATES[form.kind])
    return torch.cat([blocks[block] for block in _ONNX_FROM_KERAS[form.kind]]).contiguous()


def _biases(cell: Any, form: CellForm) -> Tensor:
    """`[2 * gates * hidden]`, in ONNX's order: the biases of the inputs, then those of the states."""
    size = GATES[form.kind] * form.hidden
    if not cell.use_bias:
        return torch.zeros(2 * size)
    bias = cell.bias.value.detach()
    of_inputs, of_states = bias if bias.dim() == 2 else (bias, torch.zeros(size))
    return torch.cat([_in_onnx_order(of_inputs, form), _in_onnx_order(of_states, form)])


def run(
    form: CellForm,
    weights: CellWeights,
    values: Tensor,
    lengths: Tensor | None,
    direction: str,
    initial: Sequence[Tensor] = (),
) -> tuple[Tensor, list[Tensor]]:
    """Runs a layer over `values [rows, width, features]`, from `initial` states `[rows, hidden]` or from zeros.

    Returns the outputs `[rows, width, directions * hidden]`, 0 at padding, and the last `[directions, rows, hidden]`.
    """
    state, cell = (*(tensor.unsqueeze(0) for tensor in initial), None, None)[:2]
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
    """Moves the valid steps of a batch to the front of each row, and the outputs back, by a mask `[rows, width]`.

    A mask that Keras computes between layers may have gaps, or no valid step in a row. At a masked step a recurrent
    layer keeps its state. The operators take lengths only, so they get the valid steps, in their order.
    """

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask.bool()
        width = mask.shape[1]
        indices = torch.arange(width).expand_as(self._mask)
        self._order = torch.where(self._mask, indices, indices + width).sort(dim=1).values % width
        self._count = self._mask.sum(1)
        self.lengths = self._count.clamp(min=1)

    def in_front(self, values: Tensor) -> Tensor:
        """The values `[rows, width, features]` with the valid steps of each row first."""
        return _gather_steps(values, self._order)

    def last_state(self, state: Tensor, initial: Tensor | None) -> Tensor:
        """The last `state [rows, hidden]`; in a row without valid steps, the initial one (None for zeros)."""
        return torch.where((self._count > 0).unsqueeze(1), state, 0.0 if initial is None else initial)

    def back(self, outputs: Tensor, *, backwards: bool, repeated: bool) -> Tensor:
        """The outputs `[rows, width, hidden]`, each moved back to the index of its step.

        Args:
            outputs: The outputs of a layer over the steps `in_front`.
            backwards: Whether the layer ran from the last step to the first.
            repeated: Whether a masked step gets the output of the valid step that ran before it; otherwise 0.
        """
        # The number of valid steps that have run, at each step and including it
        done = self._mask.flip(1).cumsum(1).flip(1) if backwards else self._mask.cumsum(1)
        index = self._count.unsqueeze(1) - done if backwards else done - 1
        has_output = done > 0 if repeated else self._mask
        gathered = _gather_steps(outputs, index.clamp(min=0, max=self._mask.shape[1] - 1))
        moved = torch.where(has_output.unsqueeze(-1), gathered, 0.0)
        return moved.flip(1) if backwards else moved


def _gather_steps(values: Tensor, indices: Tensor) -> Tensor:
    """The steps of values `[rows, width, features]` at the indices `[rows, width]`."""
    return values.gather(1, indices.unsqueeze(-1).expand(-1, -1, values.shape[2]))
