"""Tells a check which layers of a Keras model are one operation each, and why one of them leaks.

The layers of Keras are recorded whole, by their names in the model's summary. What a layer of the user's own computes
is recorded operator by operator, with its lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from lengthwise_export.checking.causes import Cause
from lengthwise_export.checking.trace_torch import WholePart
from lengthwise_export.checking.trials import Change
from lengthwise_export.keras_models.causes import explain_layer
from lengthwise_export.keras_models.module import KerasModule, SummaryLayer


class LayerParts:
    """Describes the layers of a module for a check."""

    def __init__(self, module: KerasModule) -> None:
        self._known = module.known
        self._layers = {id(part): layer for part, layer in module.parts}
        self._dropped_by: str | None = None

    def __call__(self, part: nn.Module) -> WholePart | None:
        """A layer of Keras itself; None for a model, and for a layer of the user's."""
        if isinstance(part, KerasModule):
            self._dropped_by = None
            return None
        layer = self._layers.get(id(part))
        if layer is None or not layer.is_whole:
            return None
        return WholePart(f"{layer.path} ({layer.kind})", f"keras.{layer.kind}", str(layer), self._explained(layer))

    def _explained(
        self, layer: SummaryLayer
    ) -> Callable[[Sequence[Any], Mapping[str, Any], Any], Callable[[Change], Cause]]:
        def at_call(inputs: Sequence[Any], options: Mapping[str, Any], outputs: Any) -> Callable[[Change], Cause]:
            is_masked = _has_mask(inputs) or any(
                name.endswith("mask") and value is not None for name, value in options.items()
            )
            before = self._dropped_by
            if is_masked and not _has_mask(outputs):
                self._dropped_by = f"{layer.path} ({layer.kind})"
            elif _has_mask(outputs):
                self._dropped_by = None

            def explained(change: Change) -> Cause:
                return explain_layer(
                    layer.kind,
                    change,
                    layer=layer.path,
                    mask="none" if not is_masked else "lengths" if self._known.gets_lengths(layer.layer) else "other",
                    dropped_by=before,
                )

            return explained

        return at_call


def _has_mask(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_mask, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_mask, value))
    return getattr(value, "_keras_mask", None) is not None
