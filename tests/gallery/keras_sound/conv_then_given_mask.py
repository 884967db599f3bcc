import keras
from keras import layers, ops


def make():
    keras.utils.set_random_seed(21)
    inputs = keras.Input(shape=(None, 6))
    mask = ops.any(ops.not_equal(inputs, 0.0), axis=-1)
    x = layers.Masking()(inputs)
    x = layers.Conv1D(16, 5, padding="same", activation="relu")(x)
    x = layers.GRU(12, return_sequences=True)(x, mask=mask)
    x = layers.GlobalAveragePooling1D()(x, mask=mask)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
