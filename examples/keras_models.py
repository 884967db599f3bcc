"""Keras models as people write them, for `lengthwise check examples/keras_models.py:NAME`.

They need the extra `keras`; their weights are random.
"""

import keras
from keras import layers


def masked_lstm():
    """Masking, and layers that use its mask: sound."""
    return keras.Sequential(
        [
            layers.Input((None, 12)),
            layers.Masking(0.0),
            layers.LSTM(32, return_sequences=True),
            layers.LSTM(32),
            layers.Dense(9, activation="softmax"),
        ]
    )


def words():
    """Embedding makes the mask here, and a pooling that takes it ends the sequence: sound."""
    return keras.Sequential(
        [
            layers.Input((None,)),
            layers.Embedding(200, 16, mask_zero=True),
            layers.Bidirectional(layers.LSTM(16, return_sequences=True)),
            layers.GlobalAveragePooling1D(),
            layers.Dense(4),
        ]
    )


def convolution_drops_the_mask():
    """A convolution gives no mask on, so the LSTM behind it runs through the padding: leaks."""
    return keras.Sequential(
        [
            layers.Input((None, 12)),
            layers.Masking(0.0),
            layers.Conv1D(16, 5, padding="causal", name="convolution"),
            layers.LSTM(32, name="lstm"),
            layers.Dense(9),
        ]
    )


def without_masking():
    """No layer knows where a sequence ends: leaks, and can be mended."""
    return keras.Sequential(
        [
            layers.Input((None, 12)),
            layers.Conv1D(16, 5, padding="same", activation="relu", name="convolution"),
            layers.GlobalMaxPooling1D(),
            layers.Dense(9),
        ]
    )


class Attention(layers.Layer):
    """Attention over the steps of a recurrent layer, which leaves the padded ones out."""

    def __init__(self, **options):
        super().__init__(**options)
        self.supports_masking = True
        self.score = layers.Dense(1)

    def call(self, x, mask=None):
        """Weights the steps `[rows, width, features]`, and sums them."""
        scores = self.score(x)
        if mask is not None:
            scores = keras.ops.where(mask[..., None], scores, -1e9)
        return keras.ops.sum(keras.ops.softmax(scores, axis=1) * x, axis=1)

    def compute_mask(self, x, mask=None):
        """None: the steps are gone."""
        return None


def own_attention():
    """A layer of one's own that uses the mask: sound."""
    return keras.Sequential(
        [
            layers.Input((None, 12)),
            layers.Masking(0.0),
            layers.Bidirectional(layers.GRU(16, return_sequences=True)),
            Attention(),
            layers.Dense(9),
        ]
    )


def stateful():
    """Its answer depends on the calls before: refused."""
    return keras.Sequential([layers.Input(batch_shape=(1, None, 12)), layers.LSTM(8, stateful=True), layers.Dense(3)])
