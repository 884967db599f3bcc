"""Runs a module in training mode without what is random there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from torch.overrides import TorchFunctionMode

_DROPOUT_INSIDE: Final = frozenset(
    {"lstm", "gru", "rnn_tanh", "rnn_relu", "multi_head_attention_forward", "scaled_dot_product_attention"}
)
"""Functions with a dropout inside; its probability is the only float among their arguments by position."""


class WithoutDropout(TorchFunctionMode):
    """A torch function mode in which dropout does nothing.

    The random numbers of dropout depend on the width of the batch: a check would take the difference for a leak.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls a function of torch with a dropout probability of 0; a function of dropout returns its input."""
        options = dict(kwargs or {})
        if "dropout" in func.__name__:
            return args[0] if args else options["input"]
        if func.__name__ in _DROPOUT_INSIDE:
            args = [0.0 if isinstance(value, float) else value for value in args]
            options |= {name: 0.0 for name in options if name.startswith("dropout")}
        return func(*args, **options)
