"""Keras models that are sound, as their users write them."""

import keras
from keras import layers, ops

from tests.gallery.keras_models import exhibit, network, sequential


@network(13, 4, features=5)
def attention_layer(inputs):
    x = layers.Masking()(inputs)
    h = layers.LSTM(12, return_sequences=True)(x)
    context = layers.Attention(use_scale=True)([h, h])
    x = layers.Concatenate()([h, context])
    return layers.GlobalAveragePooling1D()(x)


@network(8, 4, features=5)
def backwards_with_mask():
    return [layers.Masking(), layers.LSTM(12, go_backwards=True)]


@network(4, 3, features=5)
def bidirectional_sum():
    return [
        layers.Masking(),
        layers.Bidirectional(layers.GRU(8, return_sequences=True), merge_mode="sum"),
        layers.Bidirectional(layers.GRU(8, return_sequences=True), merge_mode="mul"),
        layers.Bidirectional(layers.LSTM(8), merge_mode="ave"),
    ]


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


@network(3, 4, features=6, custom=True)
def bilstm_attention_masked(inputs):
    x = layers.Masking()(inputs)
    x = layers.Bidirectional(layers.LSTM(10, return_sequences=True))(x)
    return AttentionPooling()(x)


@network(26, 3, features=6)
def causal_attention_last(inputs):
    x = layers.Masking()(inputs)
    x = layers.Dense(16)(x)
    y = layers.MultiHeadAttention(4, 4)(x, x, use_causal_mask=True)
    x = layers.UnitNormalization()(layers.add([x, y]))
    return layers.LSTM(8)(x)


@network(20, 4, features=3, per_step=True)
def causal_tagger(inputs):
    """A small WaveNet: no step reads a later one."""
    x = layers.Masking()(inputs)
    for rate in (1, 2, 4):
        x = layers.Conv1D(12, 2, padding="causal", dilation_rate=rate, activation="relu")(x)
    return x


@network(21, 3, features=6)
def conv_then_given_mask(inputs):
    mask = ops.any(ops.not_equal(inputs, 0.0), axis=-1)
    x = layers.Masking()(inputs)
    x = layers.Conv1D(16, 5, padding="same", activation="relu")(x)
    x = layers.GRU(12, return_sequences=True)(x, mask=mask)
    return layers.GlobalAveragePooling1D()(x, mask=mask)


@exhibit(2, vocabulary=60)
def embedding_mask_zero_lstm():
    return sequential(
        keras.Input(shape=(None,)),
        layers.Embedding(input_dim=60, output_dim=16, mask_zero=True),
        layers.SpatialDropout1D(0.2),
        layers.LSTM(24, dropout=0.2, recurrent_dropout=0.2),
        layers.Dense(2, activation="softmax"),
    )


@exhibit(29, verdict="warning", features=6)
def encoder_of_given_masks():
    """Every layer that needs a mask is handed one."""
    inputs = keras.Input(shape=(None, 6), name="readings")
    mask = ops.any(ops.not_equal(inputs, 0.0), axis=-1)
    x = layers.Dense(16)(inputs)
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        y = layers.MultiHeadAttention(2, 8)(y, y, attention_mask=mask[:, None, :])
        x = x + y
        y = layers.Dense(32, activation="swish")(layers.LayerNormalization()(x))
        x = x + layers.Dense(16)(y)
    x = layers.GlobalAveragePooling1D()(x, mask=mask)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


@exhibit(5, features=4)
def gru_reset_before():
    return sequential(
        4,
        layers.Masking(),
        layers.GRU(12, reset_after=False, return_sequences=True),
        layers.GRU(12, reset_after=False, recurrent_activation="hard_sigmoid"),
        layers.Dense(3),
    )


@network(14, 3, features=6)
def last_state_asks(inputs):
    """Luong's attention: the last state asks all steps."""
    states, last = layers.GRU(12, return_sequences=True, return_state=True)(layers.Masking()(inputs))
    query = layers.Reshape((1, 12))(last)
    context = layers.AdditiveAttention()([query, states])
    context = layers.Flatten()(context)
    return layers.Dense(12, activation="tanh")(layers.concatenate([context, last]))


