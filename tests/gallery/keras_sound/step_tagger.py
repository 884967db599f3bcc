import keras
from keras import layers


def make():
    keras.utils.set_random_seed(15)
    model = keras.Sequential()
    model.add(keras.Input(shape=(None,), dtype="int32"))
    model.add(layers.Embedding(50, 12, mask_zero=True))
    model.add(layers.Bidirectional(layers.LSTM(10, return_sequences=True, recurrent_dropout=0.1)))
    model.add(layers.TimeDistributed(layers.Dense(5, activation="softmax")))
    return model
