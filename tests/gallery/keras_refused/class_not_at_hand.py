import keras
from keras import layers, ops


class Swish(layers.Layer):
    """Never registered: a file of it cannot be read without this class."""

    def call(self, x):
        return x * ops.sigmoid(x)


def make():
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [keras.Input(shape=(None, 4)), layers.Masking(), layers.LSTM(8), Swish(), layers.Dense(3, activation="softmax")]
    )
