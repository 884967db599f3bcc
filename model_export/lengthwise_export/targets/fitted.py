"""Models with a width of their own, such as those with a table of positions over all steps, or a flattened layer.

    [rows, any width, features], lengths ─> pad or resample each sequence ─> [rows, N, features] ─> the user's module

`FittedModule` takes the steps and the lengths. It brings each sequence to N steps as the training of the module did,
inside the graph: so it is checked, traced and served as a module that takes lengths.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lengthwise.exporter_api.contract import Fit, StepInput
from lengthwise_export.errors import ConfigurationError
from lengthwise_export.options import TargetOptions
from lengthwise_export.tracing.call_signature import CallSignature


class FittedModule(nn.Module):
    """A module that takes one width only, behind what brings every sequence to it.

    Args:
        module: The module.
        signature: How it is called.
        width: The number of steps that it takes.
        fit: How a sequence is brought to them.
    """

    def __init__(self, module: nn.Module, signature: CallSignature, width: int, fit: Fit) -> None:
        super().__init__()
        self.module, self._signature, self._width, self._fit = module, signature, width, fit

    def forward(self, steps: Tensor, lengths: Tensor) -> Any:
        """What the module returns for `steps`, `[rows, width, features]` or token ids `[rows, width]`."""
        if self._fit == "pad":
            fitted = padded(steps, lengths, self._width)
        else:
            fitted = resampled(steps, lengths, self._width)
            lengths = torch.full_like(lengths, self._width)
        known_lengths = None if self._signature.second == "none" else lengths
        return self._signature.call(self.module, self._signature.arguments_of(fitted, known_lengths))


def module_of_any_width(
    module: nn.Module, signature: CallSignature, options: TargetOptions
) -> tuple[nn.Module, CallSignature]:
    """A module with how it is called: fitted to any width if the options say so, else as it is.

    Raises:
        ConfigurationError: The caller would pad otherwise than behind each sequence, or the module takes static values.
    """
    if options.width is None or options.fit is None:
        return module, signature
    if signature.layout.packed or not signature.layout.is_right_padded:
        raise ConfigurationError("--width: the graph pads by itself; leave --padding and --packed out")
    if signature.statics:
        raise ConfigurationError("--width: no static values can stand beside the steps of such a model yet")
    return FittedModule(module, signature, options.width, options.fit), CallSignature()


def steps_of_any_width(steps: StepInput, options: TargetOptions) -> StepInput:
    """What a step is, with the width and the fit of the options.

    Raises:
        ConfigurationError: Token ids are to be resampled.
    """
    if options.fit == "resample" and steps.kind == "tokens":
        raise ConfigurationError("--fit resample: nothing lies between two token ids; use --fit pad")
    return steps.model_copy(update={"width": options.width, "fit": options.fit})


def padded(steps: Tensor, lengths: Tensor, width: int) -> Tensor:
    """Each sequence with zeros behind it, up to `width` steps; steps past these are left out.

    Args:
        steps: `[rows, any width, features]`, or token ids `[rows, any width]`.
        lengths: `[rows]`.
        width: The number of steps of the result.
    """
    indices, ends = torch.arange(width), lengths[:, None]
    is_valid = _like_steps(indices < ends, steps)
    return torch.where(is_valid, _steps_at(steps, torch.minimum(indices, ends - 1)), torch.zeros((), dtype=steps.dtype))


def resampled(steps: Tensor, lengths: Tensor, width: int) -> Tensor:
    """The valid steps of each sequence, interpolated linearly to `width` steps.

    The formula is that of `F.interpolate(mode="linear", align_corners=False)` for each sequence alone: step i lies at
    (i + 0.5) * length / width - 0.5. As in torch, the quotient is rounded to float32, and then only the position.

    Args:
        steps: `[rows, any width, features]`.
        lengths: `[rows]`.
        width: The number of steps of the result.
    """
    scale, last = lengths[:, None].float() / width, lengths[:, None] - 1
    positions = ((torch.arange(width) + 0.5).double() * scale.double() - 0.5).float().clamp(min=0.0)  # [rows, width]
    before = torch.minimum(positions.long(), last)
    share = _like_steps((positions - before).clamp(max=1.0), steps)
    first, second = _steps_at(steps, before), _steps_at(steps, torch.minimum(before + 1, last))
    # As in torch: a sequence of this width is copied, and a next step that is NaN is not read
    is_copy = _like_steps(lengths[:, None] == width, steps)
    return torch.where(is_copy, first, first * (1.0 - share) + second * share)


def _steps_at(steps: Tensor, indices: Tensor) -> Tensor:
    """The steps at these indices of each row, `[rows, width]`: `[rows, width, features]`, or token ids."""
    indices = _like_steps(indices, steps)
    return steps.gather(1, indices.expand(-1, -1, *steps.shape[2:]))


def _like_steps(values: Tensor, steps: Tensor) -> Tensor:
    """Values `[rows, width]` as `[rows, width, 1]`, if the steps have an axis of features; else unchanged."""
    return values.unsqueeze(2) if steps.dim() > 2 else values
