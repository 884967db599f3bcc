import keras
from keras import layers, ops


@keras.saving.register_keras_serializable(package="attention")
class AttentionPooling(layers.Layer):
    """A weight for each step, none for masked ones."""

    def __init__(self, units=16, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.hidden = layers.Dense(units, activation="tanh")
        self.score = layers.Dense(1)
        self.supports_masking = True

    def build(self, input_shape):
        self.hidden.build(input_shape)
        self.score.build((*input_shape[:-1], self.units))

    def call(self, x, mask=None):
        scores = self.score(self.hidden(x))
        if mask is not None:
            scores = ops.where(mask[..., None], scores, -1e9)
        return ops.sum(ops.softmax(scores, axis=1) * x, axis=1)

    def compute_mask(self, inputs, mask=None):
        return None

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def make():
    keras.utils.set_random_seed(3)
    inputs = keras.Input(shape=(None, 6))
    x = layers.Masking()(inputs)
    x = layers.Bidirectional(layers.LSTM(10, return_sequences=True))(x)
    x = AttentionPooling()(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(x))
