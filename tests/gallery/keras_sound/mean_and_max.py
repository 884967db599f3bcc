import keras
from keras import layers


def make():
    keras.utils.set_random_seed(18)
    inputs = keras.Input(shape=(None, 5))
    h = layers.LSTM(10, return_sequences=True)(layers.Masking()(inputs))
    pooled = layers.concatenate([layers.GlobalAveragePooling1D()(h), layers.GlobalMaxPooling1D()(h)])
    x = layers.Dense(12)(pooled)
    x = layers.PReLU()(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
