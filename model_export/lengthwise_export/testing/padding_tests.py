"""Judges a user's own padding test by what it gives to the model: a test that cannot fail shows nothing.

While the test runs, the calls of its models are recorded. Two rules may be broken. `LW001`: the inputs of all calls are
equal, padding included. `LW002`: no row is shorter than its batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from lengthwise_export.checking.rule import LeakRule, rules


@dataclass(slots=True)
class ModelCall:
    """One call of a model: its class, and copies of the tensors in its arguments, the steps first."""

    module: type[nn.Module]
    tensors: list[Tensor] = field(default_factory=list)

    def is_like(self, other: ModelCall) -> bool:
        """Whether the tensors of both calls are equal, in the padding too."""
        return len(self.tensors) == len(other.tensors) and all(map(_is_equal, self.tensors, other.tensors))

    def has_equal_rows(self) -> bool:
        """Whether there are several rows, and all of them are equal."""
        row_counts = {len(tensor) for tensor in self.tensors if tensor.ndim}
        has_rows = len(row_counts) == 1 and max(row_counts) > 1
        return has_rows and all(_is_equal(tensor[:1].expand_as(tensor), tensor) for tensor in self.tensors)

    def has_padding(self) -> bool:
        """Whether some row is shorter than the batch: as the steps, the lengths or a mask show."""
        tensors = [tensor for tensor in self.tensors if tensor.ndim and tensor.numel()]
        steps, further = tensors[:1], tensors[1:]
        return any(map(_ends_in_padding, steps)) or any(_shows_padding(tensor, steps[0].shape) for tensor in further)


@contextmanager
def watched() -> Iterator[list[ModelCall]]:
    """Records the calls of modules during the block, without the calls that a module makes of its parts.

    Yields the list of the calls, which grows while the block runs.
    """
    calls: list[ModelCall] = []
    running: list[ModelCall] = []  # The modules that run now, the outermost first

    def enter(module: nn.Module, inputs: Any) -> None:
        """A hook before a module runs: a module may write into its inputs, so they are copied now."""
        running.append(ModelCall(type(module), [] if running else [*_tensor_copies(inputs)]))

    def leave(module: nn.Module, inputs: Any, options: Any, outputs: Any) -> None:
        """Completes the call of a module that has run, and records it if no other module called this one.

        Torch tells the keyword arguments to this hook only, and not to the one before the call.
        """
        call = running.pop()
        if not running:
            call.tensors += _tensor_copies(options)
            calls.append(call)

    leave_hook = register_module_forward_hook(leave, with_kwargs=True, always_call=True)
    with register_module_forward_pre_hook(enter), leave_hook:
        yield calls


def findings(calls: Sequence[ModelCall]) -> list[LeakRule]:
    """The rules that a padding test breaks, by the calls that it makes of models.

    The calls of one class of model count: the class that is called most often. But padding in a call of any class is
    enough. Empty if no call has a tensor.
    """
    calls = [call for call in calls if call.tensors]
    if not calls:
        return []
    ((module_class, _),) = Counter(call.module for call in calls).most_common(1)
    calls_of_class = [call for call in calls if call.module is module_class]
    first_call, *further_calls = calls_of_class
    shapes = {call.tensors[0].shape[1:] for call in calls_of_class}
    is_broken = {
        # A single call compares its rows
        "LW001": all(map(first_call.is_like, further_calls)) if further_calls else first_call.has_equal_rows(),
        # Calls at several widths differ in their padding
        "LW002": len(shapes) == 1 and not any(call.has_padding() for call in calls),
    }
    return [rule for code, rule in rules().items() if is_broken.get(code)]


def _tensor_copies(arguments: Any) -> Iterator[Tensor]:
    """Yields copies of the tensors in nested arguments, also of arrays, lists of numbers and packed sequences."""

    def is_leaf(value: Any) -> bool:
        return isinstance(value, list) and not any(isinstance(item, Tensor) for item in value)

    for leaf in pytree.tree_leaves(arguments, is_leaf=is_leaf):
        for value in (leaf.data, leaf.batch_sizes) if isinstance(leaf, PackedSequence) else [leaf]:
            if isinstance(value, list | np.ndarray) or (isinstance(value, Tensor) and value.layout == torch.strided):
                with suppress(ValueError, TypeError):  # such as words, or rows of several lengths: no tensor is padded
                    yield torch.as_tensor(value).detach().clone()


def _is_equal(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same shape and values; NaN is equal to NaN."""
    if tensor.shape != other.shape:
        return False
    return bool(((tensor == other) | ((tensor != tensor) & (other != other))).all())


def _ends_in_padding(steps: Tensor) -> bool:
    """Whether some row seems to end in padding: its last step is 0, NaN or equal to the step before.

    It is not known which axis after the rows is that of the steps: each is tried, and one that shows it is enough.
    """
    for axis in range(1, steps.ndim):
        if steps.shape[axis] > 1:
            last, previous = (torch.nan_to_num(steps.select(axis, index)).reshape(len(steps), -1) for index in (-1, -2))
            if bool(((last == 0) | (last == previous)).all(1).any()):
                return True
    return False


def _shows_padding(tensor: Tensor, steps_shape: Sequence[int]) -> bool:
    """Whether a tensor that a model gets besides the steps shows padding.

    A tensor of several axes does, if it is a mask: if it has two different values and no other. A tensor of one axis is
    taken for lengths, and does if one of them is not the width.

    Args:
        tensor: The tensor.
        steps_shape: The shape of the steps, `[rows, width, ...]` or `[width, rows, ...]`.
    """
    if tensor.ndim != 1:
        low, high = tensor.float().aminmax()
        return bool(low < high) and bool(((tensor == low) | (tensor == high)).all())
    width = steps_shape[1] if len(tensor) == steps_shape[0] and len(steps_shape) > 1 else steps_shape[0]
    return bool((tensor != width).any())
