import keras
from keras import layers


def make():
    keras.utils.set_random_seed(2)
    return keras.Sequential(
        [
            keras.Input(shape=(None,)),
            layers.Embedding(input_dim=60, output_dim=16, mask_zero=True),
            layers.SpatialDropout1D(0.2),
            layers.LSTM(24, dropout=0.2, recurrent_dropout=0.2),
            layers.Dense(2, activation="softmax"),
        ]
    )
