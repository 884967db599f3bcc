"""Keras models without a mask, as their users write them."""

import keras
from keras import layers

from tests.gallery.keras_models import exhibit, network


@network(4, 3, operator="attention", cause="padded steps", features=6)
def attention_layer(inputs):
    x = layers.GRU(12, return_sequences=True)(inputs)
    x = layers.Attention()([x, x])
    return layers.GlobalAveragePooling1D()(x)


@network(6, 3, operator="global_max_pooling1d", cause="no mask", features=4, shortest=6)
def conv_lstm_fcn():
    return [
        layers.Conv1D(12, 5, activation="relu"),
        layers.MaxPooling1D(2),
        layers.LSTM(10, return_sequences=True),
        layers.GlobalMaxPooling1D(),
    ]


@network(2, 2, operator="conv1d", cause="no mask", features=1)
def fcn(inputs):
    """Keras' example of time series classification."""
    x = inputs
    for _ in range(3):
        x = layers.Conv1D(filters=16, kernel_size=3, padding="same")(x)
        x = layers.BatchNormalization()(x)
        x = layers.ReLU()(x)
    return layers.GlobalAveragePooling1D()(x)


@network(1, 3, operator="bidirectional", cause="no mask", features=5)
def plain_bilstm():
    return [layers.Bidirectional(layers.LSTM(8))]


@exhibit(3, operator="global_max_pooling1d", cause="no mask", vocabulary=70, shortest=7)
def text_cnn():
    inputs = keras.Input(shape=(None,), dtype="int64")
    x = layers.Embedding(70, 12)(inputs)
    x = layers.Dropout(0.5)(x)
    x = layers.Conv1D(16, 7, padding="valid", activation="relu", strides=3)(x)
    x = layers.GlobalMaxPooling1D()(x)
    x = layers.Dense(16, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid", name="predictions")(x))


@network(5, 2, operator="multi_head_attention", cause="padded steps", features=4)
def transformer(inputs):
    """Keras' example of time series classification with a transformer."""
    x = inputs
    for _ in range(2):
        attended = layers.MultiHeadAttention(key_dim=8, num_heads=2, dropout=0.25)(x, x)
        attended = layers.LayerNormalization(epsilon=1e-6)(layers.Dropout(0.25)(attended))
        res = attended + x
        y = layers.Conv1D(filters=4, kernel_size=1, activation="relu")(res)
        y = layers.Conv1D(filters=4, kernel_size=1)(layers.Dropout(0.25)(y))
        x = layers.LayerNormalization(epsilon=1e-6)(y) + res
    x = layers.GlobalAveragePooling1D(data_format="channels_last")(x)
    return layers.Dense(16, activation="relu")(x)
