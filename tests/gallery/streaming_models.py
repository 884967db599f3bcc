"""Models that stream, and models that cannot: small ONNX graphs that take lengths or a mask, as exporters write them.

`STREAMING` has the function of each model that streams, `REFUSED` of each that does not, with the operator and a part
of the reason. A function gets seeded weights, and returns the graph; what its manifest says beside is in `SAID`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import ModelProto

from lengthwise.runtime.manifest import GraphNames, Manifest, StepInput, Streaming
from tests.gallery.onnx_models import Weights, integers, scalar

_VALUES = "main (float[N,T,4] values, int64[N] lengths) => (float[N,3] logits)"
_PER_STEP = "main (float[N,T,4] values, int64[N] lengths) => (float[N,T,3] logits)"
_MASK = """
    s = Shape <start = 1, end = 2> (values)
    w = Squeeze (s)
    r = Range (zero, w, one)
    n = Unsqueeze (lengths, axis1)
    m2 = Less (r, n)
    m = Unsqueeze (m2, axis2)
"""
_LSTM = """
    l = Cast <to = 6> (lengths)
    x = Transpose <perm = [1, 0, 2]> (values)
    y, h = LSTM <hidden_size = 8> (x, W, R, B, l)
    y2 = Squeeze (y, axis1)
    y3 = Transpose <perm = [1, 0, 2]> (y2)
"""
_POOLED_BY_SCORES = """
    sc = MatMul (y3, q)
    sq = Squeeze (sc, axis2)
    ms = Where (m2, sq, low)
    att = Softmax <axis = 1> (ms)
    e = Unsqueeze (att, axis1)
    p = MatMul (e, y3)
    a = Squeeze (p, axis1)
"""
_GRU = """
    l = Cast <to = 6> (lengths)
    x = Transpose <perm = [1, 0, 2]> (values)
    y, h = GRU <hidden_size = 8, linear_before_reset = 1> (x, W, R, B, l)
    y2 = Squeeze (y, axis1)
    y3 = Transpose <perm = [1, 0, 2]> (y2)
"""
_SUM = """
    kept = Where (m, f, nought)
    pooled = ReduceSum <keepdims = 0> (kept, axis1)
    logits = MatMul (pooled, V)
