"""Replaces methods of Keras while a model runs, in the whole process: a run holds the lock `PROCESS_WIDE`.

Masking, Embedding(mask_zero)   the mask is that of the lengths, and is not computed from the values
LSTM | GRU | SimpleRNN | RNN    one operator with lengths, where Keras loops over the steps in Python
Bidirectional                   one operator with two directions, if both are such layers
TimeDistributed                 one call for all steps, where Keras calls its layer for each step
the graph of a functional model the mask of the lengths, where the graph computes it from values
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor

from lengthwise_export.errors import TraceError
from lengthwise_export.keras_models import recurrent
from lengthwise_export.keras_models.backend import import_keras, on_device
from lengthwise_export.keras_models.recurrent import GatheredSteps
from lengthwise_export.keras_models.run import KerasRun, run_graph
from lengthwise_export.tracing.process_wide import PROCESS_WIDE

_running: list[KerasRun] = []
"""The runs, innermost last: the functions here use the last one. Guarded by `PROCESS_WIDE`."""

_ORIGINAL: Final[dict[Callable[..., Any], Callable[..., Any]]] = {}  # by the function that replaces it


@contextlib.contextmanager
def replaced_for(run: KerasRun, model: Any) -> Iterator[None]:
    """During the block, replaces methods of Keras's layers by the functions here, which use `run`."""
    layers = import_keras().layers
    from keras.src.ops.function import Function  # what runs the graph of a functional model; it has no public name

    replaced: list[tuple[type[Any], str, Callable[..., Any]]] = [
        (layers.Masking, "call", _masking_call),
        (layers.Masking, "compute_mask", _masking_mask),
        (layers.Embedding, "compute_mask", _embedding_mask),
        (layers.RNN, "call", _rnn_call),
        (layers.Bidirectional, "call", _bidirectional_call),
        (layers.TimeDistributed, "call", _time_distributed_call),
        (Function, "_run_through_graph", _run_through_graph),
    ]
    with PROCESS_WIDE, contextlib.ExitStack() as undo:
        _running.append(run)
        undo.callback(_running.pop)
        if len(_running) == 1:  # a model inside a model finds them replaced
            for owner, name, function in replaced:
                undo.callback(setattr, owner, name, owner.__dict__[name])
                _ORIGINAL[function] = owner.__dict__[name]
                setattr(owner, name, function)
        for layer in model._flatten_layers():
            # It is a loss of training, for which Keras would take the number of rows as a constant of the trace.
            if (regularizer := getattr(layer, "activity_regularizer", None)) is not None:
                undo.callback(setattr, layer, "activity_regularizer", regularizer)
                layer.activity_regularizer = None
        undo.enter_context(on_device())
        yield


def _masking_call(layer: Any, inputs: Tensor) -> Any:
    """Replaces `Masking.call`: steps past each length become 0, and the result gets the mask of the lengths.

    A Masking that reads something other than the model's own steps runs as it is.
    """
    run = _running[-1]
    if not run.reads_input(layer, inputs):
        return _ORIGINAL[_masking_call](layer, inputs)
    if run.mask is None:
        return inputs
    from keras.src import backend  # Keras has no public name for it

    filled = run.fill(inputs, 0.0)
    backend.set_keras_mask(filled, run.mask)
    return filled


def _masking_mask(layer: Any, inputs: Tensor, mask: Any = None) -> Any:
    """Replaces `Masking.compute_mask`: gives the mask of the lengths where the layer reads the model's own steps."""
    run = _running[-1]
    return run.mask if run.reads_input(layer, inputs) else _ORIGINAL[_masking_mask](layer, inputs, mask)


def _embedding_mask(layer: Any, inputs: Tensor, mask: Any = None) -> Any:
    """Replaces `Embedding.compute_mask`: gives the mask of the lengths where the layer reads the model's own tokens."""
    run = _running[-1]
    if not layer.mask_zero or not run.reads_input(layer, inputs):
        return _ORIGINAL[_embedding_mask](layer, inputs, mask)
    return run.mask


def _run_through_graph(function: Any, inputs: Any, operation_fn: Any = lambda op: op, call_fn: Any = None) -> Any:
    """Replaces `Function._run_through_graph`: masks that the graph computes from the steps are those of the lengths."""
    run = _running[-1]
    if call_fn is not None:
        return _ORIGINAL[_run_through_graph](function, inputs, operation_fn, call_fn)
    from keras import tree

    known = run_graph(function, run, tree.flatten(inputs), operation_fn)
    return tree.pack_sequence_as(function._outputs_struct, [known[id(symbol)] for symbol in function.outputs])


