import keras
from keras import layers


def make():
    """A shortcut around a recurrent layer: Add keeps a mask only where both sides have one."""
    keras.utils.set_random_seed(24)
    inputs = keras.Input(shape=(None, 6))
    shortcut = layers.Conv1D(12, 1, use_bias=False)(inputs)
    x = layers.Masking()(inputs)
    x = layers.GRU(12, return_sequences=True)(x)
    x = layers.Add()([shortcut, x])
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
