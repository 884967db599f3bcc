"""Why a layer of Keras leaks, and Keras code that fixes it: a table, and what a check is told of each layer.

The layers of Keras are recorded whole, by their names in the summary; a user's own layer operator by operator.
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

from lengthwise_export.checking.causes import Cause
from lengthwise_export.checking.trace_torch import WholePart
from lengthwise_export.checking.trials import Change
from lengthwise_export.keras_models.module import KerasModule, SummaryLayer

LayerMask = Literal["lengths", "other", "none"]  # the mask that a layer gets: that of the lengths, another, or none

_MASK: Final = "mask = $mask  # [rows, width], true at valid steps; inputs: what the model takes\n"
_VALID: Final = _MASK + "valid = $valid\n"
_INSTEAD: Final = "# in the place of $layer, where x is what it takes:\n"
_BEFORE: Final = "# in front of $layer, where x is what it takes:\n"
_OR_MEND: Final = "\n# or leave the model as it is: lengthwise export ... --mend"
_TO_ADAPT: Final = "# not to paste: "

IN_OWN_LAYER: Final = (
    "def call(self, x, mask=None):  # Keras passes the mask: [rows, width], true at valid steps; None without one\n"
    "    ...\n"
    "    scores = keras.ops.where(mask[..., None], scores, -1e9)  # before a softmax or a maximum over the steps\n"
    "    x = keras.ops.where(mask[..., None], x, 0.0)  # before a sum or a mean; divide by keras.ops.sum(mask, 1)\n"
    "# and in __init__: self.supports_masking = True"
)
"""What to change in a layer of the user's own that leaks."""


@dataclass(frozen=True, slots=True)
class _LayerEntry:
    kinds: str  # a regular expression of classes
    why: str
    fix: str
    mask: LayerMask | None = None  # None for any
    changes: tuple[Change, ...] = ()  # empty for any


_RECURRENT: Final = "SimpleRNN|LSTM|GRU|RNN|Bidirectional"


def _with_mask(call: str) -> str:
    """The fix that calls a layer with the mask."""
    return _INSTEAD + _MASK + call + _OR_MEND


def _filled(fill: str) -> str:
    """The fix that fills padding in front of a layer or an operation."""
    return _INSTEAD + _VALID + f"x = keras.ops.where(valid, x, {fill})\nx = $call" + _OR_MEND


_SUMS: Final = (
    "count = keras.ops.sum(keras.ops.where(valid, keras.ops.ones_like(x), 0.0), $axes)\n"
    "mean = keras.ops.sum(keras.ops.where(valid, x, 0.0), $axes) / count\n"
)
_DEVIATIONS: Final = (
    "ones = keras.ops.where(valid, keras.ops.ones_like(x), 0.0)\n"
    "mean = keras.ops.sum(ones * x, axis=$axis, keepdims=True) / keras.ops.sum(ones, axis=$axis, keepdims=True)\n"
    "squares = keras.ops.where(valid, keras.ops.square(x - mean), 0.0)\n"
    "variance = keras.ops.sum(squares, $axes) / keras.ops.sum(ones, $axes)\n"
)
_LAST: Final = (
    "count = keras.ops.cumsum(keras.ops.cast(mask, 'int32'), axis=1)\n"
    "last = keras.ops.logical_and(mask, keras.ops.equal(count, keras.ops.max(count, axis=1, keepdims=True)))\n"
    "x = keras.ops.sum(keras.ops.where(keras.ops.expand_dims(last, -1), x, 0.0), axis=1)"
    "  # the last valid step, in the place of x[:, -1]"
)
_OVER_PADDING: Final = "It runs over all steps, padding included$dropped: operations of keras.ops know no mask."

