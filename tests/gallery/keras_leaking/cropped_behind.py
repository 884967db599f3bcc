import keras
from keras import layers


def make():
    """The last reading is unreliable: leave it out."""
    keras.utils.set_random_seed(22)
    return keras.Sequential(
        [
            keras.Input(shape=(None, 3)),
            layers.Masking(),
            layers.Cropping1D((0, 1)),
            layers.SimpleRNN(12),
            layers.Dense(2, activation="softmax"),
        ]
    )
