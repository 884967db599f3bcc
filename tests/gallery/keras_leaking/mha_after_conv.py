import keras
from keras import layers


def make():
    keras.utils.set_random_seed(10)
    inputs = keras.Input(shape=(None, 6))
    x = layers.Masking()(inputs)
    mask = keras.ops.any(keras.ops.not_equal(inputs, 0.0), axis=-1)
    x = layers.Conv1D(16, 1)(x)
    attended = layers.MultiHeadAttention(num_heads=2, key_dim=8)(x, x)
    x = layers.LayerNormalization()(layers.Add()([x, attended]))
    x = layers.GlobalAveragePooling1D()(x, mask=mask)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
