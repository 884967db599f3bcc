import keras
from keras import layers


def make():
    keras.utils.set_random_seed(6)
    return keras.Sequential(
        [
            keras.Input(shape=(None, 3), name="sensor"),
            layers.Masking(mask_value=0.0),
            layers.SimpleRNN(16, return_sequences=True),
            layers.Dropout(0.2),
            layers.SimpleRNN(16, activation="relu", use_bias=False),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
