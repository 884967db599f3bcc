"""Judges a user's own padding test by what it gives to the model: a test that cannot fail shows nothing.

While the test runs, the calls of its models are recorded. `LW001`: their inputs are equal, padding included.
`LW002`: no row is shorter than its batch.
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
    """One call of a model: its class, and copies of the tensors in its arguments."""

    module: type[nn.Module]
    tensors: list[Tensor] = field(default_factory=list)

    def is_like(self, other: ModelCall) -> bool:
        """Whether the arguments of both are equal, in the padding too."""
        return len(self.tensors) == len(other.tensors) and all(map(_is_equal, self.tensors, other.tensors))

    def has_equal_rows(self) -> bool:
        """Whether there are several rows, and all are the same."""
        rows = {len(tensor) for tensor in self.tensors if tensor.ndim}
        return len(rows) == 1 < max(rows) and all(_is_equal(one[:1].expand_as(one), one) for one in self.tensors)

    def pads(self) -> bool:
        """Whether a mask, lengths or the steps end before the batch does, for one row at least."""
        tensors = [tensor for tensor in self.tensors if tensor.ndim and tensor.numel()]
        return any(map(_ends_early, tensors[:1])) or any(_is_partial(one, tensors[0].shape) for one in tensors[1:])


@contextmanager
def watched() -> Iterator[list[ModelCall]]:
    """The calls of modules during the block, without those that a module makes of its parts."""
    calls: list[ModelCall] = []
    running: list[ModelCall] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        running.append(ModelCall(type(module), [] if running else [*_copies(inputs)]))

    def leave(module: nn.Module, inputs: Any, options: Any, outputs: Any) -> None:
        call = running.pop()
        if not running:
            call.tensors += _copies(options)
            calls.append(call)

    # Before the call, because a module may write into its inputs; keywords are known behind it only.
    before = register_module_forward_pre_hook(enter)
    behind = register_module_forward_hook(leave, with_kwargs=True, always_call=True)
    try:
        yield calls
    finally:
        before.remove()
        behind.remove()


def findings(calls: Sequence[ModelCall]) -> list[LeakRule]:
    """The rules that a test breaks, by its calls of models."""
    calls = [call for call in calls if call.tensors]
    if not calls:
        return []
    ((module, _),) = Counter(call.module for call in calls).most_common(1)
    one, *others = most = [call for call in calls if call.module is module]
    is_broken = {
        "LW001": all(map(one.is_like, others)) if others else one.has_equal_rows(),
        # Another width is other padding, or none.
        "LW002": len({call.tensors[0].shape[1:] for call in most}) == 1 and not any(call.pads() for call in calls),
    }
    return [rule for code, rule in rules().items() if is_broken.get(code)]


def _copies(value: Any) -> Iterator[Tensor]:
    """Copies of the tensors in arguments, with those of packed sequences and of lists of numbers."""
    for leaf in pytree.tree_leaves(value, is_leaf=lambda one: isinstance(one, list) and not any(map(_is_tensor, one))):
        for tensor in (leaf.data, leaf.batch_sizes) if isinstance(leaf, PackedSequence) else [leaf]:
            if isinstance(tensor, list | np.ndarray) or (_is_tensor(tensor) and tensor.layout == torch.strided):
                with suppress(ValueError, TypeError):  # such as words, or rows of several lengths: no tensor is padded
                    yield torch.as_tensor(tensor).detach().clone()


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _is_equal(one: Tensor, other: Tensor) -> bool:
    """Whether both have the same shape and values, of which NaN is equal to NaN."""
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def _ends_early(steps: Tensor) -> bool:
    """Whether the last step of a row is 0, NaN or the same as the one before: as padding is, and few true steps are."""
    for axis in range(1, steps.ndim):
        if steps.shape[axis] > 1:
            last, before = (torch.nan_to_num(steps.select(axis, at)).reshape(len(steps), -1) for at in (-1, -2))
            if bool(((last == 0) | (last == before)).all(1).any()):
                return True
    return False


def _is_partial(tensor: Tensor, sizes: Sequence[int]) -> bool:
    """Whether a tensor has lengths shorter than the batch, or is a mask with both values."""
    if tensor.ndim != 1:
        low, high = tensor.float().aminmax()
        return bool(low < high) and bool(((tensor == low) | (tensor == high)).all())
    width = sizes[0] if len(tensor) != sizes[0] else sizes[min(1, len(sizes) - 1)]
    return bool((tensor != width).any())
