import keras
from keras import layers


def make():
    keras.utils.set_random_seed(6)
    half = keras.DTypePolicy("mixed_float16")
    return keras.Sequential(
        [
            keras.Input(shape=(None, 4)),
            layers.Masking(dtype=half),
            layers.LSTM(8, dtype=half),
            layers.Dense(3, activation="softmax", dtype="float32"),
        ]
    )
