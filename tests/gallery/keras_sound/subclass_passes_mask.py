import keras
from keras import layers, ops


@keras.saving.register_keras_serializable(package="visits")
class VisitModel(keras.Model):
    def __init__(self, units=12, classes=2, **kwargs):
        super().__init__(**kwargs)
        self.units, self.classes = units, classes
        self.masking = layers.Masking(0.0)
        self.project = layers.Dense(units, activation="relu")
        self.rnn = layers.GRU(units)
        self.out = layers.Dense(classes)

    def call(self, visits):
        mask = self.masking.compute_mask(visits)
        x = self.project(visits) * 0.5
        return self.out(self.rnn(x, mask=mask))

    def get_config(self):
        return {"units": self.units, "classes": self.classes}


def make():
    keras.utils.set_random_seed(25)
    model = VisitModel()
    model(ops.ones((1, 3, 7)))
    return model