@exhibit(30, features=12)
def length_in_the_shape():
    """The longest series of the training set stands in the shape, though no layer needs it."""
    return sequential(
        keras.Input(shape=(29, 12)),
        layers.Masking(mask_value=0.0),
        layers.Bidirectional(layers.LSTM(16, return_sequences=True)),
        layers.LSTM(16),
        layers.Dense(9, activation="softmax"),
    )


@network(11, 3, features=4)
def lstm_last_step(inputs):
    """Masked steps repeat the last valid output, so the last step is right."""
    x = layers.Masking()(inputs)
    x = layers.GRU(16, return_sequences=True)(x)
    return x[:, -1]


@network(10, 3, features=5)
def lstm_max_pool():
    """Masked steps repeat the last valid output, so the largest one is right."""
    return [layers.Masking(), layers.LSTM(16, return_sequences=True), layers.GlobalMaxPooling1D()]


@network(7, 3, features=4)
def lstm_of_odd_gates():
    return [
        layers.Masking(),
        layers.LSTM(
            10, activation="softsign", recurrent_activation="hard_sigmoid", use_bias=False, return_sequences=True
        ),
        layers.LSTM(10, activation="relu", unit_forget_bias=False, bias_initializer="glorot_uniform"),
    ]


@exhibit(9, features=6)
def masked_average():
    model = sequential(
        6,
        layers.Masking(),
        layers.Dense(16),
        layers.BatchNormalization(),
        layers.LeakyReLU(negative_slope=0.1),
        layers.Dropout(0.4),
        layers.Dense(16, activation="elu"),
        layers.LayerNormalization(),
        layers.GaussianNoise(0.1),
        layers.GlobalAveragePooling1D(),
        layers.Dense(5, activation="softmax"),
    )
    norm = model.layers[2]  # as after some epochs of training
    norm.moving_mean.assign(keras.random.normal((16,), stddev=0.5, seed=1))
    norm.moving_variance.assign(keras.random.uniform((16,), 0.5, 2.0, seed=1))
    return model


@network(1, 9, features=12)
def masking_lstm_lstm_dense():
    return [layers.Masking(mask_value=0.0), layers.LSTM(128, return_sequences=True), layers.LSTM(128)]


@network(18, 3, features=5)
def mean_and_max(inputs):
    h = layers.LSTM(10, return_sequences=True)(layers.Masking()(inputs))
    pooled = layers.concatenate([layers.GlobalAveragePooling1D()(h), layers.GlobalMaxPooling1D()(h)])
    x = layers.Dense(12)(pooled)
    return layers.PReLU()(x)


@exhibit(24, features=5)
def nested_and_shared():
    """A tower that two readings share: as it is, and scaled."""
    tower = keras.Sequential([layers.Dense(10, activation="tanh"), layers.GRU(8)], name="tower")
    inputs = keras.Input(shape=(None, 5))
    x = layers.Masking()(inputs)
    one = tower(x)
    two = tower(layers.Rescaling(0.5)(x))
    merged = layers.Average()([one, two]), layers.Maximum()([one, two])
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.concatenate(merged)))


@exhibit(28, vocabulary=90)
def pooled_words():
    """fastText: the mean of the words' vectors."""
    return sequential(
        keras.Input(shape=(None,), dtype="int64"),
        layers.Embedding(90, 10, mask_zero=True),
        layers.GlobalAveragePooling1D(),
        layers.Dense(4),
    )


@keras.saving.register_keras_serializable(package="masked_positions")
class PositionalEmbedding(layers.Layer):
    """Token and position; passes on the mask of the tokens."""

    def __init__(self, longest, vocabulary, size, **kwargs):
        super().__init__(**kwargs)
        self.longest, self.vocabulary, self.size = longest, vocabulary, size
        self.tokens = layers.Embedding(vocabulary, size, mask_zero=True)
        self.positions = layers.Embedding(longest, size)

    def build(self, input_shape):
        self.tokens.build(input_shape)
        self.positions.build(input_shape)

    def call(self, x):
        return self.tokens(x) * ops.sqrt(float(self.size)) + self.positions(ops.arange(ops.shape(x)[1]))

    def compute_mask(self, inputs, mask=None):
        return self.tokens.compute_mask(inputs)

    def get_config(self):
        sizes = {"longest": self.longest, "vocabulary": self.vocabulary, "size": self.size}
        return {**super().get_config(), **sizes}


