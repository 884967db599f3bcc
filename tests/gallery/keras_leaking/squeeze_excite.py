import keras
from keras import layers


def squeeze_excite_block(x, ratio=4):
    filters = x.shape[-1]
    se = layers.GlobalAveragePooling1D()(x)
    se = layers.Reshape((1, filters))(se)
    se = layers.Dense(filters // ratio, activation="relu", use_bias=False)(se)
    se = layers.Dense(filters, activation="sigmoid", use_bias=False)(se)
    return layers.multiply([x, se])


def make():
    """MLSTM-FCN: one branch convolutions with squeeze and excite, the other a masked LSTM."""
    keras.utils.set_random_seed(15)
    inputs = keras.Input(shape=(None, 5))
    x = layers.LSTM(8)(layers.Masking()(inputs))
    y = layers.Conv1D(16, 8, padding="same", kernel_initializer="he_uniform")(inputs)
    y = layers.BatchNormalization()(y)
    y = layers.Activation("relu")(y)
    y = squeeze_excite_block(y)
    y = layers.Conv1D(16, 3, padding="same", kernel_initializer="he_uniform")(y)
    y = layers.GlobalAveragePooling1D(name="gap")(y)
    merged = layers.concatenate([x, y])
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(merged))