def _rnn_call(layer: Any, sequences: Tensor, initial_state: Any = None, mask: Any = None, training: Any = False) -> Any:
    """Replaces `RNN.call`, which `LSTM`, `GRU` and `SimpleRNN` inherit, by one operator for each cell.

    The steps and lengths of the operator depend on the mask that the layer gets: none, that of the lengths, or another,
    by which the valid steps are moved to the front (`GatheredSteps`).

    Raises:
        TraceError: In a trace: the layer is stateful, or ONNX has no operator for a cell. Otherwise Keras runs it.
    """
    run, mask = _running[-1], _first_mask(mask)
    cells = list(layer.cell.cells) if type(layer.cell).__name__ == "StackedRNNCells" else [layer.cell]
    forms = [recurrent.form_of(cell) for cell in cells]
    why = next((form for form in forms if isinstance(form, str)), None)
    if why is None and layer.stateful:
        why = "it is stateful: its answer depends on the calls before"
    if why is not None:
        if run.is_traced:
            raise TraceError(None, f"{layer.name} ({type(layer).__name__}): {why}")
        return _ORIGINAL[_rnn_call](layer, sequences, initial_state=initial_state, mask=mask, training=training)
    values, lengths = sequences, run.lengths_at(sequences)
    gathered = None
    if mask is not None and run.has_mask_of_lengths(layer, mask):
        values, lengths = run.unfilled(sequences), run.lengths
    elif mask is not None:
        gathered = GatheredSteps(mask)
        values, lengths = gathered.in_front(sequences), gathered.lengths
    states: list[list[Tensor]] = []
    for cell, form, start in zip(cells, forms, _initial_states(initial_state, len(cells)), strict=True):
        assert isinstance(form, recurrent.CellForm)
        direction = "reverse" if layer.go_backwards else "forward"
        values, ends = recurrent.run(form, run.known.weights_of([cell], form), values, lengths, direction, start)
        states_of_cell = [end.squeeze(0) for end in ends]
        if gathered is not None:  # a row without valid steps keeps its initial states
            pairs = itertools.zip_longest(states_of_cell, start)
            states_of_cell = [gathered.last_state(end, initial) for end, initial in pairs]
        states.append(states_of_cell)
    output = _output(layer, run, values, states[-1][0], mask, gathered)
    if not layer.return_state:
        return output
    if len(cells) == 1:
        return (output, *states[0])
    return (output, *(of_cell if len(of_cell) > 1 else of_cell[0] for of_cell in states))


def _first_mask(mask: Any) -> Any:
    """The mask of the steps, of which Keras may give a list."""
    return mask[0] if isinstance(mask, list | tuple) else mask


def _output(
    layer: Any, run: KerasRun, values: Tensor, last: Tensor, mask: Any, gathered: GatheredSteps | None
) -> Tensor:
    """The output of a recurrent layer as Keras gives it: the `last` state, or `values`, its outputs at all steps.

    At masked steps it is 0 with `zero_output_for_mask`, otherwise the output of the step before.
    """
    if not layer.return_sequences:
        if mask is None or not layer.zero_output_for_mask:
            return last
        is_last_step_valid = mask[:, :1] if layer.go_backwards else mask[:, -1:]
        return torch.where(is_last_step_valid.bool(), last, 0.0)
    if gathered is not None:
        return gathered.back(values, backwards=layer.go_backwards, repeated=not layer.zero_output_for_mask)
    if layer.go_backwards:
        return values.flip(1)
    is_filled = mask is not None and not layer.zero_output_for_mask
    return run.fill(values, last.unsqueeze(1)) if is_filled else values


def _initial_states(initial: Any, cells: int) -> list[list[Tensor]]:
    """The initial states of each cell; empty lists for zeros."""
    if initial is None:
        return [[]] * cells
    tensors = list(initial) if isinstance(initial, list | tuple) else [initial]
    of_cells = tensors if cells > 1 else [tensors]
    return [list(states) if isinstance(states, list | tuple) else [states] for states in of_cells]


_MERGED: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "concat": lambda first, second: torch.cat([first, second], dim=-1),
    "sum": torch.add,
    "ave": lambda first, second: (first + second) / 2,
    "mul": torch.mul,
}


def _bidirectional_call(
    layer: Any, sequences: Tensor, initial_state: Any = None, mask: Any = None, training: Any = None
) -> Any:
    """Replaces `Bidirectional.call` by one operator, if both directions have cells of the same form.

    With other cells, a state, or a mask that is not that of the lengths, each direction runs as a layer of its own.
    """
    run, mask = _running[-1], _first_mask(mask)
    forward, backward = layer.forward_layer, layer.backward_layer
    form, backward_form = (
        recurrent.form_of(inner.cell) if hasattr(inner, "cell") else "" for inner in (forward, backward)
    )
    is_plain = not (forward.go_backwards or layer.stateful) and initial_state is None
    has_lengths = mask is None or run.has_mask_of_lengths(layer, mask)
    if isinstance(form, str) or form != backward_form or not is_plain or not has_lengths:
        options = {"initial_state": initial_state, "mask": mask, "training": training}
        return _ORIGINAL[_bidirectional_call](layer, sequences, **options)
    weights = run.known.weights_of([forward.cell, backward.cell], form)
    lengths = run.lengths if mask is not None else run.lengths_at(sequences)
    values = sequences if mask is None else run.unfilled(sequences)
    outputs, ends = recurrent.run(form, weights, values, lengths, "bidirectional")
    first, second = ends[0][0], ends[0][1]
    if layer.return_sequences:
        first, second = outputs[..., : form.hidden], outputs[..., form.hidden :]
    if layer.merge_mode is None:
        merged: tuple[Tensor, ...] = (first, second)
    elif layer.merge_mode == "concat" and layer.return_sequences:
        merged = (outputs,)
    else:
        merged = (_MERGED[layer.merge_mode](first, second),)
    if layer.return_state:
        merged = (*merged, *(end[0] for end in ends), *(end[1] for end in ends))
    return merged if len(merged) > 1 else merged[0]


def _time_distributed_call(layer: Any, inputs: Tensor, training: Any = None, mask: Any = None) -> Any:
    """Replaces `TimeDistributed.call`: runs the inner layer once, with each step of each row as a row."""
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
