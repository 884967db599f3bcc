"""Replaces methods of Keras while a model runs, in the whole process: a run holds the lock `PROCESS_WIDE`.

Each function that replaces a method takes its arguments, and returns what it returns. What it does not handle goes to
the original method.

every layer                     its masks that are computed from the steps become that of the lengths
Masking                         padding becomes 0
LSTM | GRU | SimpleRNN | RNN    one operator with lengths, where Keras loops over the steps in Python
Bidirectional                   one operator with two directions, if both are such layers
TimeDistributed                 one call for all steps, where Keras calls its layer for each step
the graph of a functional model the operations between layers are modules, which have names
strides with padding="same"     the steps are padded, where Keras lets the operator pad them at some widths
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lengthwise_export.errors import TraceError
from lengthwise_export.keras_models import recurrent
from lengthwise_export.keras_models.backend import import_keras, on_device
from lengthwise_export.keras_models.recurrent import GatheredSteps
from lengthwise_export.keras_models.run import KerasRun
from lengthwise_export.tracing.process_wide import PROCESS_WIDE, replaced

_running: list[KerasRun] = []
"""The runs in progress, innermost last: the functions here use the last one. Guarded by `PROCESS_WIDE`."""

_ORIGINAL: Final[dict[Callable[..., Any], Callable[..., Any]]] = {}
"""The methods of Keras, by the function that replaces each; filled by `replaced_for`."""


@contextlib.contextmanager
def replaced_for(run: KerasRun, model: Any) -> Iterator[None]:
    """Replaces methods of Keras's layers, during the block, by the functions here, which use `run`.

    It also removes the activity regularizers of the layers of `model`, and runs Keras on the CPU.
    """
    layers = import_keras().layers
    from keras.src.backend.torch import nn  # neither of the two has a public name
    from keras.src.ops.function import Function  # what runs the graph of a functional model

    replacements: list[tuple[type[Any], str, Callable[..., Any]]] = [
        (layers.Layer, "__call__", _layer_call),
        (layers.Masking, "call", _masking_call),
        (layers.RNN, "call", _rnn_call),
        (layers.Bidirectional, "call", _bidirectional_call),
        (layers.TimeDistributed, "call", _time_distributed_call),
        (Function, "_run_through_graph", _run_through_graph),
        (nn, "_apply_same_padding", _same_padding),
    ]
    with PROCESS_WIDE, contextlib.ExitStack() as cleanup:
        _running.append(run)
        cleanup.callback(_running.pop)
        if len(_running) == 1:  # in the run of a model inside another, they are replaced already
            _ORIGINAL.update({function: vars(owner)[name] for owner, name, function in replacements})
            cleanup.enter_context(replaced(*replacements))
        # A regularizer is a loss of training, for which Keras would make the number of rows a constant of the trace
        regularized = (
            layer for layer in model._flatten_layers() if vars(layer).get("activity_regularizer") is not None
        )
        cleanup.enter_context(replaced(*((layer, "activity_regularizer", None) for layer in regularized)))
        cleanup.enter_context(on_device())
        cleanup.enter_context(run.followed)
        yield


def _layer_call(layer: Any, *arguments: Any, **options: Any) -> Any:
    """Replaces `Layer.__call__`: the masks that the layer gets, and those attached to its inputs, become the run's."""
    from keras.src import backend  # Keras has no public name for it

    mask_for = functools.partial(_running[-1].mask_for, layer)
    for tensor in tree_leaves((arguments, options)):
        if (mask := getattr(tensor, "_keras_mask", None)) is not None:
            backend.set_keras_mask(tensor, mask_for(mask))
    options = {name: tree_map(mask_for, value) if name.endswith("mask") else value for name, value in options.items()}
    return _ORIGINAL[_layer_call](layer, *arguments, **options)


def _masking_call(layer: Any, inputs: Tensor) -> Any:
    """Replaces `Masking.call`: padding becomes 0, and the result gets the mask of the lengths.

    A Masking that reads something else than the model's own steps runs as it is.
    """
    run = _running[-1]
    if not run.reads_input(layer, inputs):
        return _ORIGINAL[_masking_call](layer, inputs)
    mask = run.sequence_of(inputs).mask
    if mask is None:
        return inputs
    from keras.src import backend  # Keras has no public name for it

    filled = run.fill(inputs, 0.0, mask)
    backend.set_keras_mask(filled, mask)
    return filled


def _run_through_graph(function: Any, inputs: Any, operation_fn: Any = lambda op: op, call_fn: Any = None) -> Any:
    """Replaces `Function._run_through_graph`, which runs the graph of a functional model.

    The operations between layers are called as the modules that stand for them.
    """
    known = _running[-1].known
    return _ORIGINAL[_run_through_graph](
        function,
        inputs,
        lambda operation: (
            operation_fn(operation)
            if call_fn is not None or hasattr(operation, "compute_mask")  # a layer
            else known.module_of(operation)
        ),
        call_fn,
    )


