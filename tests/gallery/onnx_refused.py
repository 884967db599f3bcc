"""ONNX models that can be neither checked nor served as they stand; each says why."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from tests.gallery.onnx_models import Array, Weights, integers, model, scalar

LSTM_CLASSIFIER = """
[time_first] x = Transpose <perm = [1, 0, 2]> (values)
[lstm] y, y_h = LSTM <hidden_size = 6> (x, W, R, B, lengths)
[last] h = Squeeze (y_h, axis0)
[dense] logits = MatMul (h, V)
"""


def _lstm_weights(seed: int) -> dict[str, Array]:
    w = Weights(seed)
    return w.recurrent(4, 4, 6) | {"axis0": integers(0), "V": w.normal(6, 2)}


def frozen_width() -> ModelProto:
    """Exported without dynamic axes for the time: always 30 steps."""
    return model(
        "lstm (float[N,30,4] values, int32[N] lengths) => (float[N,2] logits)",
        LSTM_CLASSIFIER,
        _lstm_weights(40),
        producer="pytorch",
    )


def frozen_rows() -> ModelProto:
    """One sequence at a time, as traced."""
    return model(
        "lstm (float[1,T,4] values, int32[1] lengths) => (float[1,2] logits)",
        LSTM_CLASSIFIER,
        _lstm_weights(41),
        producer="pytorch",
    )


def frozen_inside() -> ModelProto:
    """Says that its width is free, but a Reshape inside holds the one it was traced with: 12."""
    w = Weights(42)
    return model(
        "keras (float[N,T,4] input_1, int32[N] input_lengths) => (float[N,2] dense)",
        """
        [time_first] x = Transpose <perm = [1, 0, 2]> (input_1)
        [lstm] y = LSTM <hidden_size = 6> (x, W, R, B, input_lengths)
        [reshape] r = Reshape (y, traced)
        [rows_first] h = Transpose <perm = [1, 0, 2]> (r)
        [mean_of_valid] s = ReduceSum <keepdims = 0> (h, axis1)
        [dense_matmul] dense = MatMul (s, V)
        """,
        w.recurrent(4, 4, 6) | {"traced": integers(12, -1, 6), "axis1": integers(1), "V": w.normal(6, 2)},
        producer="keras",
    )


def no_second_input() -> ModelProto:
    """Nothing says where a sequence ends."""
    w = Weights(43)
    return model(
        "lstm (float[N,T,4] values) => (float[N,2] logits)",
        LSTM_CLASSIFIER.replace(", lengths", ""),
        w.recurrent(4, 4, 6) | {"axis0": integers(0), "V": w.normal(6, 2)},
        producer="pytorch",
    )


def left_padding() -> ModelProto:
    """Expects each sequence at the end of its row, as Keras' `pad_sequences` puts it by default."""
    w = Weights(44)
    return model(
        "left (float[N,T,4] values, int64[N] lengths) => (float[N,2] logits)",
        """
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
        """,
        {
            "zero": scalar(0, np.int64),
            "one": scalar(1, np.int64),
            "axis1": integers(1),
            "axis2": integers(2),
            "nought": scalar(0),
            "kernel": w.normal(4, 6),
            "V": w.normal(6, 2),
        },
        producer="tf2onnx",
    )


def longest_first() -> ModelProto:
    """Takes the first row's length for the longest, as `pack_padded_sequence` wanted it once."""
    return model(
        "sorted (float[N,T,4] values, int64[N] lengths) => (float[N,2] logits)",
        """
        [longest] t = Slice (lengths, from, one, axis0)
        [trim] v = Slice (values, from, t, axis1)
        [shorter] l = Min (lengths, t)
        [lens] n = Cast <to = 6> (l)
        [time_first] x = Transpose <perm = [1, 0, 2]> (v)
        [lstm] y, y_h = LSTM <hidden_size = 6> (x, W, R, B, n)
        [last] h = Squeeze (y_h, axis0)
        [dense] logits = MatMul (h, V)
        """,
        _lstm_weights(45) | {"from": integers(0), "one": integers(1), "axis1": integers(1)},
        producer="pytorch",
    )


def never_twice_the_same() -> ModelProto:
    """Exported in training mode: noise is still in it."""
    return model(
        "noisy (float[N,T,4] values, int32[N] lengths) => (float[N,2] logits)",
        """
        [noise] e = RandomNormalLike <scale = 0.1> (values)
        [augment] v = Add (values, e)
        [time_first] x = Transpose <perm = [1, 0, 2]> (v)
        [lstm] y, y_h = LSTM <hidden_size = 6> (x, W, R, B, lengths)
        [last] h = Squeeze (y_h, axis0)
        [dense] logits = MatMul (h, V)
        """,
        _lstm_weights(46),
        producer="pytorch",
    )


def two_sensors() -> ModelProto:
    """Two inputs could be the steps, and the graph wants both."""
    w = Weights(47)
    return model(
        "fusion (float[N,T,3] accelerometer, float[N,T,3] gyroscope, int32[N] lengths) => (float[N,2] logits)",
        """
        [join] values = Concat <axis = 2> (accelerometer, gyroscope)
        """
        + LSTM_CLASSIFIER,
        w.recurrent(4, 6, 6) | {"axis0": integers(0), "V": w.normal(6, 2)},
        producer="onnxscript",
    )


def which_way_round() -> ModelProto:
    """A mask whose name says neither that it is true at padding, nor at valid steps."""
    w = Weights(66)
    return model(
        "encoder (float[N,T,4] values, bool[N,T] pad_mask) => (float[N,2] logits)",
        """
        [unsqueeze] m = Unsqueeze (pad_mask, axis2)
        [fill] f = Where (m, nothing, values)
        [sum] s = ReduceSum <keepdims = 0> (f, axis1)
        [dense] logits = MatMul (s, V)
        """,
        {"axis1": integers(1), "axis2": integers(2), "nothing": scalar(0.0), "V": w.normal(4, 2)},
        producer="pytorch",
    )


def token_types() -> ModelProto:
    """Takes which of two texts each token is of."""
    w = Weights(67)
    return model(
        "bert (int64[batch,sequence] input_ids, int64[batch,sequence] attention_mask, "
        "int64[batch,sequence] token_type_ids) => (float[batch,2] logits)",
        """
        [words] e = Gather (table, input_ids)
        [types] t = Gather (kinds, token_type_ids)
        [both] h = Add (e, t)
        [float_mask] f = Cast <to = 1> (attention_mask)
        [unsqueeze] m = Unsqueeze (f, axis2)
        [masked] z = Mul (h, m)
        [sum] s = ReduceSum <keepdims = 0> (z, axis1)
        [dense] logits = MatMul (s, V)
        """,
        {
            "table": w.normal(20, 4),
            "kinds": w.normal(2, 4),
            "axis1": integers(1),
            "axis2": integers(2),
            "V": w.normal(4, 2),
        },
        producer="optimum",
    )


def shares_of_the_longest() -> ModelProto:
    """Takes its lengths as shares of the longest, in float32."""
    w = Weights(68)
    return model(
        "speech (float[N,T,4] values, float[N] wav_lens) => (float[N,2] logits)",
        """
        [sum] s = ReduceSum <keepdims = 0> (values, axis1)
        [column] c = Unsqueeze (wav_lens, axis1)
        [mean] p = Div (s, c)
        [dense] logits = MatMul (p, V)
        """,
        {"axis1": integers(1), "V": w.normal(4, 2)},
        producer="pytorch",
    )
