import keras
from keras import layers


def make():
    keras.utils.set_random_seed(6)
    return keras.Sequential(
        [
            keras.Input(shape=(None, 4)),
            layers.Conv1D(12, 5, activation="relu"),
            layers.MaxPooling1D(2),
            layers.LSTM(10, return_sequences=True),
            layers.GlobalMaxPooling1D(),
            layers.Dense(3, activation="softmax"),
        ]
    )
