import keras
from keras import layers


def make():
    """Dropout of whole features: turned around for it, and back."""
    keras.utils.set_random_seed(12)
    inputs = keras.Input(shape=(None, 5))
    x = layers.Masking()(inputs)
    x = layers.Permute((2, 1))(x)
    x = layers.Dropout(0.2, noise_shape=(None, 5, 1))(x)
    x = layers.Permute((2, 1))(x)
    x = layers.Bidirectional(layers.GRU(8))(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(x))
