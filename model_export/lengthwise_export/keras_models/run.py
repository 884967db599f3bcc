"""One run of a Keras model, in which the mask of the lengths replaces the masks that Keras computes from the steps.

The *mask of the lengths* is `[rows, width]`, true at valid steps. Keras finds padding by its value `v`. A layer that
begins a mask does so, or the user's own code, and Keras hands the mask on to the layers behind:

    Masking(v)              not_equal(steps, v) -> any(axis=-1)
    Embedding(mask_zero)    not_equal(tokens, 0)

A run follows the tensors that are made of the steps alone. One of these two that a layer gets as its mask becomes the
mask of the lengths. Any other truth value that is made of the steps alone is computed, from steps whose padding is `v`:
so it is what it is in Keras, whatever the padding holds here. But where a mask becomes that of the lengths, a step of
`v` inside a sequence is data. Then all truth values are computed as if this step were another one: else a model would
skip the step in its own arithmetic, and not in its layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Final, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from lengthwise_export.keras_models import recurrent
from lengthwise_export.masks import step_mask
from lengthwise_export.tracing.recurrent_op import LayerWeights

Compared = Literal["steps", "mask"]
"""What is compared of a layer: its input with the model's steps, or its mask with that of the lengths."""


def identity(part: Any) -> int:
    """A number that identifies a layer, an operation or a cell, and the copy that a trace makes of it.

    The copy is another object with the same attributes, so the number is the `id` of one, Keras's tracker.
    """
    return id(getattr(part, "_tracker", part))


class KnownLayers(nn.Module):
    """What all runs of one Keras model share: the weights of its recurrent layers, and which layers read its input.

    A trace cannot compare values. So some runs before it are *learning runs*, with `learning` set: they compare the
    input of each layer with the steps of the run, and its mask with that of the lengths. Other runs use the results.

    Args:
        padding: The value that padding has for Keras, where a step is a list of numbers.
        stand_ins: For each sequence, what a valid step of that value counts as for a comparison; None to compare the
            step itself.
    """

    def __init__(self, padding: float = 0.0, stand_ins: Sequence[float | None] = (None,)) -> None:
        super().__init__()
        self.padding = padding
        self.stand_ins = stand_ins
        self.learning = False
        # By `identity`: whether what a layer gets as its input, or as its mask, was equal in every learning run so far
        self._matched: dict[tuple[Compared, int], bool] = {}
        # By the number, in the order in which they were seen: the first layer that gets a mask of the steps that are
        # not that number, and whether it is of nothing else; the first of nothing else, if there is one
        self.masked: dict[float, tuple[str, bool]] = {}
        self._weights: dict[tuple[int, ...], LayerWeights] = {}  # by the cells of a layer, one for each direction
        self._operations: dict[int, nn.Module] = {}  # the modules that stand for operations between layers

    def register(self, operation: Any, module: nn.Module) -> None:
        """Remembers the module that is to be called instead of an operation between layers."""
        self._operations[identity(operation)] = module

    def module_of(self, operation: Any) -> Callable[..., Any]:
        """The module that is registered for an operation between layers; without one, the operation itself."""
        return cast("Callable[..., Any]", self._operations.get(identity(operation), operation))

    def note_comparison(self, layer: Any, what: Compared, is_equal: bool) -> None:
        """Remembers, in a learning run, whether what a layer gets is equal to what it is compared with."""
        key = (what, identity(layer))
        self._matched[key] = is_equal and self._matched.get(key, True)

    def matched_in_every_run(self, layer: Any, what: Compared) -> bool:
        """Whether the comparison for a layer was true in every learning run so far; False if there was none."""
        return self._matched.get((what, identity(layer)), False)

    def weights_of(self, cells: Sequence[Any], form: recurrent.CellForm) -> LayerWeights:
        """The weights of a recurrent layer, copied at the first call; `cells` are one cell for each direction."""
        key = tuple(map(identity, cells))
        if key not in self._weights:
            self._weights[key] = recurrent.weights_of(cells, form)
            self.add_module(f"recurrent_weights_{len(self._weights)}", self._weights[key])
        return self._weights[key]


