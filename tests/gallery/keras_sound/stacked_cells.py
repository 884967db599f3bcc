import keras
from keras import layers


def make():
    keras.utils.set_random_seed(16)
    inputs = keras.Input(shape=(None, 4))
    x = layers.Masking()(inputs)
    x = layers.RNN([layers.LSTMCell(8), layers.GRUCell(10)], return_sequences=True)(x)
    x = layers.RNN(layers.SimpleRNNCell(6))(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