"""

Maker = Callable[[Weights], ModelProto]
STREAMING: dict[str, Maker] = {}
REFUSED: dict[str, tuple[Maker, str, str]] = {}
INT8: list[str] = []  # those that stream at int8, too
SAID: dict[str, dict[str, Any]] = {}


def _streams(**said: Any) -> Callable[[Maker], Maker]:
    def register(make: Maker) -> Maker:
        STREAMING[make.__name__] = make
        if said.pop("int8", False):
            INT8.append(make.__name__)
        SAID[make.__name__] = said
        return make

    return register


def _refused(operator: str, reason: str) -> Callable[[Maker], Maker]:
    def register(make: Maker) -> Maker:
        REFUSED[make.__name__] = (make, operator, reason)
        return make

    return register


def graph(name: str) -> ModelProto:
    """The whole graph of a model."""
    make = STREAMING[name] if name in STREAMING else REFUSED[name][0]
    return make(Weights(7, "test", 18))


def manifest(name: str, streaming: Streaming | None = None) -> Manifest:
    """Its manifest, with what a streaming graph needs."""
    said = dict(SAID.get(name, {}))
    names = {"lengths_type": "int64"} | said.pop("names", {})
    step = said.pop("input", StepInput(kind="values", features=4))
    return Manifest(
        name="streams",
        version=1,
        input=step,
        labels=("a", "b", "c"),
        graph=GraphNames(**names),
        max_length=200,
        streaming=streaming,
        **said,
    )


@_streams(int8=True)
def gru_last(w: Weights) -> ModelProto:
    w.recurrent(3, 4, 8).named("V 8x3")
    return w.model(
        _VALUES
        + _GRU
        + """
        h2 = Squeeze (h, axis0)
        logits = MatMul (h2, V)
    """
    )


@_streams()
def rnn_last(w: Weights) -> ModelProto:
    w.recurrent(1, 4, 8).named("V 8x3")
    return w.model(
        _VALUES
        + """
        l = Cast <to = 6> (lengths)
        x = Transpose <perm = [1, 0, 2]> (values)
        y, h = RNN <hidden_size = 8> (x, W, R, B, l)
        h2 = Squeeze (h, axis0)
        logits = MatMul (h2, V)
    """
    )


@_streams(int8=True)
def lstm_picks_its_last_step(w: Weights) -> ModelProto:
    w.recurrent(4, 4, 8).named("V 8x3")
    w |= {"row": integers(-1, 1, 1), "step": integers(1, 1, 8)}
    return w.model(
        _VALUES
        + _LSTM
        + """
        i0 = Sub (lengths, one)
        i1 = Reshape (i0, row)
        i2 = Expand (i1, step)
        g = GatherElements <axis = 1> (y3, i2)
        h2 = Squeeze (g, axis1)
        logits = MatMul (h2, V)
    """
    )


@_streams(int8=True)
def two_layers(w: Weights) -> ModelProto:
    w.recurrent(3, 4, 8).named("V 8x3, W2 1x32x8, R2 1x32x8, B2 1x64")
    return w.model(
        _VALUES
        + _GRU
        + """
        y4, h4 = LSTM <hidden_size = 8> (y2, W2, R2, B2, l)
        h2 = Squeeze (h4, axis0)
        logits = MatMul (h2, V)
    """
    )


@_streams()
def mean_by_lengths(w: Weights) -> ModelProto:
    w.named("V 4x3, U 4x4")
    return w.model(
        _VALUES
        + _MASK
        + """
        u0 = MatMul (values, U)
        u = Tanh (u0)
        x = Where (m, u, nought)
        t = ReduceSum <keepdims = 0> (x, axis1)
        c = Cast <to = 1> (n)
        a = Div (t, c)
        logits = MatMul (a, V)
    """
    )


@_streams(int8=True)
def mean_by_shares(w: Weights) -> ModelProto:
    w.recurrent(4, 4, 8).named("V 8x3")
    return w.model(
        _VALUES
        + _LSTM
        + _MASK
        + """
        o = Cast <to = 1> (m2)
        c = ReduceSum <keepdims = 1> (o, axis1)
        d = Div (o, c)
        e = Unsqueeze (d, axis1)
        p = MatMul (e, y3)
        a = Squeeze (p, axis1)
        logits = MatMul (a, V)
    """
    )


@_streams()
def mean_by_a_factor(w: Weights) -> ModelProto:
    w.named("V 4x3")
    return w.model(
        _VALUES
        + _MASK
        + """
        c = Cast <to = 1> (n)
        k = Reciprocal (c)
        k3 = Unsqueeze (k, axis2)
        f = Mul (values, k3)
    """
        + _SUM
    )


@_streams(int8=True)
def largest(w: Weights) -> ModelProto:
    w.recurrent(4, 4, 8).named("V 8x3")
    w |= {"low": scalar(-np.inf)}
    return w.model(
        _VALUES
        + _LSTM
        + _MASK
        + """
        f = Where (m, y3, low)
        a = ReduceMax <keepdims = 0> (f, axis1)
        logits = MatMul (a, V)
    """
    )


@_streams()
def smallest(w: Weights) -> ModelProto:
    w.named("V 4x3")
    w |= {"high": scalar(np.inf)}
    return w.model(
        _VALUES
        + _MASK
        + """
        f = Where (m, values, high)
        a = ReduceMin <keepdims = 0> (f, axis1)
        logits = MatMul (a, V)
    """
    )


@_streams()
def norms(w: Weights) -> ModelProto:
    w.named("V 4x3")
    return w.model(
        _VALUES
        + _MASK
        + """
        f = Where (m, values, nought)
        a = ReduceL2 <keepdims = 0> (f, axis1)
        b = ReduceL1 <keepdims = 0> (f, axis1)
        c = ReduceSumSquare <keepdims = 0> (f, axis1)
        d = Add (a, b)
        e = Add (d, c)
        logits = MatMul (e, V)
    """
    )


@_streams(int8=True)
def attention_pooling(w: Weights) -> ModelProto:
    w.recurrent(4, 4, 8).named("V 8x3, q 8x1")
    w |= {"low": scalar(np.finfo(np.float32).min)}
    return w.model(
        _VALUES
        + _LSTM
        + _MASK
        + _POOLED_BY_SCORES
        + """
        logits = MatMul (a, V)
    """
    )


@_streams(names={"attention": "att"})
def attention_as_an_output(w: Weights) -> ModelProto:
    w.recurrent(4, 4, 8).named("V 8x3, q 8x1")
    w |= {"low": scalar(np.finfo(np.float32).min)}
    return w.model(
        _VALUES.replace("logits)", "logits, float[N,T] att)")
        + _LSTM
        + _MASK
        + _POOLED_BY_SCORES
        + """
        logits = MatMul (a, V)
    """
    )


@_streams()
def attention_by_a_product(w: Weights) -> ModelProto:
    w.named("V 4x3, q 4x1")
    w |= {"low": scalar(-np.inf)}
    return w.model(
        _VALUES
        + _MASK
        + """
        sc = MatMul (values, q)
        ms = Where (m, sc, low)
        att = Softmax <axis = 1> (ms)
        e = Mul (att, values)
        a = ReduceSum <keepdims = 0> (e, axis1)
        logits = MatMul (a, V)
    """
    )


@_streams()
def attention_summed_by_a_product_with_ones(w: Weights) -> ModelProto:
    w.named("V 6x3, q 6x1, K 6x4x3")
    w |= {"before": integers(0, 0, 2, 0, 0, 0), "low": scalar(-np.inf), "two": integers(2), "unit": scalar(1.0)}
    return w.model(
        _VALUES
        + _MASK
        + """
        c = Transpose <perm = [0, 2, 1]> (values)
        c0 = Pad (c, before)
        c1 = Conv (c0, K)
        c2 = Relu (c1)
        y = Transpose <perm = [0, 2, 1]> (c2)
        sc = MatMul (y, q)
        ms = Where (m, sc, low)
        att = Softmax <axis = 1> (ms)
        e = Mul (att, y)
        size = Shape <start = 1, end = 2> (e)
        shape = Concat <axis = 0> (two, size)
        ones = Expand (unit, shape)
        p = MatMul (ones, e)
        a = Gather <axis = 1> (p, zero)
        logits = MatMul (a, V)
    """
    )


@_streams()
def causal_convolutions(w: Weights) -> ModelProto:
    w.named("K1 6x4x3, b1 6, K2 6x6x3, b2 6, V 6x3")
    w |= {"before": integers(0, 0, 2, 0, 0, 0), "cut": integers(-4), "none": integers(0)}
    return w.model(
        _VALUES
        + """
        c = Transpose <perm = [0, 2, 1]> (values)
        c0 = Pad (c, before)
        c1 = Conv (c0, K1, b1)
        c2 = Relu (c1)
        c3 = Conv <dilations = [2], pads = [4, 4]> (c2, K2, b2)
        c4 = Slice (c3, none, cut, axis2)
        c5 = Relu (c4)
        c6 = Add (c5, c2)
        f = Transpose <perm = [0, 2, 1]> (c6)
    """
        + _MASK
        + _SUM
    )


@_streams(task="per-step")
def each_step(w: Weights) -> ModelProto:
    w.recurrent(3, 4, 8).named("V 8x3")
    return w.model(
        _PER_STEP
        + _GRU
        + """
        logits = MatMul (y3, V)
    """
    )


@_streams(task="per-step")
def each_step_of_causal_taps(w: Weights) -> ModelProto:
    w.named("V 12x3")
    w |= {
        "before": integers(0, 2, 0, 0, 0, 0),
        "none": integers(0),
        "first": integers(1),
        "cut2": integers(-2),
        "cut1": integers(-1),
    }
    return w.model(
        _PER_STEP
        + """
        c0 = Pad (values, before)
        t0 = Slice (c0, none, cut2, axis1)
        t1 = Slice (c0, first, cut1, axis1)
        t = Concat <axis = 2> (t0, t1, values)
        logits = MatMul (t, V)
    """
    )


@_streams(names={"lengths": None, "mask": "mask"})
def a_mask_alone(w: Weights) -> ModelProto:
    w.named("V 4x3")
    return w.model(
        _VALUES.replace("int64[N] lengths", "bool[N,T] mask")
        + """
        m = Unsqueeze (mask, axis2)
        x = Where (m, values, nought)
        t = ReduceSum <keepdims = 0> (x, axis1)
        f = Cast <to = 1> (m)
        n = ReduceSum <keepdims = 0> (f, axis1)
        a = Div (t, n)
        logits = MatMul (a, V)
    """
    )


@_streams(names={"lengths": None, "mask": "mask", "mask_marks": "padding"})
def padding_in_a_mask(w: Weights) -> ModelProto:
    w.named("V 4x3")
    w |= {"low": scalar(-9.0)}
    return w.model(
        _VALUES.replace("int64[N] lengths", "bool[N,T] mask")
        + """
        k = Not (mask)
        m = Unsqueeze (k, axis2)
        x = Where (m, values, low)
        a = ReduceMax <keepdims = 0> (x, axis1)
        logits = MatMul (a, V)
    """
    )


@_streams(names={"time_first": True, "lengths_type": "int32"})
def steps_first(w: Weights) -> ModelProto:
    w.recurrent(3, 4, 8).named("V 8x3")
    return w.model(
        _VALUES.replace("N,T,4", "T,N,4").replace("int64", "int32")
        + """
        y, h = GRU <hidden_size = 8, linear_before_reset = 1> (values, W, R, B, lengths)
        h2 = Squeeze (h, axis0)
        logits = MatMul (h2, V)
    """
    )


@_streams(input=StepInput(kind="tokens", vocabulary=40))
def token_mean(w: Weights) -> ModelProto:
    w.named("table 40x6, V 6x3")
    return w.model(
        _VALUES.replace("float[N,T,4]", "int64[N,T]")
        + """
        e = Gather (table, values)
    """
        + _MASK
        + """
        f = Tanh (e)
    """
        + _SUM
    )


@_streams()
def differences_of_steps(w: Weights) -> ModelProto:
    w.named("V 4x3")
    w |= {"before": integers(0, 1, 0, 0, 0, 0), "cut": integers(-1), "none": integers(0)}
    return w.model(
        _VALUES
        + """
        p = Pad (values, before)
        b = Slice (p, none, cut, axis1)
        d = Sub (values, b)
        f = Abs (d)
    """
        + _MASK
        + _SUM
    )


@_streams()
def cumulative_sums(w: Weights) -> ModelProto:
    w.named("V 4x3")
    return w.model(
        _VALUES
        + """
        c = CumSum (values, one)
        f = Tanh (c)
    """
        + _MASK
        + _SUM
    )


@_streams()
def positions_without_an_end(w: Weights) -> ModelProto:
    w.named("V 4x3")
    w |= {"slow": scalar(0.1)}
    return w.model(
        _VALUES
        + _MASK
        + """
        rf = Cast <to = 1> (r)
        rk = Mul (rf, slow)
        rs = Sin (rk)
        ru = Unsqueeze (rs, axis1)
        f = Add (values, ru)
    """
        + _SUM
    )


@_streams()
def first_and_last_step(w: Weights) -> ModelProto:
    w.named("V 4x3")
    return w.model(
        _VALUES
        + """
        a = Gather <axis = 1> (values, zero)
        i = Sub (lengths, one)
        s = Shape <start = 0, end = 1> (values)
        s0 = Squeeze (s)
        r = Range (zero, s0, one)
        r1 = Unsqueeze (r, axis1)
        i1 = Unsqueeze (i, axis1)
        ix = Concat <axis = 1> (r1, i1)
        g = GatherND (values, ix)
        d = Sub (g, a)
        logits = MatMul (d, V)
    """
    )


@_streams(missing="handled")
def missing_values(w: Weights) -> ModelProto:
    w.named("V 8x3")
    return w.model(
        _VALUES
        + _MASK
        + """
        missing = IsNaN (values)
        v = Where (missing, nought, values)
        k = Cast <to = 1> (missing)
        f0 = Concat <axis = 2> (v, k)
        f = Tanh (f0)
    """
        + _SUM
    )


@_streams()
def a_tap_far_back(w: Weights) -> ModelProto:
    w.named("V 6x3, K 6x4x2")
    w |= {"before": integers(0, 0, 64, 0, 0, 0)}
    return w.model(
        _VALUES
        + _MASK
        + """
        c = Transpose <perm = [0, 2, 1]> (values)
        p = Pad (c, before)
        d = Conv <dilations = [64]> (p, K)
        e = Transpose <perm = [0, 2, 1]> (d)
        f = Tanh (e)
        """
        + _SUM
    )


@_streams()
def a_tap_far_ahead(w: Weights) -> ModelProto:
    w.named("V 6x3, K 6x4x3")
    return w.model(
        _VALUES
        + _MASK
        + """
        c = Transpose <perm = [0, 2, 1]> (values)
        m1 = Unsqueeze (m2, axis1)
        b = Where (m1, c, nought)
        d = Conv <dilations = [48], pads = [48, 48]> (b, K)
        e = Transpose <perm = [0, 2, 1]> (d)
        f = Tanh (e)
        """
        + _SUM
    )


_CONVOLVED = """
    c0 = Transpose <perm = [0, 2, 1]> (values)
    m1 = Unsqueeze (m2, axis1)
    c1 = Where (m1, c0, nought)
    c2 = Conv <pads = [1, 1]> (c1, K1, b1)
    c3 = Relu (c2)
    c4 = Where (m1, c3, nought)
    c5 = Conv <pads = [2, 2]> (c4, K2, b2)
    c6 = Tanh (c5)
    c7 = Where (m1, c6, nought)
    x = Transpose <perm = [2, 0, 1]> (c7)
    l = Cast <to = 6> (lengths)
    y, h = LSTM <hidden_size = 8> (x, W, R, B, l)
    y2 = Squeeze (y, axis1)
    y3 = Transpose <perm = [1, 0, 2]> (y2)