_TABLE: Final = (  # the first entry that matches the class of a layer, and the mask that it gets, is used
    _LayerEntry(
        ".*",
        "0 * NaN is NaN, and so are 0 * Inf and Inf - Inf: a mask that multiplies or adds does not remove them.",
        _BEFORE + _VALID + "x = keras.ops.where(valid, x, 0.0)  # selects instead of computing",
        changes=("poison",),
    ),
    _LayerEntry(
        "ops.(Mean|Average)",
        "It divides by the width, and its sum includes padding$dropped: operations of keras.ops know no mask.",
        _INSTEAD + _VALID + _SUMS + "x = mean" + _OR_MEND,
    ),
    _LayerEntry("ops.Std", _OVER_PADDING, _INSTEAD + _VALID + _DEVIATIONS + "x = keras.ops.sqrt(variance)" + _OR_MEND),
    _LayerEntry("ops.Var", _OVER_PADDING, _INSTEAD + _VALID + _DEVIATIONS + "x = variance" + _OR_MEND),
    _LayerEntry("ops.(Amax|Max|Argmax|Logsumexp|TopK)", _OVER_PADDING, _filled("-3e38")),
    _LayerEntry("ops.(Amin|Min|Argmin|Sort|Argsort)", _OVER_PADDING, _filled("3e38")),
    _LayerEntry("ops.(Log)?Softmax", _OVER_PADDING, _filled("-1e9")),
    _LayerEntry("ops.(Prod|All)", _OVER_PADDING, _filled("1.0")),
    _LayerEntry(
        "ops.GetItem",
        "It reads a step at a fixed index of the width, where there is padding for every sequence but the longest.",
        _INSTEAD + _MASK + _LAST + _OR_MEND,
    ),
    _LayerEntry(
        "ops.(Median|Quantile|Moments|Flip|Roll|Fft.*|Rfft.*)",
        _OVER_PADDING,
        _TO_ADAPT + "keras.ops has none for a part of the steps. A mean or a maximum of the valid steps, or a\n"
        "# layer that takes the mask (Bidirectional in the place of a flip), can be written" + _OR_MEND,
    ),
    _LayerEntry("ops.(Cum.*|Sum|Norm|CountNonzero|Any)", _OVER_PADDING, _filled("0.0")),
    _LayerEntry(
        "Masking|Embedding",
        "It computes its mask from values that a layer before it has changed, so padding is no longer what it looks "
        "for.",
        _TO_ADAPT + "make it the first layer, before any that changes values",
    ),
    _LayerEntry(
        _RECURRENT,
        "It gets no mask$dropped: it runs through the padding, so its last state is that of a padded step, and "
        "backwards it begins in the padding.",
        _with_mask("x = $layer(x, mask=mask)  # or make Masking, or an Embedding with mask_zero, the first layer"),
        mask="none",
    ),
    _LayerEntry(
        _RECURRENT,
        "Its mask is not that of the sequence's end: Masking looks for padding in values that a layer before it has "
        "changed, or Concatenate has joined the mask with that of an input that has none.",
        _with_mask("x = $layer(x, mask=mask)  # or make Masking, or an Embedding with mask_zero, the first layer"),
        mask="other",
    ),
    _LayerEntry(
        _RECURRENT,
        "It gives its steps in reverse order, so padding stands in front and the next layer reads it as valid; or 0 in "
        "the place of its last state (zero_output_for_mask).",
        _TO_ADAPT + "make it without go_backwards and zero_output_for_mask; this turns the steps back:\n"
        "x = keras.layers.Bidirectional(...)" + _OR_MEND,
        mask="lengths",
    ),
    _LayerEntry(
        "(Separable|Depthwise)?(Conv|Convolution)1D(Transpose)?",
        "A convolution takes no mask: at the last valid steps it reads the padding behind them, and each one before "
        "it has carried its bias into the padding.",
        _INSTEAD + _VALID + "x = keras.ops.where(valid, x, 0.0)\n"
        'x = $layer(x)  # or make it with padding="causal": a step then reads no later one' + _OR_MEND,
    ),
    _LayerEntry(
        "GlobalMax(Pooling|Pool)1D",
        "It takes no mask: padded steps compete with the valid ones for the largest value.",
        _filled("-3e38"),
    ),
    _LayerEntry(
        "GlobalAverage(Pooling|Pool)1D|GlobalAvgPool1D",
        "It gets no mask$dropped: its sum includes padding, and it divides by the width.",
        _with_mask("x = $layer(x, mask=mask)"),
        mask="none",
    ),
    _LayerEntry(
        "(Max|Average|Avg)(Pooling|Pool)1D|Adaptive(Max|Average)Pooling1D",
        "A window over the last valid steps reaches into the padding: pooling takes no mask, and gives none on.",
        _TO_ADAPT + "pool when the sequence is one vector, or leave it out: the layers behind it need a mask with as\n"
        "# many steps as it gives" + _OR_MEND,
    ),
    _LayerEntry(
        "Flatten",
        "It makes features of the steps, padding included: each step of the batch gets weights of its own.",
        _TO_ADAPT
        + "what follows has as many inputs as the width. In its place, and train again:\n"
        + _MASK
        + "x = keras.layers.GlobalAveragePooling1D()(x, mask=mask)",
    ),
    _LayerEntry(
        "MultiHeadAttention|Group(ed)?QueryAttention",
        "Its softmax runs over padded steps too$dropped: they get weights above 0.",
        _with_mask("x = $layer(x, x, attention_mask=mask[:, None, :])"),
    ),
    _LayerEntry(
        "Attention|AdditiveAttention",
        "Its softmax runs over padded steps too$dropped: they get weights above 0.",
        _with_mask("x = $layer([x, x], mask=[mask, mask])"),
    ),
    _LayerEntry(
        "Softmax|Activation",
        "A softmax over the steps gives the padded ones a share, unless their scores are masked.",
        _filled("-1e9"),
    ),
    _LayerEntry(
        "LayerNormalization|GroupNormalization|UnitNormalization|RMSNormalization|SpectralNormalization",
        "Its mean and variance are over the steps too, padding included.",
        _TO_ADAPT + "a norm over the features of each step, with weights of its own, to train again:\n"
        "x = keras.layers.LayerNormalization(axis=-1)(x)" + _OR_MEND,
    ),
    _LayerEntry(
        "Cropping1D|ZeroPadding1D|UpSampling1D",
        "It counts steps from the end of the width, where there is padding for every sequence but the longest.",
        _TO_ADAPT + "leave it out, or work from the front: the end of a sequence is at its length",
    ),
    _LayerEntry(
        "(ops.)?(Reshape|Permute|RepeatVector|Transpose)",
        "It mixes the axis of the steps with another, padding included.",
        _TO_ADAPT
        + "in front of the layer behind it that reads along the steps:\n"
        + _VALID
        + "x = keras.ops.where(valid, x, 0.0)"
        + _OR_MEND,
    ),
    _LayerEntry(
        ".*",
        "It carries padding into valid steps$dropped.",
        _BEFORE + _VALID + "x = keras.ops.where(valid, x, 0.0)" + _OR_MEND,
    ),
)


