import keras
from keras import layers


def make():
    keras.utils.set_random_seed(20)
    return keras.Sequential(
        [
            keras.Input(shape=(None,), dtype="int32"),
            layers.Embedding(30, 8, mask_zero=True),
            layers.EinsumDense("btf,fh->bth", output_shape=(None, 12), bias_axes="h", activation="relu"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(2, activation="softmax"),
        ]
    )
