"""Keras models that leak, as their users write them."""

import keras
from keras import layers, ops

from tests.gallery.keras_models import exhibit, network, sequential


@network(24, 3, operator="global_average_pooling1d", cause="add", features=6)
def added_to_unmasked(inputs):
    """A shortcut around a recurrent layer: Add keeps a mask only where both sides have one."""
    shortcut = layers.Conv1D(12, 1, use_bias=False)(inputs)
    x = layers.Masking()(inputs)
    x = layers.GRU(12, return_sequences=True)(x)
    x = layers.Add()([shortcut, x])
    return layers.GlobalAveragePooling1D()(x)


@exhibit(8, operator="attention_weights", cause=("flatten", "softmax"), features=5)
def attention_by_hand():
    """Attention over the outputs of an LSTM, as in many notebooks."""
    units = 16
    inputs = keras.Input(shape=(None, 5))
    activations = layers.LSTM(units, return_sequences=True)(layers.Masking(0.0)(inputs))
    attention = layers.Dense(1, activation="tanh")(activations)
    attention = layers.Flatten()(attention)
    attention = layers.Activation("softmax", name="attention_weights")(attention)
    attention = layers.RepeatVector(units)(attention)
    attention = layers.Permute([2, 1])(attention)
    weighted = layers.Multiply()([activations, attention])
    summed = keras.ops.sum(weighted, axis=1)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(summed))


@network(9, 2, operator="attention", cause=("query_cnn", "conv1d", "mask"), vocabulary=60)
def attention_layer_unmasked(tokens):
    """A convolution makes query and value of each token, then dot-product attention between them."""
    embedded = layers.Embedding(60, 16, mask_zero=True)(tokens)
    query = layers.Conv1D(16, 1, name="query_cnn")(embedded)
    value = layers.Conv1D(16, 1, name="value_cnn")(embedded)
    attended = layers.Attention()([query, value])
    return layers.GRU(12)(attended, mask=keras.ops.not_equal(tokens, 0))


@exhibit(7, operator="backward_gru", cause=("mask", "gru"), features=3)
def backwards_without_mask():
    inputs = keras.Input((None, 3))
    forward = layers.GRU(8, name="forward_gru")(layers.Masking()(inputs))
    x = layers.Dense(8, activation="tanh", bias_initializer=keras.initializers.RandomNormal(seed=7))(inputs)
    backward = layers.GRU(8, go_backwards=True, name="backward_gru")(x)
    x = layers.Concatenate()([forward, backward])
    x = layers.Dropout(0.3)(x)
    return keras.Model(inputs, layers.Dense(4)(x))


@keras.saving.register_keras_serializable(package="norms")
class BatchScale(layers.Layer):
    """Scales each feature by its deviation in the batch."""

    def call(self, x):
        return (x - ops.mean(x, axis=0)) / (ops.std(x, axis=0) + 1e-3)


@network(13, 3, operator="batch_scale", cause="row", features=4, custom=True)
def batch_statistics(inputs):
    x = layers.LSTM(8)(layers.Masking()(inputs))
    return BatchScale()(x)


@exhibit(5, operator=("masking", "lstm"), cause=("batch_normalization", "batchnorm", "masking"), features=6)
def batchnorm_before_masking():
    model = sequential(
        6,
        layers.BatchNormalization(),
        layers.Masking(mask_value=0.0),
        layers.LSTM(16),
        layers.Dense(2, activation="softmax"),
    )
    norm = model.layers[0]  # as after some epochs of training
    norm.moving_mean.assign([0.3, -0.2, 0.5, 1.0, 0.0, -0.4])
    norm.moving_variance.assign([1.5, 0.7, 1.2, 0.9, 2.0, 1.1])
    return model


@network(3, 3, operator="global_max_pooling1d", cause="pooling", features=5)
def bilstm_max_pool():
    return [layers.Masking(), layers.Bidirectional(layers.LSTM(12, return_sequences=True)), layers.GlobalMaxPooling1D()]