"""
_KERNELS = "K1 6x4x3, b1 6, K2 6x6x5, b2 6, V 8x3"


@_streams()
def convolution_that_looks_ahead(w: Weights) -> ModelProto:
    w.named("V 6x3, K 6x4x3")
    return w.model(
        _VALUES
        + _MASK
        + """
        c = Transpose <perm = [0, 2, 1]> (values)
        d = Conv <pads = [1, 1]> (c, K)
        e = Transpose <perm = [0, 2, 1]> (d)
        f = Tanh (e)
        """
        + _SUM
    )


@_streams(names={"lengths": None, "mask": "mask"})
def convolution_that_looks_ahead_of_a_mask(w: Weights) -> ModelProto:
    w.named("V 6x3, K 6x4x5")
    w |= {"low": scalar(-np.inf)}
    return w.model(
        _VALUES.replace("int64[N] lengths", "bool[N,T] mask")
        + """
        m = Unsqueeze (mask, axis1)
        c = Transpose <perm = [0, 2, 1]> (values)
        b = Where (m, c, nought)
        d = Conv <pads = [2, 2]> (b, K)
        e = Where (m, d, low)
        a = ReduceMax <keepdims = 0> (e, axis2)
        logits = MatMul (a, V)
        """
    )


@_streams()
def attention_behind_convolutions(w: Weights) -> ModelProto:
    w.recurrent(4, 6, 8).named(_KERNELS + ", q 8x1")
    w |= {"low": scalar(np.finfo(np.float32).min)}
    return w.model(
        _VALUES
        + _MASK
        + _CONVOLVED
        + _POOLED_BY_SCORES
        + """
        h2 = Squeeze (h, axis0)
        b = Add (a, h2)
        logits = MatMul (b, V)
        """
    )


@_streams()
def many_figures_behind_convolutions(w: Weights) -> ModelProto:
    w.recurrent(4, 6, 8).named(_KERNELS)
    w |= {"row": integers(-1, 1, 1), "step": integers(1, 1, 8)}
    return w.model(
        _VALUES
        + _MASK
        + _CONVOLVED
        + """
        i0 = Sub (lengths, one)
        i1 = Reshape (i0, row)
        i2 = Expand (i1, step)
        g = GatherElements <axis = 1> (y3, i2)
        last = Squeeze (g, axis1)
        begin = Gather <axis = 1> (y3, zero)
        o = Cast <to = 1> (m2)
        k = ReduceSum <keepdims = 1> (o, axis1)
        d = Div (o, k)
        e = Unsqueeze (d, axis1)
        p = MatMul (e, y3)
        mean = Squeeze (p, axis1)
        u = Add (last, begin)
        v = Add (u, mean)
        logits = MatMul (v, V)
        """
    )


@_streams(missing="handled")
def missing_values_before_a_convolution(w: Weights) -> ModelProto:
    w.named("V 6x3, K 6x4x3")
    return w.model(
        _VALUES
        + _MASK
        + """
        missing = IsNaN (values)
        v = Where (missing, nought, values)
        c = Transpose <perm = [0, 2, 1]> (v)
        d = Conv <pads = [1, 1]> (c, K)
        e = Transpose <perm = [0, 2, 1]> (d)
        f = Tanh (e)
        """
        + _SUM
    )


@_streams(task="per-step")
def each_step_behind_convolutions(w: Weights) -> ModelProto:
    w.recurrent(4, 6, 8).named(_KERNELS)
    return w.model(_PER_STEP + _MASK + _CONVOLVED + "logits = MatMul (y3, V)")


@_streams()
def a_figure_of_short_sequences(w: Weights) -> ModelProto:
    """Sequences of at most five steps are another case, as for a kernel that is longer than they are."""
    w.named("V 4x3")
    w |= {"five": scalar(5, np.int64)}
    return w.model(
        _VALUES
        + _MASK
        + """
        is_short = LessOrEqual (n, five)
        is_short3 = Unsqueeze (is_short, axis2)
        zeros = Neg (values)
        f0 = Where (is_short3, zeros, values)
        f = Tanh (f0)
        """
        + _SUM
    )


@_streams()
def last_state_at_padding(w: Weights) -> ModelProto:
    """Keras repeats the last state at padding."""
    w.recurrent(4, 4, 8).named("V 8x3")
    return w.model(
        _VALUES
        + _LSTM
        + _MASK
        + """
        h1 = Squeeze (h, axis0)
        h2 = Unsqueeze (h1, axis1)
        k = Where (m, y3, h2)
        f = Tanh (k)
        """
        + _SUM
    )


@_streams()
def several_heads_of_attention(w: Weights) -> ModelProto:
    w.named("V 12x3, q 4x3")
    w |= {"low": scalar(-1e9), "flat": integers(-1, 12)}
    return w.model(
        _VALUES
        + _MASK
        + """
        sc = MatMul (values, q)
        ms = Where (m, sc, low)
        att = Softmax <axis = 1> (ms)
        e = Einsum <equation = "bth,btd->bhd"> (att, values)
        a = Reshape (e, flat)
        logits = MatMul (a, V)
        """
    )


@_streams()
def learned_first_state(w: Weights) -> ModelProto:
    w.recurrent(3, 4, 8).named("V 8x3, begin 1x1x8")
    return w.model(
        _VALUES
        + """
        l = Cast <to = 6> (lengths)
        x = Transpose <perm = [1, 0, 2]> (values)
        rows = Shape <start = 0, end = 1> (values)
        shape = Concat <axis = 0> (v1, rows, v1)
        h0 = Expand (begin, shape)
        y, h = GRU <hidden_size = 8, linear_before_reset = 1> (x, W, R, B, l, h0)
        h2 = Squeeze (h, axis0)
        logits = MatMul (h2, V)
        """.replace("v1", "axis1")
    )


@_streams(task="per-step")
def single_steps(w: Weights) -> ModelProto:
    """No step depends on another one, so there is nothing to carry but their number."""
    w.named("U 4x6, V 6x3")
    return w.model(_PER_STEP + "h = MatMul (values, U) f = Tanh (h) logits = MatMul (f, V)")


@_refused("LSTM rnn", "bidirectional=False")
def both_directions(w: Weights) -> ModelProto:
    w.recurrent(4, 4, 8, 2).named("V 16x3")
    return w.model(
        _VALUES
        + """
        l = Cast <to = 6> (lengths)
        x = Transpose <perm = [1, 0, 2]> (values)
        [rnn] y, h = LSTM <hidden_size = 8, direction = "bidirectional"> (x, W, R, B, l)
        h1 = Transpose <perm = [1, 0, 2]> (h)
        h2 = Flatten (h1)
        logits = MatMul (h2, V)
    """
    )


@_refused("MatMul scores", "attention over all steps")
def self_attention(w: Weights) -> ModelProto:
    w.named("V 4x3")
    w |= {"low": scalar(-1e9)}
    return w.model(
        _VALUES
        + _MASK
        + """
        k = Transpose <perm = [0, 2, 1]> (values)
        [scores] s2 = MatMul (values, k)
        mm = Unsqueeze (m2, axis1)
        s3 = Where (mm, s2, low)
        a = Softmax <axis = 2> (s3)
        f = MatMul (a, values)
    """
        + _SUM
    )


@_refused("Sub centre", "at each step")
def normalised_by_the_sequence(w: Weights) -> ModelProto:
    w.named("V 4x3")
    return w.model(
        _VALUES
        + _MASK
        + """
        x = Where (m, values, nought)
        t = ReduceSum <keepdims = 1> (x, axis1)
        c = Cast <to = 1> (n)
        c2 = Unsqueeze (c, axis2)
        mu = Div (t, c2)
        [centre] d = Sub (values, mu)
        f = Mul (d, d)
    """
        + _SUM
    )


@_refused("InstanceNormalization norm", "BatchNorm")
def instance_norm(w: Weights) -> ModelProto:
    w.named("V 4x3, g 4, b 4")
    return w.model(
        _VALUES
        + """
        c = Transpose <perm = [0, 2, 1]> (values)
        [norm] i = InstanceNormalization (c, g, b)
        f = Transpose <perm = [0, 2, 1]> (i)
    """
        + _MASK
        + _SUM
    )


@_refused("TopK top", "a maximum or attention")
def top_steps(w: Weights) -> ModelProto:
    w.named("V 4x3")
    w |= {"low": scalar(-9.0), "two": integers(2)}
    return w.model(
        _VALUES
        + _MASK
        + """
        x = Where (m, values, low)
        [top] f, i = TopK <axis = 1> (x, two)
        pooled = ReduceSum <keepdims = 0> (f, axis1)
        logits = MatMul (pooled, V)
    """
    )


@_refused("ArgMax arg", "among all steps")
def where_the_largest_is(w: Weights) -> ModelProto:
    w.named("V 4x3")
    w |= {"low": scalar(-9.0)}
    return w.model(
        _VALUES
        + _MASK
        + """
        x = Where (m, values, low)
        [arg] i = ArgMax <axis = 1, keepdims = 0> (x)
        f = Cast <to = 1> (i)
        logits = MatMul (f, V)
    """
    )


@_refused("ReverseSequence back", "from the last one")
def read_backwards(w: Weights) -> ModelProto:
    w.named("V 4x3")
    return w.model(
        _VALUES
        + """
        [back] f = ReverseSequence <batch_axis = 0, time_axis = 1> (values, lengths)
    """
        + _MASK
        + _SUM
    )


@_refused("Gather table", "without a maximum")
def learned_positions(w: Weights) -> ModelProto:
    w.named("V 4x3, places 200x4")
    return w.model(
        _VALUES
        + _MASK
        + """
        [table] p = Gather (places, r)
        f = Add (values, p)
    """
        + _SUM
    )


@_refused("Conv half", "stride 1")
def every_second_step(w: Weights) -> ModelProto:
    w.named("V 6x3, K 6x4x3")
    return w.model(
        _VALUES
        + """
        c = Transpose <perm = [0, 2, 1]> (values)
        [half] d = Conv <strides = [2], pads = [1, 1]> (c, K)
        a = ReduceMax <keepdims = 0> (d, axis2)
        logits = MatMul (a, V)
    """
    )


@_refused("MaxPool pool", "causal convolution")
def pooled_windows(w: Weights) -> ModelProto:
    w.named("V 4x3")
    return w.model(
        _VALUES
        + """
        c = Transpose <perm = [0, 2, 1]> (values)
        [pool] d = MaxPool <kernel_shape = [2], strides = [2]> (c)
        a = ReduceMax <keepdims = 0> (d, axis2)
        logits = MatMul (a, V)
    """
    )


@_refused("Concat join", "Pad")
def a_token_in_front(w: Weights) -> ModelProto:
    w.named("V 4x3, token 1x1x4")
    w |= {"onefour": integers(1, 4)}
    return w.model(
        _VALUES
        + """
        z = Shape <start = 0, end = 1> (values)
        b = Concat <axis = 0> (z, onefour)
        t = Expand (token, b)
        [join] f = Concat <axis = 1> (t, values)
        a = ReduceMax <keepdims = 0> (f, axis1)
        logits = MatMul (a, V)
    """
    )


@_refused("CumSum sums", "sum forward")
def sums_from_the_end(w: Weights) -> ModelProto:
    w.named("V 4x3")
    return w.model(
        _VALUES
        + _MASK
        + """
        x = Where (m, values, nought)
        [sums] c = CumSum <reverse = 1> (x, one)
        f = Tanh (c)
    """
        + _SUM
    )
