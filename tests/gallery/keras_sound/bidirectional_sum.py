import keras
from keras import layers


def make():
    keras.utils.set_random_seed(4)
    return keras.Sequential(
        [
            keras.Input((None, 5)),
            layers.Masking(),
            layers.Bidirectional(layers.GRU(8, return_sequences=True), merge_mode="sum"),
            layers.Bidirectional(layers.GRU(8, return_sequences=True), merge_mode="mul"),
            layers.Bidirectional(layers.LSTM(8), merge_mode="ave"),
            layers.Dense(3, activation="softmax"),
        ]
    )
