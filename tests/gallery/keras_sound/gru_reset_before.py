import keras
from keras import layers


def make():
    keras.utils.set_random_seed(5)
    return keras.Sequential(
        [
            keras.Input(shape=(None, 4)),
            layers.Masking(),
            layers.GRU(12, reset_after=False, return_sequences=True),
            layers.GRU(12, reset_after=False, recurrent_activation="hard_sigmoid"),
            layers.Dense(3),
        ]
    )
