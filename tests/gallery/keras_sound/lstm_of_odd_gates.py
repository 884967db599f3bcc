import keras
from keras import layers


def make():
    keras.utils.set_random_seed(7)
    return keras.Sequential(
        [
            keras.Input(shape=(None, 4)),
            layers.Masking(),
            layers.LSTM(
                10, activation="softsign", recurrent_activation="hard_sigmoid", use_bias=False, return_sequences=True
            ),
            layers.LSTM(10, activation="relu", unit_forget_bias=False, bias_initializer="glorot_uniform"),
            layers.Dense(3, activation="softmax"),
        ]
    )
