"""A Keras model as a torch module `forward(steps, lengths)`, whose mask comes from the lengths.

On its torch backend, Keras' layers are torch modules and their code is torch code, so the model's own layers run. While
they run, this module replaces four things in Keras:

    Masking, Embedding(mask_zero)   the mask is that of the lengths, and is not computed from the values
    LSTM | GRU | SimpleRNN | RNN    one operator with lengths, where Keras loops over the steps in Python
    Bidirectional                   one operator with two directions, if both are such layers
    TimeDistributed                 one call for all steps, where Keras calls its layer for each step

Everything that Keras does with a mask, and every layer that drops one, stays as it is: `agreement` compares the answers
with those of Keras. A recurrent layer repeats its last output at masked steps, which is kept too.

The replacements are process-wide, so a run holds `PROCESS_WIDE`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn

from lengthwise_export.keras_models import recurrent
from lengthwise_export.keras_models.backend import import_keras
from lengthwise_export.keras_models.functional import GraphMasks, masks_in, run_graph
from lengthwise_export.keras_models.gathering import GatheredSteps
from lengthwise_export.keras_models.summary import SummaryLayer, layers_of, output_names
from lengthwise_export.masks import step_mask
from lengthwise_export.tracing.patched_builtins import trace_error
from lengthwise_export.tracing.process_wide import PROCESS_WIDE


class KerasModule(nn.Module):
    """A Keras model that takes lengths, or the steps alone.

    Its layers are its torch children, by their names in the model's summary, so that operators are named by layer.

    Args:
        model: The Keras model, with one input.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._held = (model,)  # in a tuple, so that torch does not register the model itself
        self.parts: list[tuple[nn.Module, SummaryLayer]] = []
        self._operations: dict[int, NamedOperation] = {}
        for layer in layers_of(model):
            name = layer.path.replace(".", "_")
            part = layer.layer
            if not isinstance(part, nn.Module):
                part = NamedOperation(part)
                self._operations[identity(layer.layer)] = part
            self.parts.append((part, layer))
            self.add_module(f"{name}_" if hasattr(self, name) else name, part)
        self._weights: dict[tuple[int, ...], recurrent.CellWeights] = {}
        self._forms: dict[int, recurrent.CellForm | str] = {}
        self._learned: dict[int, bool] = {}
        self._masks: dict[int, GraphMasks] = {}
        self.learning = False

    @property
    def model(self) -> Any:
        """The Keras model."""
        return self._held[0]

    def part_of(self, operation: Any) -> Callable[..., Any]:
        """What calls an operation between layers, as a part of this module if it is in the summary."""
        return self._operations.get(identity(operation), operation)

    def train(self, mode: bool = True) -> KerasModule:
        """Changes no layer: Keras passes the mode with each call, and here it is always that of inference."""
        self.training = False
        return self

    def forward(self, steps: Tensor, lengths: Tensor | None = None) -> Any:
        """Runs `[rows, width, features]`, or tokens `[rows, width]`, with lengths `[rows]`.

        Without lengths there is no mask: each row is a sequence of its own of the full width.
        """
        with _KerasRun(self, steps, lengths).listening():
            answer = self.model(steps, training=False)
        names = output_names(self.model)
        if isinstance(answer, list | tuple) and len(answer) == len(names):
            return dict(zip(names, answer, strict=True))
        return answer

    def is_learned(self, layer: Any, compare: Callable[[], bool]) -> bool:
        """Whether what `compare` compares was equal in every run of `agreement`."""
        if self.learning:
            self._learned[identity(layer)] = compare() and self._learned.get(identity(layer), True)
        return self._learned.get(identity(layer), False)

    def gets_lengths(self, layer: Any) -> bool:
        """Whether the mask of a recurrent layer is that of the lengths."""
        return self._learned.get(identity(layer), False)

    def form_of(self, cell: Any) -> recurrent.CellForm | str:
        """What a cell computes; or, as a text, why it has no counterpart in ONNX."""
        if identity(cell) not in self._forms:
            self._forms[identity(cell)] = recurrent.form_of(cell)
        return self._forms[identity(cell)]

    def masks_in(self, function: Any) -> GraphMasks:
        """The masks in the graph of a functional model, of this model or inside it."""
        if identity(function) not in self._masks:
            self._masks[identity(function)] = masks_in(function)
        return self._masks[identity(function)]

    def weights_of(self, cells: list[Any], form: recurrent.CellForm) -> recurrent.CellWeights:
        """The weights of the cells of the directions of one layer, copied once."""
        key = tuple(map(identity, cells))
        if key not in self._weights:
            self._weights[key] = recurrent.CellWeights(cells, form)
            self.add_module(f"recurrent_weights_{len(self._weights)}", self._weights[key])
        return self._weights[key]