@network(23, 3, operator=("wider", "gru"), cause=("around", "concatenate"), features=4)
def concatenated_with_conv(inputs):
    """What a step is, and what its surroundings are. A mask beside none becomes one that is true everywhere."""
    x = layers.Masking()(inputs)
    around = layers.Conv1D(8, 5, padding="same", activation="relu", bias_initializer="ones", name="around")(x)
    wider = layers.Conv1D(8, 5, padding="same", activation="relu", name="wider")(around)
    x = layers.Concatenate()([x, wider])
    return layers.GRU(12)(x)


@network(1, 3, operator="global_average_pooling1d", cause="conv1d", features=4)
def conv_forgets_mask():
    return [
        layers.Masking(mask_value=0.0),
        layers.Conv1D(16, 3, padding="same", activation="relu"),
        layers.GlobalAveragePooling1D(),
    ]


@exhibit(2, operator="conv_b", cause="conv", features=6)
def conv_stack_max():
    model = sequential(
        keras.Input(shape=(None, 6)),
        layers.Masking(mask_value=0.0),
        layers.Conv1D(filters=16, kernel_size=3, padding="same", activation="relu", name="conv_a"),
        layers.Conv1D(filters=16, kernel_size=3, padding="same", activation="relu", name="conv_b"),
        layers.GlobalMaxPooling1D(),
        layers.Dense(4, activation="softmax"),
    )
    for layer in model.layers[1:3]:  # as after some epochs of training
        layer.bias.assign(keras.random.normal(layer.bias.shape, stddev=0.3, seed=2))
    return model


@network(22, 2, operator=("cropping1d", "simple_rnn"), cause=("cropping1d", "mask"), features=3, shortest=2)
def cropped_behind():
    """The last reading is unreliable: leave it out."""
    return [layers.Masking(), layers.Cropping1D((0, 1)), layers.SimpleRNN(12)]


@network(20, 2, operator="global_average_pooling1d", cause=("einsum_dense", "einsumdense"), vocabulary=30)
def einsum_dense_loses_mask():
    return [
        layers.Embedding(30, 8, mask_zero=True),
        layers.EinsumDense("btf,fh->bth", output_shape=(None, 12), bias_axes="h", activation="relu"),
        layers.GlobalAveragePooling1D(),
    ]


@exhibit(26, operator="max", cause="max", vocabulary=45)
def global_max_of_relu():
    tokens = keras.Input(shape=(None,), dtype="int64", name="tokens")
    x = layers.Embedding(45, 12, mask_zero=True)(tokens)
    x = layers.Dense(16, activation="relu", bias_initializer=keras.initializers.RandomNormal(stddev=0.5, seed=1))(x)
    x = ops.max(x, axis=1)
    return keras.Model(tokens, layers.Dense(2, activation="sigmoid")(x))


@exhibit(16, operator="group_normalization", cause="over the steps", features=8)
def group_norm():
    return sequential(
        8,
        layers.Masking(),
        layers.Dense(16),
        layers.GroupNormalization(groups=4),
        layers.Activation("relu"),
        layers.LSTM(12),
        layers.Dense(3),
    )


@network(14, 4, operator=("get_item", "getitem"), cause=("last", "index", "reverse", "slice", "step"), features=6)
def last_step_of_bilstm(inputs):
    x = layers.Masking(mask_value=0.0)(inputs)
    x = layers.Bidirectional(layers.LSTM(10, return_sequences=True))(x)
    return x[:, -1, :]


@network(10, 3, operator="multi_head_attention", cause=("conv1d", "mask"), features=6)
def mha_after_conv(inputs):
    x = layers.Masking()(inputs)
    mask = keras.ops.any(keras.ops.not_equal(inputs, 0.0), axis=-1)
    x = layers.Conv1D(16, 1)(x)
    attended = layers.MultiHeadAttention(num_heads=2, key_dim=8)(x, x)
    x = layers.LayerNormalization()(layers.Add()([x, attended]))
    return layers.GlobalAveragePooling1D()(x, mask=mask)


