"""A Keras model: what a step of it is, and the model as a torch module whose mask comes from the lengths.

On its torch backend Keras' layers are torch modules, so the model's own layers run; `replaced` says what is replaced
meanwhile. What Keras does with a mask, and every layer that drops one, stays: `agreement` compares the answers.

A model's *summary* is the numbered list of its layers that `model.summary()` prints; messages name layers by it.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lengthwise_export.errors import ConfigurationError
from lengthwise_export.keras_models.backend import import_keras
from lengthwise_export.keras_models.recurrent import own_activation
from lengthwise_export.keras_models.replaced import replaced_for
from lengthwise_export.keras_models.run import KerasRun, KnownLayers, RunSequence
from lengthwise_export.layouts import PaddedBatch
from lengthwise_export.masks import step_mask
from lengthwise_export.onnx_graphs.beside import (
    LENGTHS,
    MOST_SEQUENCES,
    SequenceInput,
    StepInput,
    completed,
    is_static_name,
    safe_name,
    static_input,
)
from lengthwise_export.options import BESIDE_HINT, TargetOptions
from lengthwise_export.tracing.beside_arguments import StaticArgument, meaning_of
from lengthwise_export.tracing.call_signature import CallSignature

_STAND_IN_DISTANCE: Final = 1.375  # from the value that is masked: no number that a model is likely to compare with


@dataclass(frozen=True, slots=True)
class SummaryLayer:
    """A layer of a model, or an operation between layers."""

    path: str  # Its name; inside a nested model or a user's own layer, with that one's name: `model/layer`
    layer: Any  # The object of Keras
    number: int  # Its number in the model's summary, from 1; inside another layer, the number of that layer
    count: int  # How many layers the summary lists

    @property
    def kind(self) -> str:
        """The name of its class."""
        return type(self.layer).__name__

    @property
    def is_whole(self) -> bool:
        """Whether a check records the layer as one operation: it is one of Keras, and not a model or a user's own."""
        return type(self.layer).__module__.startswith("keras.") and not hasattr(self.layer, "layers")

    def __str__(self) -> str:
        """`layer 3 of 5 in the summary`; inside another layer `in layer 3 of 5 in the summary`."""
        return f"{'in ' if '/' in self.path else ''}layer {self.number} of {self.count} in the summary"


def layers_of(model: Any) -> Iterator[SummaryLayer]:
    """Yields the layers of a model in the order of its summary, with the operations between layers.

    A nested model, or a user's own layer, is followed by the layers inside it.
    """
    is_graph = hasattr(model, "operations") and type(model).__name__ != "Sequential"
    layers = list(model.operations if is_graph else model.layers)
    for index, layer in enumerate(layers, 1):
        yield from _layers_inside(SummaryLayer(layer.name, layer, index, len(layers)))


def _layers_inside(outer: SummaryLayer) -> Iterator[SummaryLayer]:
    """Yields the layer `outer`; then the layers inside it, if it is a nested model or a user's own layer."""
    yield outer
    if outer.is_whole:
        return
    for layer in outer.layer._flatten_layers(include_self=False, recursive=False):
        yield from _layers_inside(SummaryLayer(f"{outer.path}/{layer.name}", layer, outer.number, outer.count))


def output_names(model: Any) -> tuple[str, ...]:
    """The names of a model's outputs, each once: further outputs of one layer are `name_1`, `name_2`.

    Empty if the outputs have no names.
    """
    names: list[str] = []
    for name in getattr(model, "output_names", None) or ():
        candidates = itertools.chain([str(name)], (f"{name}_{number}" for number in itertools.count(1)))
        names.append(next(unique for unique in candidates if unique not in names))
    return tuple(names)


