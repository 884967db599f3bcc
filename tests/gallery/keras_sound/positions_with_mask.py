import keras
from keras import layers, ops


@keras.saving.register_keras_serializable(package="masked_positions")
class PositionalEmbedding(layers.Layer):
    """Token and position; passes on the mask of the tokens."""

    def __init__(self, longest, vocabulary, size, **kwargs):
        super().__init__(**kwargs)
        self.longest, self.vocabulary, self.size = longest, vocabulary, size
        self.tokens = layers.Embedding(vocabulary, size, mask_zero=True)
        self.positions = layers.Embedding(longest, size)

    def build(self, input_shape):
        self.tokens.build(input_shape)
        self.positions.build(input_shape)

    def call(self, x):
        return self.tokens(x) * ops.sqrt(float(self.size)) + self.positions(ops.arange(ops.shape(x)[1]))

    def compute_mask(self, inputs, mask=None):
        return self.tokens.compute_mask(inputs)

    def get_config(self):
        sizes = {"longest": self.longest, "vocabulary": self.vocabulary, "size": self.size}
        return {**super().get_config(), **sizes}


def make():
    keras.utils.set_random_seed(31)
    inputs = keras.Input(shape=(None,), dtype="int64")
    x = PositionalEmbedding(150, 70, 16)(inputs)
    x = layers.LayerNormalization()(layers.add([x, layers.MultiHeadAttention(2, 8)(x, x)]))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
