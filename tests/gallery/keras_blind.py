"""Keras models without a mask, as their users write them."""

import keras
from keras import layers

from tests.gallery.keras_models import exhibit, sequential


@exhibit(4, operator="attention", cause="padded steps", features=6)
def attention_layer():
    inputs = keras.Input(shape=(None, 6))
    x = layers.GRU(12, return_sequences=True)(inputs)
    x = layers.Attention()([x, x])
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


@exhibit(6, operator="global_max_pooling1d", cause="no mask", features=4, shortest=6)
def conv_lstm_fcn():
    return sequential(
        4,
        layers.Conv1D(12, 5, activation="relu"),
        layers.MaxPooling1D(2),
        layers.LSTM(10, return_sequences=True),
        layers.GlobalMaxPooling1D(),
        layers.Dense(3, activation="softmax"),
    )


@exhibit(2, operator="conv1d", cause="no mask", features=1)
def fcn():
    """Keras' example of time series classification."""
    inputs = keras.Input(shape=(None, 1))
    x = inputs
    for _ in range(3):
        x = layers.Conv1D(filters=16, kernel_size=3, padding="same")(x)
        x = layers.BatchNormalization()(x)
        x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(2, activation="softmax")(x))


@exhibit(1, operator="bidirectional", cause="no mask", features=5)
def plain_bilstm():
    return sequential(5, layers.Bidirectional(layers.LSTM(8)), layers.Dense(3, activation="softmax"))


@exhibit(3, operator="global_max_pooling1d", cause="no mask", vocabulary=70, shortest=7)
def text_cnn():
    inputs = keras.Input(shape=(None,), dtype="int64")
    x = layers.Embedding(70, 12)(inputs)
    x = layers.Dropout(0.5)(x)
    x = layers.Conv1D(16, 7, padding="valid", activation="relu", strides=3)(x)
    x = layers.GlobalMaxPooling1D()(x)
    x = layers.Dense(16, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid", name="predictions")(x))


@exhibit(5, operator="multi_head_attention", cause="padded steps", features=4)
def transformer():
    """Keras' example of time series classification with a transformer."""
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