class KerasModule(nn.Module):
    """A Keras model as a torch module that takes the steps and, if the caller has them, the lengths.

    The layers of the model are its submodules, under their names in the summary.
    """

    def __init__(self, model: Any, model_input: ModelInput) -> None:
        super().__init__()
        self._model_in_tuple = (model,)  # in a tuple, torch does not register the model itself as a submodule
        self._order, self._further = model_input.order, model_input.further
        self.known = KnownLayers(model_input.padding, model_input.stand_ins)  # what all runs share
        self.parts: list[tuple[nn.Module, SummaryLayer]] = []  # the submodule for each layer of the summary
        for summary_layer in layers_of(model):
            name = summary_layer.path.replace(".", "_")
            module = summary_layer.layer
            if not isinstance(module, nn.Module):  # an operation between layers
                module = NamedOperation(module)
                self.known.register(summary_layer.layer, module)
            self.parts.append((module, summary_layer))
            self.add_module(f"{name}_" if hasattr(self, name) else name, module)

    @property
    def model(self) -> Any:
        """The Keras model."""
        return self._model_in_tuple[0]

    def train(self, mode: bool = True) -> KerasModule:
        """Stays in inference mode, whatever `mode` is: Keras takes the mode with each call."""
        self.training = False
        return self

    def inputs(self, steps: Tensor, beside: Mapping[str, Tensor]) -> Any:
        """What the model itself takes for steps, and for what stands beside them by the names of its inputs."""
        if len(self._order) < 2:
            return steps
        tensors = [steps if name is None else beside[name] for name in self._order]
        return import_keras().tree.pack_sequence_as(self.model._inputs_struct, tensors)

    def forward(self, steps: Tensor, lengths: Tensor | None = None, **beside: Tensor) -> Any:
        """Runs the model; returns its outputs by name if they have names, else what the model returns.

        Args:
            steps: `[rows, width, features]`, or token ids `[rows, width]`.
            lengths: `[rows]`; None to run without the mask of the lengths.
            **beside: What stands beside the steps, by the names of the model's inputs.
        """
        pairs = [(steps, lengths)]
        for name in self._further:
            pairs.append((beside[name], None if lengths is None else beside[LENGTHS.format(name)]))
        with replaced_for(KerasRun(self.known, [RunSequence.of(*pair) for pair in pairs]), self.model):
            answer = self.model(self.inputs(steps, beside), training=False)
        names = output_names(self.model)
        if isinstance(answer, list | tuple) and len(answer) == len(names):
            return dict(zip(names, answer, strict=True))
        return answer


class NamedOperation(nn.Module):
    """An operation of Keras between layers, such as an addition, as a submodule, so that a trace has a name for it."""

    def __init__(self, operation: Any) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """Calls the operation."""
        return self.operation(*arguments, **options)


MASK_FROM_STEPS: Final = (
    "let the model take the steps alone, and make the mask from them, as in mask = {maker}.compute_mask({steps}), for "
    "token ids mask = keras.ops.not_equal({steps}, 0); give it to each layer as mask=. Lengthwise passes the lengths "
    "itself: their mask stands there when the model is checked and served"
)
"""What to do with lengths or a mask that a model takes as an input of its own."""

_ACTIVATIONS: Final = ("softmax", "sigmoid", "hard_sigmoid")  # those that give probabilities


