import keras
from keras import layers


def make():
    """A convolution makes query and value of each token, then dot-product attention between them."""
    keras.utils.set_random_seed(9)
    tokens = keras.Input(shape=(None,), dtype="int32")
    embedded = layers.Embedding(60, 16, mask_zero=True)(tokens)
    query = layers.Conv1D(16, 1, name="query_cnn")(embedded)
    value = layers.Conv1D(16, 1, name="value_cnn")(embedded)
    attended = layers.Attention()([query, value])
    state = layers.GRU(12)(attended, mask=keras.ops.not_equal(tokens, 0))
    return keras.Model(tokens, layers.Dense(2, activation="softmax")(state))
