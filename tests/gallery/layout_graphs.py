"""Graphs that are padded on the left, or take packed rows."""

from onnx import ModelProto

from tests.gallery.layout_models import graph
from tests.gallery.onnx_models import Weights, integers, scalar


def attention_of(*, block: str) -> ModelProto:
    w = Weights(3, opset=17).named("Q 5x8, K 5x8, V 5x8, H 8x3")
    w |= {"low": scalar(-1e9), "axis_one": integers(1), "axis_two": integers(2)}
    return w.model(f"""
        packed (float[1,S,5] x, int64[1,S] segment_ids) => (float[1,S,3] logits)
        q = MatMul (x, Q)
        k = MatMul (x, K)
        v = MatMul (x, V)
        t = Transpose <perm = [0, 2, 1]> (k)
        s = MatMul (q, t)
        a = Unsqueeze (segment_ids, axis_one)
        b = Unsqueeze (segment_ids, axis_two)
        {block}
        m = Where (same, s, low)
        [weights] p = Softmax <axis = 2> (m)
        h = MatMul (p, v)
        logits = MatMul (h, H)
        """)


@graph("segment_ids", rule="LW702", operator="weights")
def graph_of_attention_over_the_row() -> ModelProto:
    return attention_of(block="e = Equal (a, a)\n        f = Equal (b, b)\n        same = And (e, f)")


@graph("segment_ids")
def graph_of_attention_in_segments() -> ModelProto:
    return attention_of(block="same = Equal (a, b)")


@graph("cu_seqlens", rule="LW703", operator="conv")
def graph_of_a_convolution_over_borders() -> ModelProto:
    return (
        Weights(4, opset=17)
        .named("C 8x5x3, H 8x3")
        .model("""
        packed (float[1,S,5] x, int32[B] cu_seqlens) => (float[1,S,3] logits)
        t = Transpose <perm = [0, 2, 1]> (x)
        [conv] c = Conv <pads = [1, 1]> (t, C)
        h = Transpose <perm = [0, 2, 1]> (c)
        n = Shape (cu_seqlens)
        z = Cast <to = 1> (n)
        y = Mul (z, nought)
        g = Add (h, y)
        logits = MatMul (g, H)
        """)
    )


@graph("cu_seqlens")
def graph_of_single_steps() -> ModelProto:
    """The last step of each sequence of [steps, features]."""
    w = Weights(5, opset=17).named("D 5x8, H 8x3")
    w |= {"begin": integers(1), "end": integers(2**31), "one32": integers(1).astype("int32")}
    return w.model("""
        packed (float[S,5] x, int32[B] cu_seqlens) => (float[N,3] logits)
        d = MatMul (x, D)
        h = Relu (d)
        e = Slice (cu_seqlens, begin, end)
        i = Sub (e, one32)
        l = Gather (h, i)
        logits = MatMul (l, H)
        """)


@graph("left", rule="LW201", operator="mean")
def graph_of_a_mean_over_the_width() -> ModelProto:
    return (
        Weights(6, opset=17)
        .named("D 5x8, H 8x3")
        .model("""
        left (float[N,T,5] x, int64[N,T] attention_mask) => (float[N,3] logits)
        d = MatMul (x, D)
        h = Relu (d)
        [mean] m = ReduceMean <axes = [1], keepdims = 0> (h)
        c = Cast <to = 1> (attention_mask)
        s = ReduceMax <axes = [1], keepdims = 1> (c)
        w = Mul (m, s)
        logits = MatMul (w, H)
        """)
    )


@graph("left")
def graph_of_a_mean_over_the_steps() -> ModelProto:
    w = Weights(7, opset=17).named("D 5x8, H 8x3")
    w |= {"axis_two": integers(2)}
    return w.model("""
        left (float[N,T,5] x, int64[N,T] attention_mask) => (float[N,3] logits)
        d = MatMul (x, D)
        b = Cast <to = 9> (attention_mask)
        u = Unsqueeze (b, axis_two)
        h = Where (u, d, nought)
        t = ReduceSum <keepdims = 0> (h, axis1)
        c = Cast <to = 1> (attention_mask)
        n = ReduceSum <keepdims = 1> (c, axis1)
        m = Div (t, n)
        logits = MatMul (m, H)
        """)


@graph("left", vocabulary=50, features=None)
def graph_of_positions_that_are_fed() -> ModelProto:
    w = Weights(8, opset=17).named("E 50x8, P 300x8, H 8x3")
    w |= {"axis_two": integers(2)}
    return w.model("""
        left (int64[N,T] input_ids, int64[N,T] attention_mask, int64[N,T] position_ids) => (float[N,3] logits)
        e = Gather (E, input_ids)
        p = Gather (P, position_ids)
        d = Add (e, p)
        b = Cast <to = 9> (attention_mask)
        u = Unsqueeze (b, axis_two)
        h = Where (u, d, nought)
        t = ReduceSum <keepdims = 0> (h, axis1)
        logits = MatMul (t, H)
        """)


@graph("left", rule="LW602", operator="places", vocabulary=50, features=None)
def graph_of_positions_by_range() -> ModelProto:
    w = Weights(9, opset=17).named("E 50x8, P 300x8, H 8x3")
    w |= {"axis_two": integers(2), "index": scalar(1, "int64")}
    return w.model("""
        left (int64[N,T] input_ids, int64[N,T] attention_mask) => (float[N,3] logits)
        e = Gather (E, input_ids)
        s = Shape (input_ids)
        n = Gather (s, index)
        [places] r = Range (zero, n, one)
        p = Gather (P, r)
        d = Add (e, p)
        b = Cast <to = 9> (attention_mask)
        u = Unsqueeze (b, axis_two)
        h = Where (u, d, nought)
        t = ReduceSum <keepdims = 0> (h, axis1)
        logits = MatMul (t, H)
        """)
