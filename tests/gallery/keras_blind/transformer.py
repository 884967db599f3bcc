import keras
from keras import layers


def make():
    """Keras' example of time series classification with a transformer."""
    keras.utils.set_random_seed(5)
    inputs = keras.Input(shape=(None, 4))
    x = inputs
    for _ in range(2):
        attended = layers.MultiHeadAttention(key_dim=8, num_heads=2, dropout=0.25)(x, x)
        attended = layers.LayerNormalization(epsilon=1e-6)(layers.Dropout(0.25)(attended))
        res = attended + x
        y = layers.Conv1D(filters=4, kernel_size=1, activation="relu")(res)
        y = layers.Conv1D(filters=4, kernel_size=1)(layers.Dropout(0.25)(y))
        x = layers.LayerNormalization(epsilon=1e-6)(y) + res
    x = layers.GlobalAveragePooling1D(data_format="channels_last")(x)
    x = layers.Dense(16, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