_COPYING: Final = frozenset(
    {"to", "float", "double", "int", "long", "clone", "detach", "unsqueeze", "squeeze", "reshape", "view"}
)
"""The functions of torch whose result has the values of their argument, if no number is rounded."""

_UNIFORM: Final = frozenset({"zeros_like", "ones_like"})
"""The functions whose result is the same number everywhere, whatever their argument is."""

_OF_ONE_NUMBER: Final = frozenset({"as_tensor", "tensor", "to", "ne", "not_equal", "eq", "isclose"})
"""The functions that make a constant of one number, or compare something with one."""

_JOINING: Final = _COPYING | {"bool", "any", "all", "logical_and", "logical_or", "and", "or", "cat", "getitem"}
"""The functions whose result may be a mask of the same steps, if they get nothing but such masks and constants."""


class _FromSteps(NamedTuple):
    """A tensor that is made of the steps and constants alone."""

    tensor: Tensor  # Kept alive, so that no other gets its id
    version: int  # A change in place raises it
    padded: Tensor  # What it is for steps whose padding, and no valid step, has the value that Keras masks
    # How it was made. `compared`: for each number of a step, whether it differs from `number`; `mask`: for each step
    kind: Literal["steps", "compared", "mask", "constant", "other"]
    number: float | None = None  # Of a constant its value; of what is made of a comparison what was compared with
    sequence: int = 0  # The index of the sequence whose steps they are; 0 of a constant


class RunSequence(NamedTuple):
    """A sequence that a model gets in a run."""

    steps: Tensor  # `[rows, width, features]` or `[rows, width]`
    lengths: Tensor | None  # `[rows]`; None to run without any mask of the lengths
    mask: Tensor | None  # that of the lengths

    @classmethod
    def of(cls, steps: Tensor, lengths: Tensor | None) -> RunSequence:
        """A sequence with its mask."""
        return cls(steps, lengths, None if lengths is None else step_mask(lengths, steps.shape[1]))


