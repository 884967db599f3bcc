"""ONNX models that can be neither checked nor served as they stand; each says why."""

from onnx import ModelProto

from tests.gallery.onnx_models import Weights, graph, integers, scalar

LSTM_CLASSIFIER = """
[time_first] x = Transpose <perm = [1, 0, 2]> (values)
[lstm] y, y_h = LSTM <hidden_size = 6> (x, W, R, B, lengths)
[last] h = Squeeze (y_h, axis0)
[dense] logits = MatMul (h, V)
"""


@graph(40, "pytorch", reason="width")
def frozen_width(w: Weights) -> ModelProto:
    """Exported without dynamic axes for the time: always 30 steps."""
    w.recurrent(4, 4, 6).named("V 6x2")
    return w.model(f"lstm (float[N,30,4] values, int32[N] lengths) => (float[N,2] logits) {LSTM_CLASSIFIER}")


@graph(41, "pytorch", reason=("rows", "batch"))
def frozen_rows(w: Weights) -> ModelProto:
    """One sequence at a time, as traced."""
    w.recurrent(4, 4, 6).named("V 6x2")
    return w.model(f"lstm (float[1,T,4] values, int32[1] lengths) => (float[1,2] logits) {LSTM_CLASSIFIER}")


@graph(42, "keras", reason="width", values="input_1", second_name="input_lengths")
def frozen_inside(w: Weights) -> ModelProto:
    """Says that its width is free, but a Reshape inside holds the one it was traced with: 12."""
    w.recurrent(4, 4, 6).named("V 6x2")
    w |= {"traced": integers(12, -1, 6)}
    return w.model("""
        keras (float[N,T,4] input_1, int32[N] input_lengths) => (float[N,2] dense)
        [time_first] x = Transpose <perm = [1, 0, 2]> (input_1)
        [lstm] y = LSTM <hidden_size = 6> (x, W, R, B, input_lengths)
        [reshape] r = Reshape (y, traced)
        [rows_first] h = Transpose <perm = [1, 0, 2]> (r)
        [mean_of_valid] s = ReduceSum <keepdims = 0> (h, axis1)
        [dense_matmul] dense = MatMul (s, V)
        """)


@graph(43, "pytorch", reason=("length", "mask"), second=None)
def no_second_input(w: Weights) -> ModelProto:
    """Nothing says where a sequence ends."""
    w.recurrent(4, 4, 6).named("V 6x2")
    return w.model("lstm (float[N,T,4] values) => (float[N,2] logits)" + LSTM_CLASSIFIER.replace(", lengths", ""))


@graph(44, "tf2onnx", reason="left")
def left_padding(w: Weights) -> ModelProto:
    """Expects each sequence at the end of its row, as Keras' `pad_sequences` puts it by default."""
    w.named("kernel 4x6, V 6x2")
    return w.model("""
        left (float[N,T,4] values, int64[N] lengths) => (float[N,2] logits)
        [shape] t1 = Shape <start = 1, end = 2> (values)
        [width] t = Squeeze (t1)
        [positions] r = Range (zero, t, one)
        [padding_count] before = Sub (t, lengths)
        [column] b = Unsqueeze (before, axis1)
        [inside] m = GreaterOrEqual (r, b)
        [inside_3d] m3 = Unsqueeze (m, axis2)
        [project] p = MatMul (values, kernel)
        [act] a = Tanh (p)
        [hide] h = Where (m3, a, nought)
        [total] s = ReduceSum <keepdims = 0> (h, axis1)
        [count] n = Cast <to = 1> (lengths)
        [count_column] c = Unsqueeze (n, axis1)
        [mean] z = Div (s, c)
        [dense] logits = MatMul (z, V)
        """)