@dataclass(frozen=True, slots=True)
class ModelInput:
    """The input of a model."""

    steps: StepInput  # Whether a step is numbers or a token id, and how many there are
    features_axis: bool = True  # False if steps of one feature are `[rows, width]`
    mask_notices: tuple[str, ...] = ()  # For the user, on what makes a mask from the values
    padding: float = 0.0  # The value that the first Masking masks, or else the first mask by hand; 0 without one
    fixed: int | None = None  # The number of steps that the model is built for; None for any
    statics: tuple[StaticArgument, ...] = ()  # The inputs with static values, in the order of the values
    order: tuple[str | None, ...] = (None,)  # The names of all inputs as the model takes them; None for the steps

    @property
    def further(self) -> tuple[str, ...]:
        """The names of the further sequences."""
        return tuple(sequence.name for sequence in self.steps.sequences[1:])

    @property
    def arguments(self) -> tuple[tuple[str, str | None], ...]:
        """The arguments of the module without lengths, as a `CallSignature` has them; empty for the steps alone."""
        statics = [(static.role, static.name) for static in self.statics]
        further = [(f"{name} steps", name) for name in self.further]
        return (("steps", None), *statics, *further) if self.order != (None,) else ()

    def signature(self, second: Literal["lengths", "none"]) -> CallSignature:
        """How the module is called: with lengths of each sequence, or without."""
        arguments = self.arguments
        if arguments and second == "lengths":
            ends = [(f"{name} lengths", LENGTHS.format(name)) for name in self.further]
            arguments = (*arguments, ("lengths", "lengths"), *ends)
        names = tuple(sequence.name for sequence in self.steps.sequences)
        return CallSignature(second, arguments, features_axis=self.features_axis, statics=self.statics, sequences=names)

    def beside(self, steps: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """What stands beside steps `[rows, width(, features)]` in a comparison with Keras, by the names of the inputs.

        The padding of a further sequence has the value that Keras masks, and no valid step has it.
        """
        values = steps if self.features_axis or self.steps.kind == "tokens" else steps.unsqueeze(-1)
        batch = completed(PaddedBatch(values.numpy(), lengths.int().numpy()), self.steps)
        tensors = {name: torch.from_numpy(array) for name, array in batch.beside.items()}
        for sequence in self.steps.sequences[1:]:
            further, ends = tensors[sequence.name], tensors[LENGTHS.format(sequence.name)]
            unmasked = torch.where(further == self.padding, further + 1, further) % (sequence.vocabulary or math.inf)
            valid = step_mask(ends, further.shape[1]).reshape(*further.shape[:2], *[1] * (further.dim() - 2))
            tensors[sequence.name] = torch.where(valid, unmasked, self.padding).to(further.dtype)
        arguments = self.signature("lengths").arguments_of(steps, lengths, beside=tensors)
        return {
            name: arguments[role] for role, name in self.signature("lengths").arguments if name not in (None, "lengths")
        }

    @property
    def stand_ins(self) -> tuple[float | None, ...]:
        """For each sequence what a valid step of the value `padding` counts as in comparisons, if it is data.

        None if nothing masks it. A token is one of the vocabulary, far from those at its ends, which often mean
        something to a model.
        """
        sequences = self.steps.sequences or (self.steps,)
        if not self.mask_notices:
            return (None,) * len(sequences)
        return tuple(
            self.padding + _STAND_IN_DISTANCE
            if sequence.vocabulary is None
            else (self.padding + max(1, sequence.vocabulary // 2)) % sequence.vocabulary
            for sequence in sequences
        )


def input_of(text: str, model: Any, options: TargetOptions) -> ModelInput:
    """Reads the inputs of a model: the kind of a step, the layers that mask steps, and the width that it is built for.

    Args:
        text: The user's name of the target, for messages.
        model: The Keras model.
        options: The options of the target; a model that was never built needs `--features` or `--vocabulary`.
    """
    symbols, statics = list(getattr(model, "inputs", None) or ()), list[Any]()
    if len(symbols) > 1:
        statics = _static_symbols(symbols, options)
    names = {str(symbol.name) for symbol in statics}
    sequences = [symbol for symbol in symbols if symbol.name not in names]
    readable = len(sequences) <= MOST_SEQUENCES and not any(map(_is_end, sequences))
    first, *further = (
        [_first_input(text, model, [symbol], options) for symbol in sequences]
        if len(sequences) > 1 and readable
        else [_first_input(text, model, sequences, options)]
    )
    if not statics and not further:
        return first
    arguments = tuple(map(_static_argument, statics))
    sizes = [_table(model, symbol) for symbol, one in zip(statics, arguments, strict=True) for _ in range(one.count)]
    static = static_input({one.name: one.count for one in arguments}, sizes, options) if statics else None
    kinds = [
        SequenceInput(name=safe_name(symbol.name), features=kind.steps.features, vocabulary=kind.steps.vocabulary)
        for symbol, kind in zip(sequences, (first, *further), strict=True)
    ]
    beside = {"static": static, "sequences": tuple(kinds) if further else ()}
    order = [safe_name(symbol.name) if symbol is not sequences[0] else None for symbol in symbols]
    return replace(first, steps=first.steps.model_copy(update=beside), statics=arguments, order=tuple(order))


def _is_end(symbol: Any) -> bool:
    """Whether an input holds lengths or a mask."""
    return symbol.dtype == "bool" or meaning_of(str(symbol.name)) is not None or len(symbol.shape) == 1


def _static_symbols(symbols: Sequence[Any], options: TargetOptions) -> list[Any]:
    """Those of several inputs of a model that hold static values: by the option, their names, or their shapes.

    An input without an axis of a dynamic size holds them, if another one has such an axis.
    """
    has_width = [len(symbol.shape) == 3 or (len(symbol.shape) == 2 and symbol.shape[1] is None) for symbol in symbols]
    return [
        symbol
        for symbol, is_sequence in zip(symbols, has_width, strict=True)
        if symbol.name in (options.static or ())
        or (any(has_width) and not is_sequence and meaning_of(str(symbol.name)) is None and symbol.dtype != "bool")
        or is_static_name(str(symbol.name))
    ]


def _static_argument(symbol: Any) -> StaticArgument:
    """The form of an input with static values, `[rows, count]` or `[rows]`, of floats or codes."""
    is_column = len(symbol.shape) == 1
    is_code = "int" in str(symbol.dtype)
    return StaticArgument(safe_name(symbol.name), 1 if is_column else int(symbol.shape[1]), is_column, is_code)


def _first_input(text: str, model: Any, symbols: Sequence[Any], options: TargetOptions) -> ModelInput:
    """Reads the input with the steps; `symbols` are the inputs without static values.

    Raises:
        ConfigurationError: The input is not a sequence, an unbuilt model needs an option, or an option contradicts the
            model.
    """
    features, vocabulary = options.features, options.vocabulary
    shape = _input_shape(text, model, symbols)
    if shape is None:  # a subclassed model that was never called
        if features is None and vocabulary is None:
            raise ConfigurationError(
                f"{text} was never built, so it does not say what a step is: pass --features N or --vocabulary N"
            )
        shape = (None, None, features) if features is not None else (None, None)
    notices, padding = _mask_notices(model)
    # A subclassed model was built with the shape of some batch, which does not limit it to that width
    fixed = shape[1] if getattr(model, "inputs", None) else None
    shape_text = f"[{', '.join('any' if size is None else str(size) for size in shape)}]"
    if len(shape) == 3 and shape[2] is not None:
        return ModelInput(StepInput(features=int(shape[2])), mask_notices=notices, padding=padding, fixed=fixed)
    if len(shape) != 2:
        raise ConfigurationError(
            f"{text} takes {shape_text}, but a sequence is [rows, width, features] or, of tokens, [rows, width]: "
            "reshape each step to a list of numbers, and let the model begin with a Reshape in TimeDistributed"
        )
    vocabulary_size = vocabulary or _table(model, *symbols) or _any_table(model)
    if vocabulary_size is None and features not in (None, 1):
        raise ConfigurationError(f"--features {features} contradicts {text}, whose input is {shape_text}")
    if vocabulary_size is not None:
        steps = StepInput(kind="tokens", vocabulary=vocabulary_size)
        return ModelInput(steps, mask_notices=notices, fixed=fixed)
    return ModelInput(StepInput(features=1), features_axis=False, mask_notices=notices, padding=padding, fixed=fixed)


def probable_scores(
    model: Any, output: str | None, names: Sequence[str], answer: NDArray[Any]
) -> Literal["probabilities"] | None:
    """`probabilities` if the last activation of a model gives these; None if its output may be logits, too.

    Args:
        model: The Keras model.
        output: The name of the output; None for its only one.
        names: The names of all outputs, in their order.
        answer: Some values of the output, classes last: no probabilities, if they cannot be such.
    """
    by_name, symbols = (
        getattr(model, "_outputs_struct", None),
        getattr(model, "outputs", None) or [None] * (1 + len(names)),
    )
    symbol = symbols[names.index(output) if output in names else 0]
    layer = _last_layer(by_name.get(output, symbol) if isinstance(by_name, dict) else symbol)
    activation = own_activation(getattr(layer, "activation", None))
    if type(layer).__module__.startswith("keras.") and type(layer).__name__ in ("Softmax", "Sigmoid"):
        activation = type(layer).__name__.lower()  # a layer, or an operation of keras.ops
    is_normalized = activation != "softmax" or np.allclose(answer.sum(-1), 1, atol=1e-4)
    has_probabilities = activation in _ACTIVATIONS and answer.min() >= 0 and answer.max() <= 1 and is_normalized
    return "probabilities" if has_probabilities else None


def _last_layer(symbol: Any) -> Any:
    """The layer that computes a symbol, inside nested models and TimeDistributed; None if a class of the user does."""
    while (history := getattr(symbol, "_keras_history", None)) is not None:
        layer = history.operation
        while type(layer).__name__ == "TimeDistributed":
            layer = layer.layer
        if not hasattr(layer, "layers"):
            return layer
        outputs = getattr(layer, "outputs", None)  # of a nested functional model
        symbol = outputs[history.tensor_index] if outputs else None
    return None


def _input_shape(text: str, model: Any, inputs: Sequence[Any]) -> tuple[int | None, ...] | None:
    """The shape of a model's one input of steps, with None for a dynamic axis; None if the model was never built.

    Raises:
        ConfigurationError: The model has several.
    """
    if not inputs:  # a subclassed model, which may have been built by a call
        built = model.get_build_config() if getattr(model, "built", False) else None
        shape = (built or {}).get("input_shape")
        if isinstance(shape, list | tuple) and all(isinstance(size, int | None) for size in shape):
            return tuple(shape)
        return None
    if len(inputs) > 1:
        names = ", ".join(str(symbol.name) for symbol in inputs)
        advice = BESIDE_HINT
        if any(  # a further input is lengths or a mask
            symbol.dtype == "bool" or re.search("mask|len", symbol.name) or len(symbol.shape) == 1
            for symbol in inputs[1:]
        ):
            advice = MASK_FROM_STEPS.format(steps=inputs[0].name, maker="keras.layers.Masking()")
        raise ConfigurationError(f"{text} has {len(inputs)} inputs ({names}), and a sequence is one: {advice}")
    return tuple(inputs[0].shape)


def _tables(model: Any) -> list[Any]:
    """The Embedding layers of a model."""
    return [layer for layer in model._flatten_layers(include_self=False) if type(layer).__name__ == "Embedding"]


def _any_table(model: Any) -> int | None:
    """The number of rows of the first Embedding that reads no input of the model itself; None without one."""
    read = [table for symbol in getattr(model, "inputs", None) or () for table in _tables_of(model, symbol)]
    return next((int(table.input_dim) for table in _tables(model) if table not in read), None)


def _table(model: Any, symbol: Any = None) -> int | None:
    """The number of rows of the Embedding that reads an input of the model; None without one."""
    return next((int(table.input_dim) for table in _tables_of(model, symbol)), None)


def _tables_of(model: Any, symbol: Any) -> list[Any]:
    """The Embedding layers that read an input of the model."""
    return [
        table
        for table in _tables(model)
        if any(read is symbol for node in table._inbound_nodes for read in node.input_tensors)
    ]


def _mask_notices(model: Any) -> tuple[tuple[str, ...], float]:
    """Notices for the user about the layers that mask steps by their value; and the value that the first Masking masks.

    The value is 0 without a Masking.
    """
    layers = list(model._flatten_layers())
    maskings = [(layer.name, float(layer.mask_value)) for layer in layers if type(layer).__name__ == "Masking"]
    tables = [layer.name for layer in layers if type(layer).__name__ == "Embedding" and layer.mask_zero]
    notices = (
        *(mask_notice(f"{name} (Masking)", value, "values") for name, value in maskings),
        *(mask_notice(f"{name} (Embedding)", 0.0, "tokens") for name in tables),
    )
    return notices, maskings[0][1] if maskings else 0.0


def mask_notice(name: str, value: float, kind: str) -> str:
    """A notice for the user about a mask that Keras makes of the values of steps of this kind, `values` or `tokens`."""
    skipped = f"token {value:g}" if kind == "tokens" else f"a step of which every value is {value:g}"
    return f"{name}: Keras skips {skipped}; here the lengths say where a sequence ends, and such a step is data"
