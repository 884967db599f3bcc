import keras
from keras import layers


def make():
    keras.utils.set_random_seed(2)
    model = keras.Sequential()
    model.add(keras.Input(shape=(None, 6)))
    model.add(layers.Masking(mask_value=0.0))
    model.add(layers.Conv1D(filters=16, kernel_size=3, padding="same", activation="relu", name="conv_a"))
    model.add(layers.Conv1D(filters=16, kernel_size=3, padding="same", activation="relu", name="conv_b"))
    model.add(layers.GlobalMaxPooling1D())
    model.add(layers.Dense(4, activation="softmax"))
    for layer in model.layers[1:3]:  # as after some epochs of training
        layer.bias.assign(keras.random.normal(layer.bias.shape, stddev=0.3, seed=2))
    return model
