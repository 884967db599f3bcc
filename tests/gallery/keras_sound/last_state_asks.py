import keras
from keras import layers


def make():
    """Luong's attention: the last state asks all steps."""
    keras.utils.set_random_seed(14)
    inputs = keras.Input(shape=(None, 6))
    states, last = layers.GRU(12, return_sequences=True, return_state=True)(layers.Masking()(inputs))
    query = layers.Reshape((1, 12))(last)
    context = layers.AdditiveAttention()([query, states])
    context = layers.Flatten()(context)
    x = layers.Dense(12, activation="tanh")(layers.concatenate([context, last]))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
