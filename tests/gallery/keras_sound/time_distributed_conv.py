import keras
from keras import layers


def make():
    """A small spectrum at each step, read by a convolution along the frequencies."""
    keras.utils.set_random_seed(27)
    return keras.Sequential(
        [
            keras.Input(shape=(None, 16)),
            layers.Masking(),
            layers.TimeDistributed(layers.Reshape((16, 1))),
            layers.TimeDistributed(layers.Conv1D(4, 3, strides=2, activation="relu")),
            layers.TimeDistributed(layers.MaxPooling1D(2)),
            layers.TimeDistributed(layers.Flatten()),
            layers.LSTM(12),
            layers.Dense(3, activation="softmax"),
        ]
    )
