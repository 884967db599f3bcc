import keras
from keras import layers


def make():
    keras.utils.set_random_seed(7)
    inputs = keras.Input((None, 3))
    forward = layers.GRU(8, name="forward_gru")(layers.Masking()(inputs))
    x = layers.Dense(8, activation="tanh", bias_initializer=keras.initializers.RandomNormal(seed=7))(inputs)
    backward = layers.GRU(8, go_backwards=True, name="backward_gru")(x)
    x = layers.Concatenate()([forward, backward])
    x = layers.Dropout(0.3)(x)
    return keras.Model(inputs, layers.Dense(4)(x))
