import keras
from keras import layers


def make():
    keras.utils.set_random_seed(19)
    inputs = keras.Input(shape=(None, 5))
    x = layers.Masking()(inputs)
    x = layers.LSTM(12, return_sequences=True)(x)
    x = layers.RMSNormalization()(x)
    x = layers.LSTM(12, go_backwards=True, name="second")(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
