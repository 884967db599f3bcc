import keras
from keras import layers


def make():
    keras.utils.set_random_seed(14)
    inputs = keras.Input(shape=(None, 6))
    x = layers.Masking(mask_value=0.0)(inputs)
    x = layers.Bidirectional(layers.LSTM(10, return_sequences=True))(x)
    last = x[:, -1, :]
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(last))
