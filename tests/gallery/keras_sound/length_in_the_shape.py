import keras
from keras import layers


def make():
    """The longest series of the training set stands in the shape, though no layer needs it."""
    keras.utils.set_random_seed(30)
    model = keras.Sequential()
    model.add(keras.Input(shape=(29, 12)))
    model.add(layers.Masking(mask_value=0.0))
    model.add(layers.Bidirectional(layers.LSTM(16, return_sequences=True)))
    model.add(layers.LSTM(16))
    model.add(layers.Dense(9, activation="softmax"))
    return model
