"""The table of causes and fixes for layers of Keras: why a layer leaks, and Keras code that fixes it.

The key is the class of the layer, and whether it got a mask. The first entry that matches is used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from string import Template
from typing import Final, Literal

from lengthwise_export.checking.causes import Cause
from lengthwise_export.checking.trials import Change

_MaskState = Literal["any", "masked", "unmasked"]

_ZEROED: Final = "valid = keras.ops.expand_dims(mask, -1)  # mask: [rows, width], as Masking computes it\n"
_MASK_FIRST: Final = "x = keras.layers.Masking()(inputs)  # the first layer, before any that changes values"
_OR_MEND: Final = "\n# or leave the model as it is: lengthwise export ... --mend"


@dataclass(frozen=True, slots=True)
class _LayerEntry:
    kinds: str
    state: _MaskState
    changes: frozenset[Change] | None
    why: str
    fix: str


def _layer(kinds: str, state: _MaskState, why: str, fix: str, changes: tuple[Change, ...] = ()) -> _LayerEntry:
    return _LayerEntry(kinds, state, frozenset(changes) or None, why, fix)


_RECURRENT: Final = "SimpleRNN|LSTM|GRU|RNN|Bidirectional"

_TABLE: Final = (
    _layer(
        ".*",
        "any",
        "0 * NaN is NaN, and so are 0 * Inf and Inf - Inf: a mask that multiplies or adds does not remove them.",
        _ZEROED + "x = keras.ops.where(valid, x, 0.0)  # selects instead of computing",
        ("poison",),
    ),
    _layer(
        "Masking|Embedding",
        "any",
        "It computes its mask from values that a layer before it has changed, so padding is no longer what it looks "
        "for.",
        _MASK_FIRST,
    ),
    _layer(
        _RECURRENT,
        "unmasked",
        "It gets no mask$dropped: it runs through the padding, so its last state is that of a padded step, and "
        "backwards it begins in the padding.",
        _MASK_FIRST + _OR_MEND,
    ),
    _layer(
        _RECURRENT,
        "masked",
        "Its mask is not the one that Masking made, or it gives its steps in reverse order: padding then stands in "
        "front, and the next layer reads it as valid.",
        "return_sequences=False  # where $layer is made; or keras.layers.Bidirectional, which turns the steps back"
        + _OR_MEND,
    ),
    _layer(
        "(Separable|Depthwise)?(Conv|Convolution)1D(Transpose)?",
        "any",
        "A convolution takes no mask: at the last valid steps it reads the padding behind them, and each one before "
        "it has carried its bias into the padding.",
        'padding="causal"  # where $layer is made: a step then reads no later one\n'
        "# or, before it:\n" + _ZEROED + "x = keras.ops.where(valid, x, 0.0)" + _OR_MEND,
    ),
    _layer(
        "GlobalMax(Pooling|Pool)1D",
        "any",
        "It takes no mask: padded steps compete with the valid ones for the largest value.",
        _ZEROED + "x = keras.ops.where(valid, x, -1e9)  # before $layer" + _OR_MEND,
    ),
    _layer(
        "GlobalAverage(Pooling|Pool)1D|GlobalAvgPool1D",
        "unmasked",
        "It gets no mask$dropped: its sum includes padding, and it divides by the width.",
        "x = $layer(x, mask=mask)  # the mask that Masking computed: [rows, width]" + _OR_MEND,
    ),
    _layer(
        "(Max|Average|Avg)(Pooling|Pool)1D|Adaptive(Max|Average)Pooling1D",
        "any",
        "A window over the last valid steps reaches into the padding: pooling takes no mask, and gives none on.",
        "# pool after the sequence is one vector, or put values there that cannot win:\n"
        + _ZEROED
        + "x = keras.ops.where(valid, x, -1e9)  # before a max pooling; 0 before an average"
        + _OR_MEND,
    ),
    _layer(
        "Flatten",
        "any",
        "It makes features of the steps, padding included: each place in the batch gets weights of its own.",
        "x = keras.layers.GlobalAveragePooling1D()(x)  # in the place of $layer; it takes the mask",
    ),
    _layer(
        "MultiHeadAttention|Group(ed)?QueryAttention",
        "any",
        "Its softmax runs over padded steps too$dropped: they get weights above 0.",
        "x = $layer(x, x, attention_mask=mask[:, None, :])  # mask: [rows, width], true at valid steps" + _OR_MEND,
    ),
    _layer(
        "Attention|AdditiveAttention",
        "any",
        "Its softmax runs over padded steps too$dropped: they get weights above 0.",
        "x = $layer([x, x], mask=[mask, mask])  # mask: [rows, width], true at valid steps" + _OR_MEND,
    ),
    _layer(
        "Softmax|Activation",
        "any",
        "A softmax over the steps gives the padded ones a share, unless their scores are masked.",
        "weights = keras.layers.Softmax(axis=1)(scores, mask=valid)  # valid has the shape of scores" + _OR_MEND,
    ),
    _layer(
        "LayerNormalization|GroupNormalization|UnitNormalization|RMSNormalization|SpectralNormalization",
        "any",
        "Its mean and variance are over the steps too, padding included.",
        "keras.layers.LayerNormalization(axis=-1)  # over the features of each step" + _OR_MEND,
    ),
    _layer(
        "Reshape|Permute|RepeatVector|Dot|EinsumDense|Dense",
        "any",
        "It mixes the axis of the steps with another, or sums over it, padding included.",
        _ZEROED + "x = keras.ops.where(valid, x, 0.0)  # before $layer" + _OR_MEND,
    ),
    _layer(
        "Cropping1D|ZeroPadding1D|UpSampling1D",
        "any",
        "It counts steps from the end of the width, where there is padding for every sequence but the longest.",
        "# leave it out, or work from the front: the end of a sequence is at its length",
    ),
    _layer(
        ".*",
        "any",
        "It carries padding into valid steps$dropped.",
        _ZEROED + "x = keras.ops.where(valid, x, 0.0)  # before $layer" + _OR_MEND,
    ),
)


def explain_layer(kind: str, change: Change, *, layer: str, is_masked: bool, dropped_by: str | None) -> Cause:
    """The cause of a leak at a layer, and a fix.

    Args:
        kind: The class of the layer.
        change: The change that moved its output.
        layer: The name of the layer.
        is_masked: Whether it got a mask.
        dropped_by: The layer before it that got a mask and gave none on, if there is one.
    """
    state = "masked" if is_masked else "unmasked"
    entry = next(
        entry
        for entry in _TABLE
        if re.fullmatch(entry.kinds, kind)
        and entry.state in ("any", state)
        and (change in entry.changes if entry.changes is not None else True)
    )
    dropped = "" if dropped_by is None or is_masked else f" (it ends at {dropped_by})"
    name = re.sub(r"\W", "_", layer.rpartition("/")[2])
    return Cause(Template(entry.why).substitute(dropped=dropped), Template(entry.fix).substitute(layer=name))
