import keras
from keras import layers


def make():
    keras.utils.set_random_seed(12)
    tokens = keras.Input(shape=(None,), dtype="int32")
    x = layers.Embedding(80, 16, mask_zero=True)(tokens)
    attended = layers.MultiHeadAttention(num_heads=2, key_dim=8, dropout=0.1)(x, x)
    x = layers.LayerNormalization(epsilon=1e-6)(layers.Add()([x, attended]))
    hidden = layers.Dense(32, activation="gelu")(x)
    hidden = layers.Dropout(0.1)(layers.Dense(16)(hidden))
    x = layers.LayerNormalization(epsilon=1e-6)(layers.Add()([x, hidden]))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(tokens, layers.Dense(3, activation="softmax")(x))
