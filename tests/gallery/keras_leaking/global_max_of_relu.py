import keras
from keras import layers, ops


def make():
    keras.utils.set_random_seed(26)
    tokens = keras.Input(shape=(None,), dtype="int64", name="tokens")
    x = layers.Embedding(45, 12, mask_zero=True)(tokens)
    x = layers.Dense(16, activation="relu", bias_initializer=keras.initializers.RandomNormal(stddev=0.5, seed=1))(x)
    x = ops.max(x, axis=1)
    return keras.Model(tokens, layers.Dense(2, activation="sigmoid")(x))
