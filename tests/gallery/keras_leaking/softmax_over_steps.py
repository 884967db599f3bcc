import keras
from keras import layers


def make():
    keras.utils.set_random_seed(25)
    inputs = keras.Input(shape=(None, 5))
    h = layers.Bidirectional(layers.LSTM(8, return_sequences=True))(layers.Masking()(inputs))
    scores = layers.Conv1D(1, 1, name="score")(h)
    weights = layers.Softmax(axis=1, name="weights")(scores)
    context = layers.Dot(axes=1)([weights, h])
    context = layers.Flatten()(context)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(context))