@exhibit(31, vocabulary=70, longest=150, custom=True)
def positions_with_mask():
    inputs = keras.Input(shape=(None,), dtype="int64")
    x = PositionalEmbedding(150, 70, 16)(inputs)
    x = layers.LayerNormalization()(layers.add([x, layers.MultiHeadAttention(2, 8)(x, x)]))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


@network(23, 3, features=4)
def repeat_and_decode():
    return [
        layers.Masking(),
        layers.LSTM(12),
        layers.RepeatVector(6),
        layers.LSTM(12, return_sequences=True),
        layers.Flatten(),
    ]


@network(17, 4, features=8)
def residual_lstms(inputs):
    x = layers.Masking()(inputs)
    for _ in range(3):
        y = layers.LSTM(8, return_sequences=True)(x)
        x = layers.LayerNormalization()(layers.Add()([x, y]))
    return layers.GRU(8)(x)


@network(19, 3, features=4, mask_value=-99.0)
def sentinel_mask():
    return [layers.Masking(mask_value=-99.0), layers.LSTM(16)]


@network(22, 3, features=6)
def separable_conv_given_mask(inputs):
    """The mask is taken from the Masking layer and given to whatever comes behind the convolution."""
    masking = layers.Masking()
    x = masking(inputs)
    mask = masking.compute_mask(inputs)
    x = layers.SeparableConv1D(12, 3, padding="same", activation="relu")(x)
    return layers.LSTM(12)(x, mask=mask)


@exhibit(6, features=3)
def simple_rnn_stack():
    return sequential(
        keras.Input(shape=(None, 3), name="sensor"),
        layers.Masking(mask_value=0.0),
        layers.SimpleRNN(16, return_sequences=True),
        layers.Dropout(0.2),
        layers.SimpleRNN(16, activation="relu", use_bias=False),
        layers.Dense(1, activation="sigmoid"),
    )


@network(16, 3, features=4)
def stacked_cells(inputs):
    x = layers.Masking()(inputs)
    x = layers.RNN([layers.LSTMCell(8), layers.GRUCell(10)], return_sequences=True)(x)
    return layers.RNN(layers.SimpleRNNCell(6))(x)


@exhibit(15, vocabulary=50, per_step=True)
def step_tagger():
    return sequential(
        keras.Input(shape=(None,), dtype="int32"),
        layers.Embedding(50, 12, mask_zero=True),
        layers.Bidirectional(layers.LSTM(10, return_sequences=True, recurrent_dropout=0.1)),
        layers.TimeDistributed(layers.Dense(5, activation="softmax")),
    )


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


@exhibit(25, features=7, custom=True)
def subclass_passes_mask():
    model = VisitModel()
    model(ops.ones((1, 3, 7)))
    return model


@network(27, 3, features=16)
def time_distributed_conv():
    """A small spectrum at each step, read by a convolution along the frequencies."""
    return [
        layers.Masking(),
        layers.TimeDistributed(layers.Reshape((16, 1))),
        layers.TimeDistributed(layers.Conv1D(4, 3, strides=2, activation="relu")),
        layers.TimeDistributed(layers.MaxPooling1D(2)),
        layers.TimeDistributed(layers.Flatten()),
        layers.LSTM(12),
    ]


@network(12, 3, vocabulary=80)
def transformer_encoder(tokens):
    x = layers.Embedding(80, 16, mask_zero=True)(tokens)
    attended = layers.MultiHeadAttention(num_heads=2, key_dim=8, dropout=0.1)(x, x)
    x = layers.LayerNormalization(epsilon=1e-6)(layers.Add()([x, attended]))
    hidden = layers.Dense(32, activation="gelu")(x)
    hidden = layers.Dropout(0.1)(layers.Dense(16)(hidden))
    x = layers.LayerNormalization(epsilon=1e-6)(layers.Add()([x, hidden]))
    return layers.GlobalAveragePooling1D()(x)
