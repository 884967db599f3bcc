import keras
from keras import layers, ops


@keras.saving.register_keras_serializable(package="reviews")
class ReviewClassifier(keras.Model):
    def __init__(self, vocabulary=40, units=12, classes=3, **kwargs):
        super().__init__(**kwargs)
        self.vocabulary, self.units, self.classes = vocabulary, units, classes
        self.embedding = layers.Embedding(vocabulary, units, mask_zero=True)
        self.rnn = layers.Bidirectional(layers.GRU(units), name="rnn")
        self.out = layers.Dense(classes, activation="softmax")

    def call(self, tokens):
        x = self.embedding(tokens)
        x = x * ops.sqrt(float(self.units))
        return self.out(self.rnn(x))

    def get_config(self):
        return {"vocabulary": self.vocabulary, "units": self.units, "classes": self.classes}


def make():
    keras.utils.set_random_seed(18)
    model = ReviewClassifier()
    model(ops.zeros((1, 4), dtype="int32"))
    return model
