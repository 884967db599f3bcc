import keras
from keras import layers


def make():
    keras.utils.set_random_seed(26)
    inputs = keras.Input(shape=(None, 6))
    x = layers.Masking()(inputs)
    x = layers.Dense(16)(x)
    y = layers.MultiHeadAttention(4, 4)(x, x, use_causal_mask=True)
    x = layers.UnitNormalization()(layers.add([x, y]))
    x = layers.LSTM(8)(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
