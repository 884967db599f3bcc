import keras
from keras import layers


def make():
    """What a step is, and what its surroundings are. A mask beside none becomes one that is true everywhere."""
    keras.utils.set_random_seed(23)
    inputs = keras.Input(shape=(None, 4))
    x = layers.Masking()(inputs)
    around = layers.Conv1D(8, 5, padding="same", activation="relu", bias_initializer="ones", name="around")(x)
    wider = layers.Conv1D(8, 5, padding="same", activation="relu", name="wider")(around)
    x = layers.Concatenate()([x, wider])
    x = layers.GRU(12)(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