@graph(45, "pytorch", reason=("order", "sorted"))
def longest_first(w: Weights) -> ModelProto:
    """Takes the first row's length for the longest, as `pack_padded_sequence` wanted it once."""
    w.recurrent(4, 4, 6).named("V 6x2")
    w |= {"from": integers(0), "one": integers(1)}
    return w.model("""
        sorted (float[N,T,4] values, int64[N] lengths) => (float[N,2] logits)
        [longest] t = Slice (lengths, from, one, axis0)
        [trim] v = Slice (values, from, t, axis1)
        [shorter] l = Min (lengths, t)
        [lens] n = Cast <to = 6> (l)
        [time_first] x = Transpose <perm = [1, 0, 2]> (v)
        [lstm] y, y_h = LSTM <hidden_size = 6> (x, W, R, B, n)
        [last] h = Squeeze (y_h, axis0)
        [dense] logits = MatMul (h, V)
        """)


@graph(46, "pytorch", reason=("twice", "same answer"))
def never_twice_the_same(w: Weights) -> ModelProto:
    """Exported in training mode: noise is still in it."""
    w.recurrent(4, 4, 6).named("V 6x2")
    return w.model("""
        noisy (float[N,T,4] values, int32[N] lengths) => (float[N,2] logits)
        [noise] e = RandomNormalLike <scale = 0.1> (values)
        [augment] v = Add (values, e)
        [time_first] x = Transpose <perm = [1, 0, 2]> (v)
        [lstm] y, y_h = LSTM <hidden_size = 6> (x, W, R, B, lengths)
        [last] h = Squeeze (y_h, axis0)
        [dense] logits = MatMul (h, V)
        """)


@graph(47, "onnxscript", reason=("accelerometer", "gyroscope"), features=3, values="accelerometer")
def two_sensors(w: Weights) -> ModelProto:
    """Two inputs could be the steps, and the graph wants both."""
    w.recurrent(4, 6, 6).named("V 6x2")
    signature = "fusion (float[N,T,3] accelerometer, float[N,T,3] gyroscope, int32[N] lengths) => (float[N,2] logits)"
    return w.model(f"{signature} [join] values = Concat <axis = 2> (accelerometer, gyroscope) {LSTM_CLASSIFIER}")


@graph(66, "pytorch", reason="--second padding-mask", second=None)
def which_way_round(w: Weights) -> ModelProto:
    """A mask whose name says neither that it is true at padding, nor at valid steps."""
    w.named("V 4x2")
    w |= {"nothing": scalar(0.0)}
    return w.model("""
        encoder (float[N,T,4] values, bool[N,T] pad_mask) => (float[N,2] logits)
        [unsqueeze] m = Unsqueeze (pad_mask, axis2)
        [fill] f = Where (m, nothing, values)
        [sum] s = ReduceSum <keepdims = 0> (f, axis1)
        [dense] logits = MatMul (s, V)
        """)


@graph(67, "optimum", reason="position_ids", second=None)
def token_positions(w: Weights) -> ModelProto:
    """Takes the position of each token."""
    w.named("table 20x4, places 30x4, V 4x2")
    return w.model("""
        bert (int64[batch,sequence] input_ids, int64[batch,sequence] attention_mask, int64[batch,sequence]
        position_ids) => (float[batch,2] logits)
        [words] e = Gather (table, input_ids)
        [positions] t = Gather (places, position_ids)
        [both] h = Add (e, t)
        [float_mask] f = Cast <to = 1> (attention_mask)
        [unsqueeze] m = Unsqueeze (f, axis2)
        [masked] z = Mul (h, m)
        [sum] s = ReduceSum <keepdims = 0> (z, axis1)
        [dense] logits = MatMul (s, V)
        """)


@graph(68, "pytorch", reason="shares of the longest", second=None)
def shares_of_the_longest(w: Weights) -> ModelProto:
    """Takes its lengths as shares of the longest, in float32."""
    w.named("V 4x2")
    return w.model("""
        speech (float[N,T,4] values, float[N] wav_lens) => (float[N,2] logits)
        [sum] s = ReduceSum <keepdims = 0> (values, axis1)
        [column] c = Unsqueeze (wav_lens, axis1)
        [mean] p = Div (s, c)
        [dense] logits = MatMul (p, V)
        """)
