import keras
from keras import layers, ops


@keras.saving.register_keras_serializable(package="norms")
class BatchScale(layers.Layer):
    """Scales each feature by its deviation in the batch."""

    def call(self, x):
        return (x - ops.mean(x, axis=0)) / (ops.std(x, axis=0) + 1e-3)


def make():
    keras.utils.set_random_seed(13)
    inputs = keras.Input(shape=(None, 4))
    x = layers.LSTM(8)(layers.Masking()(inputs))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(BatchScale()(x)))