@dataclass(frozen=True, slots=True)
class LayerCall:
    """A call of a layer, or of an operation of `keras.ops`."""

    kind: str  # Its class, of an operation with `ops.` before it
    layer: str
    mask: LayerMask = "none"
    dropped_by: str | None = None  # The layer before it that gave no mask on
    masks: str = "keras.layers.Masking().compute_mask(inputs)"  # Code for the mask
    dimensions: int = 3  # Of what it takes
    axis: int | None = 1  # Along which an operation runs; None for all
    keepdims: bool = False

    @property
    def words(self) -> dict[str, str]:
        """Code for the words of a fix."""
        name = re.sub(r"\W", "_", self.layer.rpartition("/")[2])
        steps = 1 if self.axis is None else self.axis % self.dimensions
        axes = tuple(range(1, self.dimensions)) if self.axis is None else self.axis
        others = [axis for axis in range(1, self.dimensions) if axis != steps]
        valid = "mask"
        for axis in others:
            valid = f"keras.ops.expand_dims({valid}, {axis})"
        along = f"axis={axes}" + (", keepdims=True" if self.keepdims or self.axis is None else "")
        operation = self.kind.removeprefix("ops.").lower().replace("logsoftmax", "log_softmax")
        return {
            "mask": self.masks,
            "valid": valid,
            "axes": along,
            "axis": str(axes),
            "layer": name,
            "call": f"{name}(x)" if operation == self.kind.lower() else f"keras.ops.{operation}(x, {along})",
        }


def explain_layer(call: LayerCall, change: Change) -> Cause:
    """The cause of a leak at a layer, and a fix."""
    entry = next(
        entry
        for entry in _TABLE
        if re.fullmatch(entry.kinds, call.kind)
        and entry.mask in (None, call.mask)
        and (not entry.changes or change in entry.changes)
    )
    dropped = "" if call.dropped_by is None or call.mask != "none" else f" (it ends at {call.dropped_by})"
    return Cause(Template(entry.why).substitute(dropped=dropped), Template(entry.fix).substitute(call.words))


class LayerParts:
    """Describes the layers of a module for a check."""

    def __init__(self, module: KerasModule, mask: str) -> None:
        self._mask = mask
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
        shown = f"{layer.path} ({layer.kind})"
        return WholePart(shown, f"keras.{layer.kind}", str(layer), functools.partial(self._at_call, layer))

    def _at_call(
        self, layer: SummaryLayer, inputs: Sequence[Any], options: Mapping[str, Any], outputs: Any
    ) -> Callable[[Change], Cause]:
        is_masked = _has_mask(inputs) or any(
            name.endswith("mask") and value is not None for name, value in options.items()
        )
        before = self._dropped_by
        if is_masked and not _has_mask(outputs):
            self._dropped_by = f"{layer.path} ({layer.kind})"
        elif _has_mask(outputs):
            self._dropped_by = None
        of_lengths: LayerMask = "lengths" if self._known.is_learned(layer.layer) else "other"
        mask = of_lengths if is_masked else "none"
        is_layer = hasattr(layer.layer, "compute_mask")
        axis: Any = 1 if is_layer else getattr(layer.layer, "axis", 1)
        call = LayerCall(
            layer.kind if is_layer else f"ops.{layer.kind}",
            layer.path,
            mask,
            before,
            self._mask,
            dimensions=next((one.dim() for one in tree_leaves(list(inputs)) if isinstance(one, Tensor)), 3),
            axis=axis[0] if isinstance(axis, tuple | list) and len(axis) == 1 else axis,
            keepdims=bool(getattr(layer.layer, "keepdims", False)),
        )
        return functools.partial(explain_layer, call)


def _has_mask(value: Any) -> bool:
    return any(getattr(leaf, "_keras_mask", None) is not None for leaf in tree_leaves(value))
