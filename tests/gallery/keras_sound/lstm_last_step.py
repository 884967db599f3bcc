import keras
from keras import layers


def make():
    """Masked steps repeat the last valid output, so the last step is right."""
    keras.utils.set_random_seed(11)
    inputs = keras.Input(shape=(None, 4))
    x = layers.Masking()(inputs)
    x = layers.GRU(16, return_sequences=True)(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x[:, -1]))
