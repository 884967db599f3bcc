import keras
from keras import layers


def make():
    keras.utils.set_random_seed(3)
    inputs = keras.Input(shape=(None,), dtype="int64")
    x = layers.Embedding(70, 12)(inputs)
    x = layers.Dropout(0.5)(x)
    x = layers.Conv1D(16, 7, padding="valid", activation="relu", strides=3)(x)
    x = layers.GlobalMaxPooling1D()(x)
    x = layers.Dense(16, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid", name="predictions")(x))