def _same_padding(inputs: Tensor, sizes: Any, strides: Any, layout: str, operation: str, dilation: Any = 1) -> Any:
    """Replaces `_apply_same_padding` for an axis with a stride whose width is a symbol: the tensor itself is padded.

    How much is added depends on the width then. Where it is as much in front as behind, Keras leaves it to the
    operator, and a trace would do so at all widths. For a convolution and the largest of a pool it is the same. The
    mean of a pool of 3 and more differs at some widths: such a mend does not hold, so it is refused.
    """
    if all(stride == 1 or isinstance(width, int) for width, stride in zip(inputs.shape[2:], strides, strict=True)):
        return _ORIGINAL[_same_padding](inputs, sizes, strides, layout, operation, dilation)
    from keras.src.backend.torch.nn import standardize_tuple

    dilations = standardize_tuple(dilation, len(strides), "dilation")
    amounts = map(_same_amounts, inputs.shape[2:], sizes, strides, dilations)
    around = [amount for of_axis in reversed([*amounts]) for amount in of_axis]  # torch begins with the last axis
    return torch.nn.functional.pad(inputs, around, "replicate" if operation == "pooling" else "constant"), 0


def _same_amounts(width: Any, size: int, stride: int, dilation: int) -> tuple[Any, Any]:
    """How many elements `padding="same"` adds in front of an axis and behind it; `width` may be a symbol of the trace.

    As Keras counts them, in a form in which torch sees that the windows are as many as the width over the stride. In
    that of Keras, the sizes behind several such layers take torch minutes to compare.
    """
    reach = (size - 1) * dilation + 1
    total = ((width + stride - 1) // stride - 1) * stride + reach - width
    if reach < stride:  # a window may end before the steps do
        total = torch.sym_max(total, 0) if reach > 1 else 0  # type: ignore[no-untyped-call]  # torch has no type for it
    return total // 2, total - total // 2


def _rnn_call(layer: Any, sequences: Tensor, initial_state: Any = None, mask: Any = None, training: Any = False) -> Any:
    """Replaces `RNN.call`, which `LSTM`, `GRU` and `SimpleRNN` inherit, by one operator for each cell.

    What the operator gets depends on the mask of the layer:

    1. No mask: all steps, up to the full width; in a trace, up to the lengths (`KerasRun.lengths_at`).
    2. The mask of the lengths: all steps, up to the lengths.
    3. Any other mask: the valid steps of each row, moved to its front, and their number (`GatheredSteps`).

    A layer that is stateful, or that has a cell without an operator in ONNX, runs as it is.

    Raises:
        TraceError: There is such a layer in a trace.
    """
    run, mask = _running[-1], _first_mask(mask)
    # What no operator can run, Keras runs
    cells = list(layer.cell.cells) if type(layer.cell).__name__ == "StackedRNNCells" else [layer.cell]
    forms = [recurrent.form_of(cell) for cell in cells]
    reason = next((form for form in forms if isinstance(form, str)), None)
    if reason is None and layer.stateful:
        reason = "it is stateful: its answer depends on the calls before"
    if reason is not None:
        if run.is_traced:
            raise TraceError(None, f"{layer.name} ({type(layer).__name__}): {reason}")
        return _ORIGINAL[_rnn_call](layer, sequences, initial_state=initial_state, mask=mask, training=training)
    # The steps and lengths of the first operator; steps without the zeros that a Masking wrote into the padding
    values, lengths = sequences, run.lengths_at(sequences)
    gathered = None
    if (masked := run.with_mask(mask)) is not None:
        values, lengths = run.unfilled(sequences), masked.lengths
    elif mask is not None:
        gathered = GatheredSteps(mask)
        values, lengths = gathered.to_front(sequences), gathered.lengths
    # Each cell runs over the outputs of the cell before
    states: list[list[Tensor]] = []
    for cell, form, initial_states in zip(cells, forms, _initial_states(initial_state, len(cells)), strict=True):
        assert isinstance(form, recurrent.CellForm)
        direction = "reverse" if layer.go_backwards else "forward"
        values, last_states = recurrent.run(
            form, run.known.weights_of([cell], form), values, lengths, direction, initial_states
        )
        states_of_cell = [last_state.squeeze(0) for last_state in last_states]
        if gathered is not None:  # a row without valid steps keeps its initial state
            pairs = itertools.zip_longest(states_of_cell, initial_states)
            states_of_cell = [gathered.last_state(last_state, initial) for last_state, initial in pairs]
        states.append(states_of_cell)
    # The output; with `return_state` followed by the states, of stacked cells by a list for each LSTM
    output = _output(layer, run, values, states[-1][0], mask, gathered)
    if not layer.return_state:
        return output
    if len(cells) == 1:
        return (output, *states[0])
    return (output, *(of_cell if len(of_cell) > 1 else of_cell[0] for of_cell in states))


def _first_mask(mask: Any) -> Any:
    """The mask of the steps: the first, if Keras passes a list with one for each input of the layer."""
    return mask[0] if isinstance(mask, list | tuple) else mask


def _output(
    layer: Any, run: KerasRun, values: Tensor, last_state: Tensor, mask: Any, gathered: GatheredSteps | None
) -> Tensor:
    """The output of a recurrent layer as Keras gives it, computed from the outputs of the operator.

    With `return_sequences` of the layer it has all steps, in the order in which they ran; else it is the last state. At
    masked steps it is 0 with `zero_output_for_mask`, otherwise the output of the valid step that ran before.

    Args:
        layer: The layer of Keras.
        run: The run.
        values: The outputs of the operator, `[rows, width, hidden]`.
        last_state: `[rows, hidden]`.
        mask: The mask of the layer, `[rows, width]`; None if it has none.
        gathered: What has moved the valid steps to the front; None if nothing has.
    """
    # The last state
    if not layer.return_sequences:
        if mask is None or not layer.zero_output_for_mask:
            return last_state
        is_valid = mask[:, :1] if layer.go_backwards else mask[:, -1:]  # the step that runs last
        return torch.where(is_valid.bool(), last_state, 0.0)
    # All steps
    if gathered is not None:
        return gathered.from_front(values, backwards=layer.go_backwards, repeated=not layer.zero_output_for_mask)
    if layer.go_backwards:  # in the order in which the steps ran, as in Keras
        return values.flip(1)
    if mask is None or layer.zero_output_for_mask:
        return values
    return run.fill(values, last_state.unsqueeze(1), mask)


def _initial_states(initial: Any, cells: int) -> list[list[Tensor]]:
    """The initial states of each cell as a list, from the argument `initial_state` of a layer; empty lists for zeros.

    Keras takes a tensor or a list of tensors; of several cells a list with one of these for each.
    """
    if initial is None:
        return [[]] * cells
    states = list(initial) if isinstance(initial, list | tuple) else [initial]
    by_cell = states if cells > 1 else [states]
    return [list(of_cell) if isinstance(of_cell, list | tuple) else [of_cell] for of_cell in by_cell]


_MERGED: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "concat": lambda first, second: torch.cat([first, second], dim=-1),
    "sum": torch.add,
    "ave": lambda first, second: (first + second) / 2,
    "mul": torch.mul,
}
"""How a bidirectional layer joins the outputs of its two directions, by its `merge_mode`."""


