import keras
from keras import layers


def make():
    """Attention over the outputs of an LSTM, as in many notebooks."""
    keras.utils.set_random_seed(8)
    units = 16
    inputs = keras.Input(shape=(None, 5))
    activations = layers.LSTM(units, return_sequences=True)(layers.Masking(0.0)(inputs))
    attention = layers.Dense(1, activation="tanh")(activations)
    attention = layers.Flatten()(attention)
    attention = layers.Activation("softmax", name="attention_weights")(attention)
    attention = layers.RepeatVector(units)(attention)
    attention = layers.Permute([2, 1])(attention)
    weighted = layers.Multiply()([activations, attention])
    summed = keras.ops.sum(weighted, axis=1)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(summed))