@network(12, 4, operator="bidirectional", cause=("permute", "mask"), features=5)
def permute_loses_mask(inputs):
    """Dropout of whole features: turned around for it, and back."""
    x = layers.Masking()(inputs)
    x = layers.Permute((2, 1))(x)
    x = layers.Dropout(0.2, noise_shape=(None, 5, 1))(x)
    x = layers.Permute((2, 1))(x)
    return layers.Bidirectional(layers.GRU(8))(x)


@exhibit(4, operator=("average_pooling1d", "lstm"), cause=("average_pooling1d", "pool"), features=4)
def pooled_between_lstms():
    """Half the steps for the second layer, as it is slow otherwise."""
    inputs = keras.Input(shape=(None, 4), name="series")
    x = layers.Masking(0.0)(inputs)
    x = layers.LSTM(12, return_sequences=True)(x)
    x = layers.AveragePooling1D(2, padding="same")(x)
    x = layers.LSTM(12)(x)
    return keras.Model(inputs, layers.Dense(5, activation="softmax")(x))


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


@network(13, 3, operator="recency", cause=("flip", "width", "end"), features=4, custom=True)
def positions_from_the_end():
    return [layers.Masking(), Recency(), layers.LSTM(12)]


@network(6, 3, operator="fast", cause=("mask", "reverse"), features=7)
def raw_branch_bidirectional(inputs):
    """Two views of the same series; the mask is in one of them."""
    masked = layers.Masking()(inputs)
    slow = layers.LSTM(10)(masked)
    fast = layers.Bidirectional(layers.GRU(6), name="fast")(inputs)
    return layers.concatenate([slow, fast])


@network(11, 3, operator="lstm", cause="reshape", vocabulary=50)
def reshape_loses_mask():
    return [layers.Embedding(50, 12, mask_zero=True), layers.Reshape((-1, 12)), layers.LSTM(16)]


@network(19, 3, operator="second", cause="rms_normalization", features=5)
def rms_norm_between(inputs):
    x = layers.Masking()(inputs)
    x = layers.LSTM(12, return_sequences=True)(x)
    x = layers.RMSNormalization()(x)
    return layers.LSTM(12, go_backwards=True, name="second")(x)


