import keras
from keras import layers


def make():
    """The mask is taken from the Masking layer and given to whatever comes behind the convolution."""
    keras.utils.set_random_seed(22)
    inputs = keras.Input(shape=(None, 6))
    masking = layers.Masking()
    x = masking(inputs)
    mask = masking.compute_mask(inputs)
    x = layers.SeparableConv1D(12, 3, padding="same", activation="relu")(x)
    x = layers.LSTM(12)(x, mask=mask)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