def identity(part: Any) -> int:
    """A number for a layer, an operation or a cell, which the stand-in that a trace makes of it has too."""
    return id(getattr(part, "_tracker", part))  # a stand-in has a copy of the attributes, with the same tracker


class NamedOperation(nn.Module):
    """An operation of Keras between layers, such as an addition, as a part that a trace names.

    Args:
        operation: The operation.
    """

    def __init__(self, operation: Any) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """Calls the operation."""
        return self.operation(*arguments, **options)


_running: list[_KerasRun] = []
"""The runs, innermost last: what is replaced in Keras uses the last one. Guarded by `PROCESS_WIDE`."""


class _KerasRun:
    """One run of a module: the lengths, the mask that they make, and the values of masked steps before they changed."""

    def __init__(self, module: KerasModule, steps: Tensor, lengths: Tensor | None) -> None:
        self.module = module
        self.steps = steps
        self.lengths = lengths
        self.mask = None if lengths is None else step_mask(lengths, steps.shape[1])
        # The tensors are kept alive, so that no other tensor gets their id.
        self._unfilled: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def is_traced(self) -> bool:
        """Whether the run is a trace, in which values cannot be compared."""
        return torch.compiler.is_exporting() or type(self.steps) is not Tensor

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Replaces parts of Keras during the block."""
        keras = import_keras()
        layers = keras.layers
        replaced: list[tuple[type[Any], str, Callable[..., Any]]] = [
            (layers.Masking, "call", _masking_call),
            (layers.Masking, "compute_mask", _masking_mask),
            (layers.Embedding, "compute_mask", _embedding_mask),
            (layers.RNN, "call", _rnn_call),
            (layers.Bidirectional, "call", _bidirectional_call),
            (layers.TimeDistributed, "call", _time_distributed_call),
            (_function_class(), "_run_through_graph", _run_through_graph),
        ]
        with PROCESS_WIDE, contextlib.ExitStack() as undo:
            _running.append(self)
            undo.callback(_running.pop)
            if len(_running) == 1:
                for owner, name, function in replaced:
                    undo.callback(setattr, owner, name, owner.__dict__[name])
                    _ORIGINAL[function] = owner.__dict__[name]
                    setattr(owner, name, function)
                if keras.config.is_traceback_filtering_enabled():
                    keras.config.disable_traceback_filtering()
                    undo.callback(keras.config.enable_traceback_filtering)
            for layer in self.module.model._flatten_layers():
                # A loss of training, for which Keras would count the rows of each run.
                if (regularizer := getattr(layer, "activity_regularizer", None)) is not None:
                    undo.callback(setattr, layer, "activity_regularizer", regularizer)
                    layer.activity_regularizer = None
            undo.enter_context(keras.device("cpu"))
            undo.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # that a layer drops the mask: the check says so with its cause
            yield

    def is_over_input(self, layer: Any, inputs: Tensor) -> bool:
        """Whether a layer reads the steps as they came in, if need be with an axis for their one feature."""

        def is_same() -> bool:
            own = self.steps if inputs.dim() == self.steps.dim() else self.steps.unsqueeze(-1)
            return inputs.shape == own.shape and torch.equal(inputs.double(), own.double())

        return self.module.is_learned(layer, is_same)

    def named(self, operation: Any) -> Callable[..., Any]:
        """What calls an operation between layers under its name."""
        return self.module.part_of(operation)

    def is_by_lengths(self, layer: Any, mask: Tensor) -> bool:
        """Whether the mask of a layer is that of the lengths."""
        if self.mask is None:
            return False
        own = self.mask
        return self.module.is_learned(layer, lambda: mask.shape == own.shape and torch.equal(mask.bool(), own))

    def fill(self, values: Tensor, instead: Tensor | float) -> Tensor:
        """Replaces the values of masked steps `[rows, width, features]`."""
        assert self.mask is not None
        kept = torch.where(self.mask.unsqueeze(-1), values, instead)
        self._unfilled[id(kept)] = (kept, values)
        return kept

    def unfilled(self, values: Tensor) -> Tensor:
        """The same values at valid steps, without the work of replacing those of masked steps."""
        return self._unfilled.get(id(values), (values, values))[1]

    def lengths_at(self, values: Tensor) -> Tensor | None:
        """The lengths for a recurrent layer that has no mask.

        A trace gives it those of the sequences, if its input may be as wide as the batch: that makes no difference to
        the answers of a model without leaks, and only such a model is traced with lengths.
        """
        if self.lengths is None or not self.is_traced:
            return None
        if values.shape[:2] == self.steps.shape[:2]:
            return self.lengths
        return torch.full((values.shape[0],), values.shape[1], dtype=torch.int64)


_ORIGINAL: Final[dict[Callable[..., Any], Callable[..., Any]]] = {}
"""What each function replaces."""


def _masking_call(layer: Any, inputs: Tensor) -> Any:
    run = _running[-1]
    if not run.is_over_input(layer, inputs):
        return _ORIGINAL[_masking_call](layer, inputs)
    if run.mask is None:
        return inputs
    kept = run.fill(inputs, 0.0)
    _set_mask(kept, run.mask)
    return kept


def _masking_mask(layer: Any, inputs: Tensor, mask: Any = None) -> Any:
    run = _running[-1]
    return run.mask if run.is_over_input(layer, inputs) else _ORIGINAL[_masking_mask](layer, inputs, mask)


def _embedding_mask(layer: Any, inputs: Tensor, mask: Any = None) -> Any:
    run = _running[-1]
    if not layer.mask_zero or not run.is_over_input(layer, inputs):
        return _ORIGINAL[_embedding_mask](layer, inputs, mask)
    return run.mask


def _run_through_graph(function: Any, inputs: Any, operation_fn: Any = lambda op: op, call_fn: Any = None) -> Any:
    """Replaces `Function._run_through_graph`."""
    run = _running[-1]
    if call_fn is not None:
        return _ORIGINAL[_run_through_graph](function, inputs, operation_fn, call_fn)
    from keras import tree

    known = run_graph(function, run.module.masks_in(function), run, tree.flatten(inputs), operation_fn)
    return tree.pack_sequence_as(function._outputs_struct, [known[id(symbol)] for symbol in function.outputs])


def _function_class() -> type[Any]:
    from keras.src.ops.function import Function  # what runs the graph of a functional model; it has no public name

    kind: type[Any] = Function
    return kind


def _set_mask(tensor: Tensor, mask: Tensor) -> None:
    from keras.src import backend  # Keras has no public name for it

    backend.set_keras_mask(tensor, mask)


def _rnn_call(layer: Any, sequences: Tensor, initial_state: Any = None, mask: Any = None, training: Any = False) -> Any:
    """Replaces `RNN.call`, which `LSTM`, `GRU` and `SimpleRNN` inherit."""
    run = _running[-1]
    if isinstance(mask, list | tuple):
        mask = mask[0]
    cells = list(layer.cell.cells) if type(layer.cell).__name__ == "StackedRNNCells" else [layer.cell]
    forms = [run.module.form_of(cell) for cell in cells]
    why = next((form for form in forms if isinstance(form, str)), None)
    if why is None and layer.stateful:
        why = "it is stateful: its answer depends on the calls before"
    if why is not None:
        if run.is_traced:
            raise trace_error(None, f"{layer.name} ({type(layer).__name__}): {why}")
        return _ORIGINAL[_rnn_call](layer, sequences, initial_state=initial_state, mask=mask, training=training)
    before = _initial_states(initial_state, len(cells))
    values, lengths = sequences, run.lengths_at(sequences)
    gathered = None
    if mask is not None and run.is_by_lengths(layer, mask):
        values, lengths = run.unfilled(sequences), run.lengths
    elif mask is not None:
        gathered = GatheredSteps(mask)
        values, lengths = gathered.in_front(sequences), gathered.lengths
    direction = "reverse" if layer.go_backwards else "forward"
    states: list[Any] = []
    last = values
    for place, (cell, form) in enumerate(zip(cells, forms, strict=True)):
        assert isinstance(form, recurrent.CellForm)
        weights = run.module.weights_of([cell], form)
        values, ends = recurrent.run(form, weights, values, lengths, direction, before[place])
        own = [end.squeeze(0) for end in ends]
        if gathered is not None:
            starts = [state.squeeze(0) for state in before[place]] or [None] * len(own)
            own = [gathered.kept(end, start) for end, start in zip(own, starts, strict=True)]
        last = own[0]
        states.append(own if len(own) > 1 else own[0])
    output = last
    if layer.return_sequences and gathered is not None:
        output = gathered.back(values, backwards=layer.go_backwards, repeated=not layer.zero_output_for_mask)
    elif layer.return_sequences:
        output = values
        if layer.go_backwards:
            output = values.flip(1)
        elif mask is not None and not layer.zero_output_for_mask:
            output = run.fill(values, last.unsqueeze(1))
    elif mask is not None and layer.zero_output_for_mask:
        processed_last = mask[:, :1] if layer.go_backwards else mask[:, -1:]
        output = torch.where(processed_last.bool(), last, 0.0)
    if not layer.return_state:
        return output
    return (output, *(states if len(cells) > 1 else states[0] if isinstance(states[0], list) else states))


def _initial_states(given: Any, cells: int) -> list[list[Tensor]]:
    """The initial states of each cell, each `[1, rows, hidden]`; empty lists for zeros."""
    if given is None:
        return [[] for _ in range(cells)]
    listed = list(given) if isinstance(given, list | tuple) else [given]
    of_cells = listed if cells > 1 else [listed]
    return [
        [state.unsqueeze(0) for state in (states if isinstance(states, list | tuple) else [states])]
        for states in of_cells
    ]


def _bidirectional_call(
    layer: Any, sequences: Tensor, initial_state: Any = None, mask: Any = None, training: Any = None
) -> Any:
    """Replaces `Bidirectional.call`, if both directions are layers of the same form."""
    run = _running[-1]
    forward, backward = layer.forward_layer, layer.backward_layer
    if isinstance(mask, list | tuple):
        mask = mask[0]
    forms = [run.module.form_of(each.cell) if hasattr(each, "cell") else "" for each in (forward, backward)]
    form = forms[0]
    is_plain = (
        isinstance(form, recurrent.CellForm)
        and forms[0] == forms[1]
        and not (forward.go_backwards or layer.stateful or initial_state is not None)
        and (mask is None or run.is_by_lengths(layer, mask))
    )
    if not is_plain:
        return _ORIGINAL[_bidirectional_call](
            layer, sequences, initial_state=initial_state, mask=mask, training=training
        )
    assert isinstance(form, recurrent.CellForm)
    weights = run.module.weights_of([forward.cell, backward.cell], form)
    lengths = run.lengths if mask is not None else run.lengths_at(sequences)
    values = sequences if mask is None else run.unfilled(sequences)
    outputs, ends = recurrent.run(form, weights, values, lengths, "bidirectional")
    hidden = form.hidden
    if layer.return_sequences:
        first, second = outputs[..., :hidden], outputs[..., hidden:]
    else:
        first, second = ends[0][0], ends[0][1]
    merged: Any
    if layer.merge_mode == "concat":
        merged = outputs if layer.return_sequences else torch.cat([first, second], dim=-1)
    elif layer.merge_mode == "sum":
        merged = first + second
    elif layer.merge_mode == "ave":
        merged = (first + second) / 2
    elif layer.merge_mode == "mul":
        merged = first * second
    else:
        merged = (first, second)
    if not layer.return_state:
        return merged
    states = (*(end[0] for end in ends), *(end[1] for end in ends))
    return (*merged, *states) if layer.merge_mode is None else (merged, *states)


def _time_distributed_call(layer: Any, inputs: Tensor, training: Any = None, mask: Any = None) -> Any:
    """Replaces `TimeDistributed.call`: rows and steps are merged for the inner layer, which keeps its rows apart."""
    inner = layer.layer
    rows, width = inputs.shape[:2]
    options: dict[str, Any] = {}
    if inner._call_has_mask_arg and mask is not None:
        options["mask"] = mask.reshape(-1)
    if inner._call_has_training_arg:
        options["training"] = training
    answer = inner.call(inputs.flatten(0, 1), **options)
    return answer.reshape(rows, width, *answer.shape[1:])
