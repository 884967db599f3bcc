"""Keras models without a mask, as their users write them."""

import keras
from keras import layers


def attention_layer():
    keras.utils.set_random_seed(4)
    inputs = keras.Input(shape=(None, 6))
    x = layers.GRU(12, return_sequences=True)(inputs)
    x = layers.Attention()([x, x])
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


def conv_lstm_fcn():
    keras.utils.set_random_seed(6)
    return keras.Sequential(
        [
            keras.Input(shape=(None, 4)),
            layers.Conv1D(12, 5, activation="relu"),
            layers.MaxPooling1D(2),
            layers.LSTM(10, return_sequences=True),
            layers.GlobalMaxPooling1D(),
            layers.Dense(3, activation="softmax"),
        ]
    )


def fcn():
    """Keras' example of time series classification."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input(shape=(None, 1))
    x = inputs
    for _ in range(3):
        x = layers.Conv1D(filters=16, kernel_size=3, padding="same")(x)
        x = layers.BatchNormalization()(x)
        x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(2, activation="softmax")(x))


def plain_bilstm():
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input(shape=(None, 5)),
            layers.Bidirectional(layers.LSTM(8)),
            layers.Dense(3, activation="softmax"),
        ]
    )


def text_cnn():
    keras.utils.set_random_seed(3)
    inputs = keras.Input(shape=(None,), dtype="int64")
    x = layers.Embedding(70, 12)(inputs)
    x = layers.Dropout(0.5)(x)
    x = layers.Conv1D(16, 7, padding="valid", activation="relu", strides=3)(x)
    x = layers.GlobalMaxPooling1D()(x)
    x = layers.Dense(16, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid", name="predictions")(x))


def transformer():
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
