"""ONNX models that take no lengths and cannot be given any; each says why."""

import numpy as np
from onnx import ModelProto

from tests.gallery.onnx_models import Weights, graph, integers, scalar


@graph(110, "pytorch", 15, reason=("rows", "training"), features=4, channels_said=True, values="x")
def batch_statistics(w: Weights) -> ModelProto:
    """Exported in training mode: BatchNormalization takes the mean of all rows in the batch."""
    w.named("k 6x4x3, b 6, gain 6+1, shift 6, V 6x3")
    w |= {"mean": np.zeros(6, dtype=np.float32), "var": np.ones(6, dtype=np.float32)}
    return w.model("""
        main_graph (float[N,4,T] x) => (float[N,3] y)
        [conv] c = Conv <kernel_shape = [3], pads = [1, 1]> (x, k, b)
        [norm] n, running_mean, running_var = BatchNormalization <training_mode = 1> (c, gain, shift, mean, var)
        [act] a = Relu (n)
        [pool] p = ReduceMean <axes = [2], keepdims = 0> (a)
        [dense] y = MatMul (p, V)
        """)


@graph(111, "tf2onnx", 13, reason="rows", features=4)
def mean_over_rows(w: Weights) -> ModelProto:
    """The other rows' mean is taken off."""
    w.named("kernel 4x6, V 6x2")
    return w.model("""
        centred (float[N,T,4] values) => (float[N,2] logits)
        [dense] h = MatMul (values, kernel)
        [pool] p = ReduceMax <axes = [1], keepdims = 0> (h)
        [batch_mean] m = ReduceMean <axes = [0], keepdims = 1> (p)
        [centre] d = Sub (p, m)
        [classify] logits = MatMul (d, V)
        """)


@graph(112, "keras2onnx", 13, reason=("width", "fixed size"), features=4, longest=20, values="input_1")
def frozen_flatten(w: Weights) -> ModelProto:
    """Says that its width is free; the last layer's weights are for 20 steps."""
    w.named("kernel 4x5, V 100x3")
    return w.model("""
        keras (float[N,T,4] input_1) => (float[N,3] dense)
        [time_distributed] h = MatMul (input_1, kernel)
        [act] a = Relu (h)
        [flatten] f = Flatten <axis = 1> (a)
        [dense_matmul] dense = MatMul (f, V)
        """)


@graph(113, "pytorch", 13, reason=("random", "twice", "same answer"), features=4)
def noise(w: Weights) -> ModelProto:
    """Exported with its noise."""
    w.named("V 4x2")
    return w.model("""
        noisy (float[N,T,4] values) => (float[N,2] logits)
        [noise] e = RandomNormalLike <scale = 0.1> (values)
        [augment] v = Add (values, e)
        [pool] p = ReduceMax <axes = [1], keepdims = 0> (v)
        [dense] logits = MatMul (p, V)
        """)


@graph(114, "onnxscript", reason=("fft", "dft", "fourier"), features=1)
def spectrum(w: Weights) -> ModelProto:
    """A Fourier transform over the whole width."""
    w.named("V 1x2*1")
    return w.model("""
        spectrum (float[N,T,1] values) => (float[N,2] logits)
        [dft] f = DFT <axis = 1, onesided = 0> (values)
        [power] p = ReduceSumSquare <axes = [2], keepdims = 1> (f)
        [squash] s = Sqrt (p)
        [pool] z = ReduceMax <axes = [1], keepdims = 0> (s)
        [dense] logits = MatMul (z, V)
        """)


@graph(115, "pytorch", reason=("resize", "interpolate", "resampl"), features=4, channels_said=True, values="x")
def resampled(w: Weights) -> ModelProto:
    """Drawn to 16 steps, whatever the width."""
    w.named("V 64x3")
    w |= {"sixteen": integers(16)}
    return w.model("""
        resampled (float[N,4,T] x) => (float[N,3] y)
        [shape] s = Shape <start = 0, end = 2> (x)
        [sizes] t = Concat <axis = 0> (s, sixteen)
        [resize] r = Resize <mode = "linear"> (x, , , t)
        [flatten] f = Flatten <axis = 1> (r)
        [dense] y = MatMul (f, V)
        """)


@graph(116, "pytorch", reason=("values", "depends on", "nonzero"), features=4)
def compressed(w: Weights) -> ModelProto:
    """Keeps the steps of all rows whose first number is above zero, in one list."""
    w.named("V 4x2")
    w |= {"nought": scalar(0.0)}
    return w.model("""
        compressed (float[N,T,4] values) => (float[N,2] logits)
        [first] a = Gather <axis = 2> (values, zero)
        [above] m = Greater (a, nought)
        [where] i = NonZero (m)
        [pairs] ij = Transpose <perm = [1, 0]> (i)
        [rows] r = Gather <axis = 1> (ij, zero)
        [chosen] v = GatherND (values, ij)
        [dense] h = MatMul (v, V)
        [batch] s = Shape <start = 0, end = 1> (values)
        [size] t = Concat <axis = 0> (s, two)
        [start] z = ConstantOfShape (t)
        [column] c = Unsqueeze (r, axis1)
        [added] logits = ScatterND <reduction = "add"> (z, c, h)
        """)
