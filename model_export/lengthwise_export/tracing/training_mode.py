"""Runs a module in training mode without what is random there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from torch.overrides import TorchFunctionMode

_DROPOUT_INSIDE: Final = frozenset(
    {"lstm", "gru", "rnn_tanh", "rnn_relu", "multi_head_attention_forward", "scaled_dot_product_attention"}
)
"""Functions that drop values themselves; the probability of it is the only float among their arguments."""


class WithoutDropout(TorchFunctionMode):
    """A torch function mode without dropout, whose result depends on the width: a check would blame padding for it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if "dropout" in func.__name__:
            return args[0] if args else named["input"]
        if func.__name__ in _DROPOUT_INSIDE:
            args = [0.0 if isinstance(value, float) else value for value in args]
            named |= {name: 0.0 for name in named if name.startswith("dropout")}
        return func(*args, **named)
