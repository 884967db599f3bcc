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

from torch import nn

from lengthwise_export.checking.causes import Cause
from lengthwise_export.checking.trace_torch import WholePart
from lengthwise_export.checking.trials import Change
from lengthwise_export.keras_models.module import KerasModule, SummaryLayer

LayerMask = Literal["lengths", "other", "none"]  # the mask that a layer gets: that of the lengths, another, or none

_ZEROED: Final = "valid = keras.ops.expand_dims(mask, -1)  # mask: [rows, width], as Masking computes it\n"
_MASK_FIRST: Final = "x = keras.layers.Masking()(inputs)  # the first layer, before any that changes values"
_PASS_MASK: Final = (
    "mask = masking.compute_mask(inputs)  # masking: the model's Masking layer, or its Embedding with mask_zero\n"
    "x = $layer(x, mask=mask)  # if there are as many steps here as in the inputs"
)
_OR_MEND: Final = "\n# or leave the model as it is: lengthwise export ... --mend"

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

_TABLE: Final = (  # the first entry that matches the class of a layer, and the mask that it gets, is used
    _LayerEntry(
        ".*",
        "0 * NaN is NaN, and so are 0 * Inf and Inf - Inf: a mask that multiplies or adds does not remove them.",
        _ZEROED + "x = keras.ops.where(valid, x, 0.0)  # selects instead of computing",
        changes=("poison",),
    ),
    _LayerEntry(
        "Masking|Embedding",
        "It computes its mask from values that a layer before it has changed, so padding is no longer what it looks "
        "for.",
        _MASK_FIRST,
    ),
    _LayerEntry(
        _RECURRENT,
        "It gets no mask$dropped: it runs through the padding, so its last state is that of a padded step, and "
        "backwards it begins in the padding.",
        _MASK_FIRST + _OR_MEND,
        mask="none",
    ),
    _LayerEntry(
        _RECURRENT,
        "Its mask is not that of the sequence's end: Masking looks for padding in values that a layer before it has "
        "changed, or Concatenate has joined the mask with that of an input that has none.",
        _MASK_FIRST + _OR_MEND,
        mask="other",
    ),
    _LayerEntry(
        _RECURRENT,
        "It gives its steps in reverse order, so padding stands in front and the next layer reads it as valid; or 0 in "
        "the place of its last state (zero_output_for_mask).",
        "x = keras.layers.Bidirectional(...)  # turns the steps back; without zero_output_for_mask" + _OR_MEND,
        mask="lengths",
    ),
    _LayerEntry(
        "(Separable|Depthwise)?(Conv|Convolution)1D(Transpose)?",
        "A convolution takes no mask: at the last valid steps it reads the padding behind them, and each one before "
        "it has carried its bias into the padding.",
        'padding="causal"  # where $layer is made: a step then reads no later one\n'
        "# or, before it:\n" + _ZEROED + "x = keras.ops.where(valid, x, 0.0)" + _OR_MEND,
    ),
    _LayerEntry(
        "GlobalMax(Pooling|Pool)1D",
        "It takes no mask: padded steps compete with the valid ones for the largest value.",
        _ZEROED + "x = keras.ops.where(valid, x, -1e9)  # before $layer" + _OR_MEND,
    ),
    _LayerEntry(
        "GlobalAverage(Pooling|Pool)1D|GlobalAvgPool1D",
        "It gets no mask$dropped: its sum includes padding, and it divides by the width.",
        "x = $layer(x, mask=mask)  # the mask that Masking computed: [rows, width]" + _OR_MEND,
        mask="none",
    ),
    _LayerEntry(
        "(Max|Average|Avg)(Pooling|Pool)1D|Adaptive(Max|Average)Pooling1D",
        "A window over the last valid steps reaches into the padding: pooling takes no mask, and gives none on.",
        "# pool after the sequence is one vector, or put values there that cannot win:\n"
        + _ZEROED
        + "x = keras.ops.where(valid, x, -1e9)  # before a max pooling; 0 before an average"
        + _OR_MEND,
    ),
    _LayerEntry(
        "Flatten",
        "It makes features of the steps, padding included: each place in the batch gets weights of its own.",
        "x = keras.layers.GlobalAveragePooling1D()(x)  # in the place of $layer; it takes the mask",
    ),
    _LayerEntry(
        "MultiHeadAttention|Group(ed)?QueryAttention",
        "Its softmax runs over padded steps too$dropped: they get weights above 0.",
        "x = $layer(x, x, attention_mask=mask[:, None, :])  # mask: [rows, width], true at valid steps" + _OR_MEND,
    ),
    _LayerEntry(
        "Attention|AdditiveAttention",
        "Its softmax runs over padded steps too$dropped: they get weights above 0.",
        "x = $layer([x, x], mask=[mask, mask])  # mask: [rows, width], true at valid steps" + _OR_MEND,
    ),
    _LayerEntry(
        "Softmax|Activation",
        "A softmax over the steps gives the padded ones a share, unless their scores are masked.",
        "weights = keras.layers.Softmax(axis=1)(scores, mask=valid)  # valid has the shape of scores" + _OR_MEND,
    ),
    _LayerEntry(
        "LayerNormalization|GroupNormalization|UnitNormalization|RMSNormalization|SpectralNormalization",
        "Its mean and variance are over the steps too, padding included.",
        "keras.layers.LayerNormalization(axis=-1)  # over the features of each step" + _OR_MEND,
    ),
    _LayerEntry(
        "Reshape|Permute|RepeatVector|Dot|EinsumDense|Dense",
        "It mixes the axis of the steps with another, or sums over it, padding included.",
        _ZEROED + "x = keras.ops.where(valid, x, 0.0)  # before $layer" + _OR_MEND,
    ),
    _LayerEntry(
        "Cropping1D|ZeroPadding1D|UpSampling1D",
        "It counts steps from the end of the width, where there is padding for every sequence but the longest.",
        "# leave it out, or work from the front: the end of a sequence is at its length",
    ),
    _LayerEntry(
        ".*",
        "It carries padding into valid steps$dropped.",
        _ZEROED + "x = keras.ops.where(valid, x, 0.0)  # before $layer" + _OR_MEND,
    ),
)


def explain_layer(kind: str, change: Change, *, layer: str, mask: LayerMask, dropped_by: str | None) -> Cause:
    """The cause of a leak at a layer, and a fix; `dropped_by` is the layer before it that gave no mask on."""
    entry = next(
        entry
        for entry in _TABLE
        if re.fullmatch(entry.kinds, kind)
        and entry.mask in (None, mask)
        and (not entry.changes or change in entry.changes)
    )
    dropped = "" if dropped_by is None or mask != "none" else f" (it ends at {dropped_by})"
    name = re.sub(r"\W", "_", layer.rpartition("/")[2])
    fix = entry.fix.replace(_MASK_FIRST, _PASS_MASK) if dropped else entry.fix  # the model has a mask, but not here
    return Cause(Template(entry.why).substitute(dropped=dropped), Template(fix).substitute(layer=name))


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
        return lambda change: explain_layer(layer.kind, change, layer=layer.path, mask=mask, dropped_by=before)


def _has_mask(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_mask, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_mask, value))
    return getattr(value, "_keras_mask", None) is not None
