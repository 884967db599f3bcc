"""How a user's module is called: what its second argument is, and where the steps stand in its first."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model_export.errors import UncheckableError
from service.errors import ConfigurationError

Second = Literal["lengths", "mask"]


@dataclass(frozen=True, slots=True)
class Calling:
    """The way a module is called.

    Attributes:
        second: Whether it takes int64 `lengths [rows]`, or a bool mask `[rows, width]`, true at valid steps.
        keyword: The second argument's name, where it is not the second by place.
        time_first: Steps go in as `[width, rows, ...]`, and answers a step come out so; a mask stays `[rows, width]`.
    """

    second: Second = "lengths"
    keyword: str | None = None
    time_first: bool = False

    def __call__(self, module: nn.Module, steps: Tensor, second: Tensor) -> Any:
        """Calls a module.

        Args:
            module: The module.
            steps: `[rows, width, features]` or `[rows, width]`.
            second: `[rows]` int64 or `[rows, width]` bool.
        """
        given = steps.transpose(0, 1) if self.time_first else steps
        if self.keyword is not None:
            return module(given, **{self.keyword: second})
        return module(given, second)

    def rows_first(self, logits: Tensor) -> Tensor:
        """Logits `[rows, classes]` as they are, `[width, rows, classes]` rows first."""
        return logits.transpose(0, 1) if self.time_first and logits.dim() == 3 else logits


def step_mask(lengths: Tensor, width: int) -> Tensor:
    """`[rows, width]`, true at the valid steps."""
    return torch.arange(width, device=lengths.device) < lengths.unsqueeze(1)


@contextlib.contextmanager
def plain_path() -> Iterator[None]:
    """Switches off torch's fast path: its nested tensors can be neither traced nor compared with padding."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def calling_of(module: nn.Module, *, second: Second | None = None, time_first: bool = False) -> Calling:
    """Reads off a module's `forward` how it is called.

    Args:
        module: The module.
        second: What its second argument is, where the caller said so; else it goes by its name.
        time_first: What the caller said.

    Raises:
        UncheckableError: `forward` takes nothing that says where a sequence ends, or more than can be given.
        ConfigurationError: The name does not tell lengths from a mask, or which way round a mask is.
    """
    parameters = list(inspect.signature(module.forward).parameters.values())
    places = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    named = [each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)][1:]
    shown = f"{type(module).__name__}.forward({', '.join(each.name for each in parameters)})"
    if not named:
        raise UncheckableError(
            f"{shown} takes neither lengths nor a mask, so that it cannot know where a sequence ends: give it "
            "`lengths` ([rows], int64) or `mask` ([rows, width], true at valid steps) as a second argument"
        )
    telling = [(each, meaning) for each in named if (meaning := _meaning(each.name)) is not None]
    chosen, meaning = telling[0] if telling else (named[0], None)
    others = [each.name for each in named if each is not chosen and each.default is each.empty]
    if others:
        raise UncheckableError(f"{shown} also wants {', '.join(others)}: give these defaults, or wrap it in a module")
    if second is None and meaning in (None, "which way round"):
        why = "may be true at padding or at valid steps" if meaning else "may be lengths or a mask"
        raise ConfigurationError(
            f"{shown}: {chosen.name} {why}; say --second lengths, or --second mask: it is then true at valid steps "
            "(what is to be true at padding is inverted in forward)"
        )
    by_place = len(places) > 1 and places[1] is chosen
    return Calling(
        second=second or ("mask" if meaning == "mask" else "lengths"),
        keyword=None if by_place else chosen.name,
        time_first=time_first,
    )


def _meaning(name: str) -> Literal["lengths", "mask", "which way round"] | None:
    lower = name.lower()
    if "pad" in lower:
        return "which way round"
    if "len" in lower:
        return "lengths"
    return "mask" if "mask" in lower else None
