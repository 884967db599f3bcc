import keras
from keras import layers


def make():
    """Two views of the same series; the mask is in one of them."""
    keras.utils.set_random_seed(6)
    inputs = keras.Input(shape=(None, 7))
    masked = layers.Masking()(inputs)
    slow = layers.LSTM(10)(masked)
    fast = layers.Bidirectional(layers.GRU(6), name="fast")(inputs)
    merged = layers.concatenate([slow, fast])
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(merged))
