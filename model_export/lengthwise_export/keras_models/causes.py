"""Why a layer of Keras leaks, and Keras code that fixes it: what a check knows of each layer.

A check records the operations of a run. A layer of Keras is one operation, called by its name in the summary; a user's
own layer is recorded operator by operator. A mask *is dropped* by a layer that gets one and passes none on.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import Any, Final, Literal

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lengthwise_export.checking import rule
from lengthwise_export.checking.rule import Cause
from lengthwise_export.checking.trace_torch import WholePart
from lengthwise_export.checking.trials import Change
from lengthwise_export.keras_models.module import KerasModule, SummaryLayer

LayerMask = Literal["lengths", "other", "none"]
"""The mask that a layer gets: that of the lengths, one that is computed from something else, or none."""

IN_OWN_LAYER: Final = (
    f"{rule.TO_ADAPT}\n"
    "def call(self, x, mask=None):  # Keras passes the mask: [rows, width], true at valid steps; None without one\n"
    "    ...\n"
    "    scores = keras.ops.where(mask[..., None], scores, -1e9)  # before a softmax or a maximum over the steps\n"
    "    x = keras.ops.where(mask[..., None], x, 0.0)  # before a sum or a mean; divide by keras.ops.sum(mask, 1)\n"
    "# and in __init__: self.supports_masking = True"
)
"""What to change in a layer of the user's own that leaks."""


@dataclass(frozen=True, slots=True)
class LayerCall:
    """A call of a layer, or of an operation of `keras.ops`."""

    kind: str  # The name of its class, such as `LSTM`; of an operation such as `ops.Softmax`
    layer: str  # Its path in the summary, such as `encoder/softmax`
    mask: LayerMask = "none"
    mask_dropped_by: str | None = None  # The earlier layer that dropped the mask; None if none did
    mask_code: str = "keras.layers.Masking().compute_mask(inputs)"  # The user's code that makes the mask
    dimensions: int = 3  # The rank of its input
    axis: int | None = 1  # The axis along which an operation runs; None for all
    keepdims: bool = False  # Whether an operation keeps that axis with a size of 1

    @property
    def template_values(self) -> dict[str, str]:
        """The code to insert for each name, such as `${mask}`, in the template of a fix.

        - `mask`: makes the mask `[rows, width]`. `valid`: this mask with the rank of the layer's input.
        - `axis`: the axis along which an operation runs; if it runs along all, those after the rows. `axes`: the same,
          as arguments of a call.
        - `layer`: the layer as a variable. `call`: the call of the layer or operation as it is now.
        """
        layer = re.sub(r"\W", "_", self.layer.rpartition("/")[2])
        axis_of_steps = 1 if self.axis is None else self.axis % self.dimensions
        valid = "mask"
        for axis in range(1, self.dimensions):
            if axis != axis_of_steps:
                valid = f"keras.ops.expand_dims({valid}, {axis})"
        axis_or_axes = tuple(range(1, self.dimensions)) if self.axis is None else self.axis
        arguments = f"axis={axis_or_axes}" + (", keepdims=True" if self.keepdims or self.axis is None else "")
        is_layer = not self.kind.startswith("ops.")
        operation = self.kind.removeprefix("ops.").lower().replace("logsoftmax", "log_softmax")
        return {
            "mask": self.mask_code,
            "valid": valid,
            "axes": arguments,
            "axis": str(axis_or_axes),
            "layer": layer,
            "call": f"{layer}(x)" if is_layer else f"keras.ops.{operation}(x, {arguments})",
        }


def explain_layer(call: LayerCall, change: Change) -> Cause:
    """The cause of a leak that begins at a call of a layer, with a fix.

    `change` is the change of the batch that has changed an answer.
    """
    entry = rule.select("layers", call.kind, change, call.mask)
    is_dropped = call.mask == "none" and call.mask_dropped_by is not None
    dropped = f" (it ends at {call.mask_dropped_by})" if is_dropped else ""
    return Cause(
        Template(entry.why).substitute(dropped=dropped),
        Template(entry.fix).substitute(call.template_values),
        entry.code,
    )


class LayerParts:
    """Describes the layers of a module for a check; remembers, while the layers run, which one has dropped the mask.

    It is called for each part of the module before the part runs. `mask_code` is the user's code that makes the mask.
    """

    def __init__(self, module: KerasModule, mask_code: str) -> None:
        self._mask_code = mask_code
        self._known = module.known
        self._layers = {id(part): layer for part, layer in module.parts}
        self._mask_dropped_by: str | None = None  # in the run so far

    def __call__(self, part: nn.Module) -> WholePart | None:
        """The description of a layer of Keras; None for a model, and for a layer of the user's own.

        A call for the whole model begins a run: it forgets which layer dropped the mask in the run before.
        """
        if isinstance(part, KerasModule):
            self._mask_dropped_by = None
            return None
        layer = self._layers.get(id(part))
        if layer is None or not layer.is_whole:
            return None
        name = f"{layer.path} ({layer.kind})"
        return WholePart(name, f"keras.{layer.kind}", str(layer), functools.partial(self._explain_call, layer))

    def _explain_call(
        self, layer: SummaryLayer, inputs: Sequence[Any], options: Mapping[str, Any], outputs: Any
    ) -> Callable[[Change], Cause]:
        """Returns the function that explains a leak at this call of a layer, with these inputs, options and outputs.

        Then it remembers, for the layers that run after this one, whether this layer has dropped the mask.
        """
        is_masked = _has_mask(inputs) or any(
            name.endswith("mask") and value is not None for name, value in options.items()
        )
        # Learning runs have compared the mask of the layer with that of the lengths
        mask_kind: LayerMask = "lengths" if self._known.matched_in_every_run(layer.layer, "mask") else "other"
        is_layer = hasattr(layer.layer, "compute_mask")  # else an operation between layers
        axis: Any = 1 if is_layer else getattr(layer.layer, "axis", 1)
        ranks = (leaf.dim() for leaf in tree_leaves(list(inputs)) if isinstance(leaf, Tensor))
        call = LayerCall(
            kind=layer.kind if is_layer else f"ops.{layer.kind}",
            layer=layer.path,
            mask=mask_kind if is_masked else "none",
            mask_dropped_by=self._mask_dropped_by,
            mask_code=self._mask_code,
            dimensions=next(ranks, 3),
            axis=axis[0] if isinstance(axis, tuple | list) and len(axis) == 1 else axis,
            keepdims=bool(getattr(layer.layer, "keepdims", False)),
        )
        if _has_mask(outputs):
            self._mask_dropped_by = None
        elif is_masked:
            self._mask_dropped_by = f"{layer.path} ({layer.kind})"
        return functools.partial(explain_layer, call)


def _has_mask(value: Any) -> bool:
    """Whether a tensor in a structure, such as the inputs of a layer, has a mask that Keras has attached to it."""
    return any(getattr(leaf, "_keras_mask", None) is not None for leaf in tree_leaves(value))
