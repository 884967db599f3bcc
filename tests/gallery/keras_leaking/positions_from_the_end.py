import keras
from keras import layers, ops


@keras.saving.register_keras_serializable(package="forecasting")
class Recency(layers.Layer):
    """Adds how many steps ago each one was."""

    def __init__(self, scale=0.1, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale
        self.supports_masking = True

    def call(self, x):
        steps = ops.shape(x)[1]
        ago = ops.cast(ops.flip(ops.arange(steps)), x.dtype)
        return x - self.scale * ago[None, :, None]

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}


def make():
    keras.utils.set_random_seed(13)
    return keras.Sequential(
        [keras.Input((None, 4)), layers.Masking(), Recency(), layers.LSTM(12), layers.Dense(3, activation="softmax")]
    )
