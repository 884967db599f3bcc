import keras
from keras import layers


def make():
    keras.utils.set_random_seed(17)
    model = keras.Sequential()
    model.add(keras.Input(shape=(None, 4)))
    model.add(layers.Masking())
    model.add(layers.GRU(8, return_sequences=True))
    model.add(layers.UpSampling1D(2))
    model.add(layers.GRU(8, name="fine"))
    model.add(layers.Dense(2, activation="softmax"))
    return model