def encoder(x, number, heads=2, size=16, dropout=0.1):
    attention = layers.MultiHeadAttention(num_heads=heads, key_dim=size // heads, dropout=dropout, name=f"mha_{number}")
    x = layers.LayerNormalization(epsilon=1e-6)(layers.Add()([x, attention(x, x)]))
    hidden = layers.Dense(2 * size, activation="gelu")(x)
    hidden = layers.Dropout(dropout)(layers.Dense(size)(hidden))
    return layers.LayerNormalization(epsilon=1e-6)(layers.Add()([x, hidden]))


@network(28, 3, operator="mha_1", cause="mask", vocabulary=80)
def second_encoder_block(tokens):
    """MultiHeadAttention takes the mask off its input, so the Add around it has one mask of two and passes on none."""
    x = layers.Embedding(80, 16, mask_zero=True)(tokens)
    for number in range(2):
        x = encoder(x, number)
    return layers.GlobalAveragePooling1D()(x)


@network(25, 3, operator="weights", cause=("softmax", "score"), features=5)
def softmax_over_steps(inputs):
    h = layers.Bidirectional(layers.LSTM(8, return_sequences=True))(layers.Masking()(inputs))
    scores = layers.Conv1D(1, 1, name="score")(h)
    weights = layers.Softmax(axis=1, name="weights")(scores)
    context = layers.Dot(axes=1)([weights, h])
    return layers.Flatten()(context)


def squeeze_excite_block(x, ratio=4):
    filters = x.shape[-1]
    se = layers.GlobalAveragePooling1D()(x)
    se = layers.Reshape((1, filters))(se)
    se = layers.Dense(filters // ratio, activation="relu", use_bias=False)(se)
    se = layers.Dense(filters, activation="sigmoid", use_bias=False)(se)
    return layers.multiply([x, se])


@network(15, 4, operator=("conv1d", "global_average_pooling1d"), cause=("pooling", "mean", "conv"), features=5)
def squeeze_excite(inputs):
    """MLSTM-FCN: one branch convolutions with squeeze and excite, the other a masked LSTM."""
    x = layers.LSTM(8)(layers.Masking()(inputs))
    y = layers.Conv1D(16, 8, padding="same", kernel_initializer="he_uniform")(inputs)
    y = layers.BatchNormalization()(y)
    y = layers.Activation("relu")(y)
    y = squeeze_excite_block(y)
    y = layers.Conv1D(16, 3, padding="same", kernel_initializer="he_uniform")(y)
    y = layers.GlobalAveragePooling1D(name="gap")(y)
    return layers.concatenate([x, y])


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


@exhibit(18, operator="rnn", cause=("mask", "multiply"), vocabulary=40, custom=True)
def subclass_forgets_mask():
    model = ReviewClassifier()
    model(ops.zeros((1, 4), dtype="int32"))
    return model


@keras.saving.register_keras_serializable(package="keras_io")
class TokenAndPositionEmbedding(layers.Layer):
    def __init__(self, maxlen, vocab_size, embed_dim, **kwargs):
        super().__init__(**kwargs)
        self.maxlen, self.vocab_size, self.embed_dim = maxlen, vocab_size, embed_dim
        self.token_emb = layers.Embedding(input_dim=vocab_size, output_dim=embed_dim, mask_zero=True)
        self.pos_emb = layers.Embedding(input_dim=maxlen, output_dim=embed_dim)

    def build(self, input_shape):
        self.token_emb.build(input_shape)
        self.pos_emb.build(input_shape)

    def call(self, x):
        positions = ops.arange(0, ops.shape(x)[-1], 1)
        return self.token_emb(x) + self.pos_emb(positions)

    def get_config(self):
        sizes = {"maxlen": self.maxlen, "vocab_size": self.vocab_size, "embed_dim": self.embed_dim}
        return {**super().get_config(), **sizes}


@network(27, 2, operator="self_attention", cause=("mask", "add"), vocabulary=70, longest=200, custom=True)
def transformer_without_mask(inputs):
    """Text classification with a transformer; the sum of two embeddings has no mask any more."""
    x = TokenAndPositionEmbedding(200, 70, 16)(inputs)
    attended = layers.MultiHeadAttention(num_heads=2, key_dim=8, name="self_attention")(x, x)
    x = layers.LayerNormalization(epsilon=1e-6)(x + attended)
    feed_forward = keras.Sequential([layers.Dense(16, activation="relu"), layers.Dense(16)])
    x = layers.LayerNormalization(epsilon=1e-6)(x + feed_forward(x))
    x = layers.GlobalAveragePooling1D()(x)
    return layers.Dense(20, activation="relu")(x)


@network(21, 3, operator="unit_normalization", cause="norm", features=4)
def unit_norm_over_time():
    """Each feature scaled to length one over the series."""
    return [
        layers.Masking(),
        layers.Dense(8, activation="relu", bias_initializer="ones"),
        layers.UnitNormalization(axis=1),
        layers.LSTM(8),
    ]


@network(17, 2, operator=("up_sampling1d", "fine"), cause=("up_sampling1d", "upsampling1d", "mask"), features=4)
def upsampled():
    return [layers.Masking(), layers.GRU(8, return_sequences=True), layers.UpSampling1D(2), layers.GRU(8, name="fine")]
