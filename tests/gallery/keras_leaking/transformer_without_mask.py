import keras
from keras import layers, ops


@keras.saving.register_keras_serializable(package="keras_io")
class TokenAndPositionEmbedding(layers.Layer):
    def __init__(self, maxlen, vocab_size, embed_dim, **kwargs):
        super().__init__(**kwargs)
        self.maxlen, self.vocab_size, self.embed_dim = maxlen, vocab_size, embed_dim
        self.token_emb = layers.Embedding(input_dim=vocab_size, output_dim=embed_dim, mask_zero=True)
        self.pos_emb = layers.Embedding(input_dim=maxlen, output_dim=embed_dim)

    def build(self, input_shape):
        self.token_emb.build(input_shape)
        self.pos_emb.build(input_shape)

    def call(self, x):
        positions = ops.arange(0, ops.shape(x)[-1], 1)
        return self.token_emb(x) + self.pos_emb(positions)

    def get_config(self):
        sizes = {"maxlen": self.maxlen, "vocab_size": self.vocab_size, "embed_dim": self.embed_dim}
        return {**super().get_config(), **sizes}


def make():
    """Text classification with a transformer; the sum of two embeddings has no mask any more."""
    keras.utils.set_random_seed(27)
    inputs = keras.Input(shape=(None,), dtype="int32")
    x = TokenAndPositionEmbedding(200, 70, 16)(inputs)
    attended = layers.MultiHeadAttention(num_heads=2, key_dim=8, name="self_attention")(x, x)
    x = layers.LayerNormalization(epsilon=1e-6)(x + attended)
    feed_forward = keras.Sequential([layers.Dense(16, activation="relu"), layers.Dense(16)])
    x = layers.LayerNormalization(epsilon=1e-6)(x + feed_forward(x))
    x = layers.GlobalAveragePooling1D()(x)
    x = layers.Dense(20, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