def _bidirectional_call(
    layer: Any, sequences: Tensor, initial_state: Any = None, mask: Any = None, training: Any = None
) -> Any:
    """Replaces `Bidirectional.call` by one operator with two directions, if both have cells of the same form.

    With other cells, an initial or kept state, or a mask that is not that of the lengths, the original method runs: it
    calls each direction as a layer.
    """
    run, mask = _running[-1], _first_mask(mask)
    forward, backward = layer.forward_layer, layer.backward_layer
    form, backward_form = (
        recurrent.form_of(direction.cell) if hasattr(direction, "cell") else "it has no cell"
        for direction in (forward, backward)
    )
    needs_keras = forward.go_backwards or layer.stateful or initial_state is not None
    masked = run.with_mask(mask)
    has_lengths = mask is None or masked is not None
    if isinstance(form, str) or form != backward_form or needs_keras or not has_lengths:
        options = {"initial_state": initial_state, "mask": mask, "training": training}
        return _ORIGINAL[_bidirectional_call](layer, sequences, **options)
    # Run the operator
    weights = run.known.weights_of([forward.cell, backward.cell], form)
    lengths = run.lengths_at(sequences) if masked is None else masked.lengths
    values = sequences if mask is None else run.unfilled(sequences)
    outputs, last_states = recurrent.run(form, weights, values, lengths, "bidirectional")
    # Join the outputs of both directions: the last states, or all steps
    forward_output, backward_output = last_states[0]
    if layer.return_sequences:
        forward_output, backward_output = outputs[..., : form.hidden], outputs[..., form.hidden :]
    if layer.merge_mode is None:
        merged: tuple[Tensor, ...] = (forward_output, backward_output)
    elif layer.merge_mode == "concat" and layer.return_sequences:
        merged = (outputs,)
    else:
        merged = (_MERGED[layer.merge_mode](forward_output, backward_output),)
    if layer.return_state:
        merged = (*merged, *(state[0] for state in last_states), *(state[1] for state in last_states))
    return merged if len(merged) > 1 else merged[0]


def _time_distributed_call(layer: Any, inputs: Tensor, training: Any = None, mask: Any = None) -> Any:
    """Replaces `TimeDistributed.call`: runs the inner layer once, over a batch whose rows are the steps of all rows."""
    inner = layer.layer
    if type(inner).__name__ == "Dense":  # it works on the last axis, whatever is before it
        return inner.call(inputs)
    rows, width = inputs.shape[:2]
    options: dict[str, Any] = {}
    if inner._call_has_mask_arg and mask is not None:
        options["mask"] = mask.reshape(-1)
    if inner._call_has_training_arg:
        options["training"] = training
    answer = inner.call(inputs.flatten(0, 1), **options)
    return answer.reshape(rows, width, *answer.shape[1:])
