"""Small Keras models, each wrong and right, for the questions of docs/masking.md.

lengthwise check examples/keras_masking.py:attention_after_lstm     # a leak
lengthwise check examples/keras_masking.py:masked_attention_after_lstm
python examples/keras_masking.py                                    # what padding does to a loss in Keras
"""

from __future__ import annotations

import os

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "torch")
import keras
from keras import layers, ops

FEATURES, HIDDEN, CLASSES, VOCABULARY = 4, 8, 3, 50


def _attention_after_lstm(masked: bool) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, FEATURES))
    x = layers.Masking(0.0)(inputs)
    h = layers.LSTM(HIDDEN, return_sequences=True)(x)
    scores = layers.Dense(1)(h)  # [rows, width, 1]; a masked step repeats the last valid output, and its score
    if masked:
        mask = ops.any(ops.not_equal(inputs, 0.0), axis=-1)
        scores = ops.where(mask[..., None], scores, -1e9)
    weights = ops.softmax(scores, axis=1)
    return keras.Model(inputs, layers.Dense(CLASSES)(ops.sum(weights * h, axis=1)))


def attention_after_lstm() -> keras.Model:
    """A softmax over every step: padded steps get weight."""
    return _attention_after_lstm(masked=False)


def masked_attention_after_lstm() -> keras.Model:
    """The same with the mask before the softmax."""
    return _attention_after_lstm(masked=True)


def _convolutions(masked: bool) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, FEATURES))
    mask = ops.any(ops.not_equal(inputs, 0.0), axis=-1)
    x = layers.Masking(0.0)(inputs)
    for _ in range(2):
        if masked:
            x = ops.where(mask[..., None], x, 0.0)
        x = layers.Conv1D(HIDDEN, 3, padding="same", activation="relu", bias_initializer="ones")(x)
    x = layers.GlobalAveragePooling1D()(x, mask=mask)
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


def convolutions_without_a_mask_between() -> keras.Model:
    """The bias of the first makes padding other than 0, and the second reads it."""
    return _convolutions(masked=False)


def convolutions() -> keras.Model:
    """The same with the padding set to 0 again before each."""
    return _convolutions(masked=True)


def conv_forgets_mask() -> keras.Model:
    """Conv1D passes on no mask, so the mean counts padding; Keras warns of it."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((None, FEATURES)),
            layers.Masking(0.0),
            layers.Conv1D(HIDDEN, 3, padding="same"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(CLASSES),
        ]
    )


def second_encoder_block() -> keras.Model:
    """MultiHeadAttention takes the mask off its input, so the sum has none, and the next attention reads padding."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None,), dtype="int32")
    x = layers.Embedding(VOCABULARY, HIDDEN, mask_zero=True)(inputs)
    for _ in range(2):
        x = layers.LayerNormalization()(layers.Add()([x, layers.MultiHeadAttention(2, HIDDEN // 2)(x, x)]))
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(x)))


def encoder_blocks_of_given_masks() -> keras.Model:
    """The same with the mask given to each layer that needs it."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None,), dtype="int32")
    mask = ops.not_equal(inputs, 0)
    x = layers.Embedding(VOCABULARY, HIDDEN)(inputs)
    for _ in range(2):
        attended = layers.MultiHeadAttention(2, HIDDEN // 2)(x, x, attention_mask=mask[:, None, :])
        x = layers.LayerNormalization()(layers.Add()([x, attended]))
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(x, mask=mask)))


def missing_values() -> keras.Model:
    """Takes NaN: the mean in its place, and a flag beside it. `Masking` masks whole steps, never one value."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, FEATURES))
    mask = ops.any(ops.not_equal(inputs, 0.0), axis=-1)
    absent = ops.isnan(inputs)
    flagged = ops.concatenate([ops.where(absent, 0.0, inputs), ops.cast(absent, "float32")], axis=-1)
    h = layers.GRU(HIDDEN)(flagged, mask=mask)
    return keras.Model(inputs, layers.Dense(CLASSES)(h))


def classifier() -> keras.Model:
    """Masking, LSTM, Dense: exported, it takes lengths, and a step of zeros is a step."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((None, FEATURES)), layers.Masking(0.0), layers.LSTM(HIDDEN), layers.Dense(CLASSES)]
    )


def tokens() -> keras.Model:
    """`mask_zero=True`: exported, it takes lengths, and token 0 is a token like any other."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            layers.Embedding(VOCABULARY, HIDDEN, mask_zero=True),
            layers.GRU(HIDDEN),
            layers.Dense(CLASSES),
        ]
    )


def tokens_without_mask() -> keras.Model:
    """An Embedding masks nothing by itself, and a mean counts padding."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None,), dtype="int32")
    x = layers.Embedding(VOCABULARY, HIDDEN, mask_zero=True)(inputs)
    return keras.Model(inputs, layers.Dense(CLASSES)(ops.mean(x, axis=1)))


def losses(width: int) -> dict[str, float]:
    """The loss of the same three sequences with a label for each step, padded to a width, in four ways."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, FEATURES))
    h = layers.GRU(HIDDEN, return_sequences=True)(layers.Masking(0.0)(inputs))
    model = keras.Model(inputs, layers.Dense(CLASSES, activation="softmax")(h))
    plain = keras.Model(inputs, layers.Dense(CLASSES, activation="softmax")(layers.Conv1D(HIDDEN, 1)(h)))
    random = np.random.default_rng(0)
    steps, labels = np.zeros((3, width, FEATURES), np.float32), np.zeros((3, width), int)
    for row, length in enumerate((4, 7, 9)):
        steps[row, :length] = random.standard_normal((length, FEATURES))
        labels[row, :length] = random.integers(0, CLASSES, length)
    valid = steps.any(axis=2).astype(np.float32)
    for each in (model, plain):
        each.compile(loss="sparse_categorical_crossentropy")
    masked = model.evaluate(steps, labels, verbose=0)
    unmasked = plain.evaluate(steps, labels, verbose=0)
    weighted = plain.evaluate(steps, labels, sample_weight=valid, verbose=0)
    plain.compile(loss=keras.losses.SparseCategoricalCrossentropy(reduction="mean_with_sample_weight"))
    mean = plain.evaluate(steps, labels, sample_weight=valid, verbose=0)
    return {
        "the mask reaches the output": masked,
        "a convolution drops it": unmasked,
        "the same, sample_weight=valid": weighted,
        "the same, reduction='mean_with_sample_weight' too": mean,
    }


def main() -> None:
    """Shows what the width of a batch does to a loss."""
    by_width = {width: losses(width) for width in (9, 18, 36)}
    print("loss at a width of".ljust(58), *(f"{width:>8}" for width in by_width))
    for way in by_width[9]:
        print(way.ljust(58), *(f"{each[way]:8.4f}" for each in by_width.values()))


if __name__ == "__main__":
    main()
