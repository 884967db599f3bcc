import keras
from keras import layers


def make():
    """A video: each step is a picture."""
    keras.utils.set_random_seed(12)
    return keras.Sequential(
        [
            keras.Input(shape=(None, 8, 8, 1)),
            layers.TimeDistributed(layers.Conv2D(4, 3, activation="relu")),
            layers.TimeDistributed(layers.Flatten()),
            layers.LSTM(8),
            layers.Dense(3, activation="softmax"),
        ]
    )