class FollowedTensors(TorchFunctionMode):
    """Follows the steps through a run: knows the tensors that are made of nothing but them and constants.

    Equal values do not show that: the mask of `tokens > 1` is that of `tokens != 0` until somebody sends token 1.

    Args:
        sequences: The sequences that the model gets.
        known: What all runs of the model share: the value that padding has for Keras, and its stand-ins.
    """

    def __init__(self, sequences: Sequence[RunSequence], known: KnownLayers) -> None:
        super().__init__()
        self._followed: dict[int, _FromSteps] = {}
        self._sequences = sequences
        for index, (sequence, stand_in) in enumerate(zip(sequences, known.stand_ins, strict=True)):
            steps, mask, padding = sequence.steps, sequence.mask, known.padding
            padded = steps
            if stand_in is not None:
                has_value = steps == padding if steps.dim() == 2 else (steps == padding).all(-1, keepdim=True)
                padded = torch.where(has_value, torch.full((), stand_in, dtype=steps.dtype), padded)
            if mask is not None:
                self._follow(mask, mask, "mask", padding, index)
                valid = mask if steps.dim() == 2 else mask.unsqueeze(-1)
                padded = torch.where(valid, padded, torch.full((), padding, dtype=steps.dtype))
            self._follow(steps, padded, "steps", None, index)

    def __getitem__(self, tensor: Tensor) -> _FromSteps | None:
        """What is known of a tensor; None if it is made of something else, too, or was changed in place."""
        source = self._followed.get(id(tensor))
        return source if source is not None and source.version == _version(tensor) else None

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        call = (arguments, options or {})
        name = getattr(function, "__name__", "")
        sources: list[Any] = [self[leaf] for leaf in tree_leaves(call) if isinstance(leaf, Tensor)]
        result = function(*call[0], **call[1])
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        owners = {source.sequence for source in sources if source is not None and source.kind != "constant"}
        if name in _UNIFORM:
            sources, owners = [], set()
        elif (
            None in sources
            or len(owners) > 1
            or not results
            or name.endswith("_") != name.startswith("__")
            or "set" in name
        ):
            return result  # it is made of something else, or changes a tensor in place
        padded = results
        if any(source.padded is not source.tensor for source in sources):
            of_padded, options_of_padded = tree_map_only(Tensor, lambda leaf: cast("Any", self[leaf]).padded, call)
            answer = function(*of_padded, **options_of_padded)
            padded = [leaf for leaf in tree_leaves(answer) if isinstance(leaf, Tensor)]
        if isinstance(result, Tensor) and result.dtype == torch.bool:
            result, *_ = results = padded
        owner = next(iter(owners), 0)
        kind, number = self._made_by(name.strip("_"), sources, call, self._sequences[owner].steps)
        for leaf, leaf_of_padded in zip(results, padded, strict=True):
            if self[leaf] is None:  # it is no argument that the function returns
                self._follow(leaf, leaf_of_padded, kind, number, owner)
        return result

    def _follow(self, tensor: Tensor, padded: Tensor, kind: Any, number: float | None, sequence: int) -> None:
        self._followed[id(tensor)] = _FromSteps(tensor, _version(tensor), padded, kind, number, sequence)

    def _made_by(self, name: str, sources: Sequence[_FromSteps], call: Any, steps: Tensor) -> tuple[str, float | None]:
        """`kind` and `number`, as `_FromSteps` has them, of the result of a function of torch.

        1. Of constants alone: a constant, if the function makes it of one number (`_OF_ONE_NUMBER`), or is in
           `_UNIFORM`; else `other`.
        2. Of steps compared with a number, `steps != number`: `compared`, or a mask where a step is one number.
        3. `any` of what is compared: a mask.
        4. What only copies or joins the numbers of steps, or of masks: the same kind. All of these have to be of the
           same number, as two masks of different numbers make one that Keras would not make of either.
        5. Anything else: `other`, with the number that steps were compared with, such as of `steps == number`.

        Args:
            name: The name of the function.
            sources: The followed tensors in its call.
            call: Its arguments.
            steps: The steps of the sequence that the sources were computed from.
        """
        kinds = {source.kind for source in sources if source.kind != "constant"}
        numbers = [source.number for source in sources if source.kind != "constant"]
        constants = [source.number for source in sources if source.kind == "constant"]
        constants += [float(leaf) for leaf in tree_leaves(call) if isinstance(leaf, Real)]
        # What a constant is made of, or what steps are compared with
        only_number = constants[0] if name in _OF_ONE_NUMBER and len(constants) == 1 else None
        number = next((each for each in (*numbers, only_number) if each is not None), None)
        if not kinds:
            return "other" if number is None and name not in _UNIFORM else "constant", number
        if kinds == {"steps"} and name in ("ne", "not_equal"):
            return "compared" if steps.dim() == 3 and steps.shape[2] > 1 else "mask", number
        if kinds == {"compared"} and name == "any":
            return "mask", number
        copying = {"steps": _COPYING, "mask": _JOINING}.get("".join(kinds), frozenset[str]())
        return (kinds.pop() if name in copying and len({*numbers}) == 1 else "other"), number


