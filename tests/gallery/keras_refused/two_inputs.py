import keras
from keras import layers


def make():
    keras.utils.set_random_seed(5)
    series = keras.Input(shape=(None, 4), name="series")
    patient = keras.Input(shape=(3,), name="patient")
    x = layers.LSTM(8)(layers.Masking()(series))
    x = layers.concatenate([x, layers.Dense(4, activation="relu")(patient)])
    return keras.Model([series, patient], layers.Dense(2, activation="softmax")(x))