def has_same_sizes(sizes: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether sizes are equal for every batch. Sizes of a trace are not compared by value, which would fix them."""
    texts = [[str(getattr(getattr(size, "node", None), "expr", size)) for size in each] for each in (sizes, others)]
    return texts[0] == texts[1]


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; 0 under `torch.inference_mode`, which does not count it."""
    return 0 if tensor.is_inference() else tensor._version


class KerasRun:
    """One run of a Keras model.

    Args:
        known: What all runs of the model share.
        sequences: The sequences that the model gets.
    """

    def __init__(self, known: KnownLayers, sequences: Sequence[RunSequence]) -> None:
        self.known = known
        self.sequences = sequences
        self.followed = FollowedTensors(sequences, known)
        # By the id of the result of `fill`: that tensor, kept alive so that no other gets its id; the values before
        self._unfilled: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def is_traced(self) -> bool:
        """Whether the run is a trace, in which values cannot be compared."""
        return torch.compiler.is_exporting() or type(self.sequences[0].steps) is not Tensor

    def sequence_of(self, tensor: Tensor) -> RunSequence:
        """The sequence of whose steps a tensor is made; the first one, if it is made of something else, too."""
        source = self.followed[tensor]
        return self.sequences[0 if source is None else source.sequence]

    def with_mask(self, mask: Any) -> RunSequence | None:
        """The sequence whose mask this is; None if it is another one."""
        return next((one for one in self.sequences if one.mask is not None and one.mask is mask), None)

    def reads_input(self, layer: Any, inputs: Tensor) -> bool:
        """Whether the inputs of a layer are the model's own steps.

        They are also equal if steps `[rows, width]` have a further axis in the layer, `[rows, width, 1]`. A learning
        run compares them, and any other run takes the result of all learning runs.
        """
        if self.known.learning:
            steps = self.sequence_of(inputs).steps
            steps = steps if inputs.dim() == steps.dim() else steps.unsqueeze(-1)
            source = self.followed[inputs]
            is_copy = source is not None and source.kind == "steps" and inputs.shape == steps.shape
            self.known.note_comparison(layer, "steps", is_copy and torch.equal(inputs.double(), steps.double()))
        return self.known.matched_in_every_run(layer, "steps")

    def mask_for(self, layer: Any, mask: Any) -> Any:
        """The mask that a layer gets instead of `mask`, which Keras or the user hands to it.

        That of the lengths if the layer gets no other; in a run without lengths, none then. Otherwise `mask` itself.
        """
        if not isinstance(mask, Tensor):
            return mask
        if self.known.learning:
            self._learn_from_mask(layer, mask)
        if not self.known.matched_in_every_run(layer, "mask"):
            return mask
        mask_of_lengths = self.sequence_of(mask).mask
        if mask_of_lengths is None or mask.dim() == mask_of_lengths.dim():
            return mask_of_lengths
        return mask_of_lengths.reshape(mask.shape)

    def _learn_from_mask(self, layer: Any, mask: Tensor) -> None:
        """Remembers the number that a mask leaves out, and whether it is the mask of the lengths."""
        source, mask_of_lengths = self.followed[mask], self.sequence_of(mask).mask
        if source is not None and source.number is not None:
            _, is_alone = self.known.masked.setdefault(source.number, (layer.name, source.kind == "mask"))
            if source.kind == "mask" and not is_alone:
                self.known.masked[source.number] = (layer.name, True)
        is_equal = (
            source is not None
            and (source.kind, source.number) == ("mask", self.known.padding)
            and mask_of_lengths is not None
            and mask.numel() == mask_of_lengths.numel()
            and torch.equal(mask.reshape(mask_of_lengths.shape).bool(), mask_of_lengths)
        )
        self.known.note_comparison(layer, "mask", is_equal)

    def fill(self, values: Tensor, replacement: Tensor | float, mask: Tensor) -> Tensor:
        """Writes `replacement` into values `[rows, width, features]` at padding; returns the result as a new tensor.

        The values are kept for `unfilled`, which finds them by that tensor. `mask` is that of the lengths.
        """
        filled = torch.where(mask.unsqueeze(-1), values, replacement)
        self._unfilled[id(filled)] = (filled, values)
        return filled

    def unfilled(self, values: Tensor) -> Tensor:
        """The values `[rows, width, ...]` that `fill` has filled; `values` themselves if they are no result of `fill`.

        Both are equal at valid steps.
        """
        return self._unfilled.get(id(values), (values, values))[1]

    def lengths_at(self, values: Tensor) -> Tensor | None:
        """The lengths `[rows]` for a recurrent layer that has no mask; None to run it over the full width.

        Without a mask, Keras runs a layer over the padding, too, and so does a run. But a trace gives it lengths: only
        a model without leaks is exported, whose answers do not depend on what is computed at padding. If the values
        `[rows, width, features]` have another number of rows or steps than the model's input, each length is the width.
        """
        if self.sequences[0].lengths is None or not self.is_traced:
            return None
        for sequence in self.sequences:
            if has_same_sizes(values.shape[:2], sequence.steps.shape[:2]):
                return sequence.lengths
        return torch.full((values.shape[0],), values.shape[1], dtype=torch.int64)
