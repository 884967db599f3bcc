"""ONNX models that take no lengths, in the dialects of several exporters; each can be given lengths."""

import math

import numpy as np
from onnx import ModelProto

from tests.gallery.onnx_models import Weights, graph, integers, scalar
from tests.support.keras_loops import KerasLoop

LARGEST = np.iinfo(np.int64).max


@graph(80, "pytorch", 11, features=6, values="input")
def bilstm_last(w: Weights) -> ModelProto:
    """`lstm(x)[0][:, -1]` as torch's old exporter writes it: states of zeros made from the shape of the steps."""
    w.recurrent(4, 6, 8, directions=2).named("fc.weight 3x16, fc.bias 3")
    w |= {"hidden": integers(8), "minus_one": scalar(-1, np.int64)}
    return w.model("""
        torch_jit (float[batch,seq,6] input) => (float[batch,3] output)
        [Transpose_0] t0 = Transpose <perm = [1, 0, 2]> (input)
        [Shape_1] s1 = Shape (t0)
        [Gather_2] s2 = Gather <axis = 0> (s1, one)
        [Unsqueeze_3] s3 = Unsqueeze <axes = [0]> (s2)
        [Concat_4] s4 = Concat <axis = 0> (two, s3, hidden)
        [ConstantOfShape_5] h0 = ConstantOfShape (s4)
        [LSTM_6] y, y_h, y_c = LSTM <hidden_size = 8, direction = "bidirectional"> (t0, W, R, B, , h0, h0)
        [Transpose_7] t7 = Transpose <perm = [0, 2, 1, 3]> (y)
        [Reshape_8] r8 = Reshape (t7, flat)
        [Transpose_9] t9 = Transpose <perm = [1, 0, 2]> (r8)
        [Gather_10] last = Gather <axis = 1> (t9, minus_one)
        [Gemm_11] output = Gemm <alpha = 1.0, beta = 1.0, transB = 1> (last, "fc.weight", "fc.bias")
        """)


@graph(81, "tf2onnx", 13, features=5, values="input_1")
def gru_final_state(w: Weights) -> ModelProto:
    """Keras' GRU through tf2onnx: time first inside, its last state taken."""
    prefix = "StatefulPartitionedCall/model/"
    w.recurrent(3, 5, 10)
    w |= {
        "const_axis0": integers(0),
        f"{prefix}dense/kernel:0": w.normal(10, 4),
        f"{prefix}dense/bias:0": w.normal(4),
    }
    return w.model(
        """
        tf2onnx (float[unk__1,unk__2,5] input_1) => (float[unk__1,4] dense)
        ["@gru/transpose"] "@gru/transpose:0" = Transpose <perm = [1, 0, 2]> (input_1)
        ["@gru/while"] "@gru/Y", "@gru/Y_h" = GRU <direction = "forward", hidden_size = 10, linear_before_reset = 1>
            ("@gru/transpose:0", W, R, B)
        ["@gru/Squeeze"] "@gru/Squeeze:0" = Squeeze ("@gru/Y_h", const_axis0)
        ["@dense/MatMul"] "@dense/MatMul:0" = MatMul ("@gru/Squeeze:0", "@dense/kernel:0")
        ["@dense/BiasAdd"] dense = Add ("@dense/MatMul:0", "@dense/bias:0")
        """.replace("@", prefix)
    )


@graph(82, "tf2onnx", 15, features=4, values="input_1")
def conv1d_as_2d(w: Weights) -> ModelProto:
    """Keras' Conv1D through tf2onnx: an axis of height 1 in front of time, and the padding left to the runtime."""
    prefix = "model_1/"
    w.named("kernel1 8x4x1x6, bias1 8, kernel2 8x8x1x3, bias2 8, V 8x3*1, C 3")
    w |= {"const_axis1": integers(1)}
    return w.model(
        """
        tf2onnx (float[unk__4,unk__5,4] input_1) => (float[unk__4,3] dense)
        ["@conv1d/ExpandDims"] e1 = Unsqueeze (input_1, const_axis1)
        ["@conv1d/Conv1D__6"] n1 = Transpose <perm = [0, 3, 1, 2]> (e1)
        ["@conv1d/Conv1D"] c1 = Conv <auto_pad = "SAME_UPPER", dilations = [1, 1], strides = [1, 1],
            kernel_shape = [1, 6]> (n1, kernel1, bias1)
        ["@conv1d/Relu"] a1 = Relu (c1)
        ["@conv1d_1/Conv1D"] c2 = Conv <auto_pad = "SAME_UPPER", dilations = [1, 1], strides = [1, 2],
            kernel_shape = [1, 3]> (a1, kernel2, bias2)
        ["@conv1d_1/Conv1D__9"] n2 = Transpose <perm = [0, 2, 3, 1]> (c2)
        ["@conv1d_1/Squeeze"] s2 = Squeeze (n2, const_axis1)
        ["@conv1d_1/Relu"] a2 = Relu (s2)
        ["@global_average_pooling1d/Mean"] m = ReduceMean <axes = [1], keepdims = 0> (a2)
        ["@dense/MatMul"] d = MatMul (m, V)
        ["@dense/BiasAdd"] dense = Add (d, C)
        """.replace("@", prefix)
    )


@graph(83, "pytorch", 11, features=3, channels_said=True, values="x")
def conv_bn_global_average(w: Weights) -> ModelProto:
    """An FCN as torch's old exporter writes it, `[rows, features, width]`."""
    w.named(", ".join(f"bn{n}.weight 8+1, bn{n}.bias 8, bn{n}.running_mean 8" for n in (1, 2)))
    w |= {f"bn{n}.running_var": np.abs(w.normal(8)) + np.float32(0.5) for n in (1, 2)}
    w.named("conv1.weight 8x3x7, conv1.bias 8, conv2.weight 8x4x3, fc.weight 4x8*1, fc.bias 4")
    return w.model("""
        torch_jit (float[batch,3,time] x) => (float[batch,4] logits)
        [Conv_0] c0 = Conv <dilations = [1], group = 1, kernel_shape = [7], pads = [3, 3], strides = [1]>
            (x, "conv1.weight", "conv1.bias")
        [BatchNormalization_1] b1 = BatchNormalization <epsilon = 0.00001, momentum = 0.9>
            (c0, "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var")
        [Relu_2] r2 = Relu (b1)
        [Conv_3] c3 = Conv <dilations = [2], group = 2, kernel_shape = [3], pads = [2, 2], strides = [1]>
            (r2, "conv2.weight")
        [BatchNormalization_4] b4 = BatchNormalization <epsilon = 0.00001, momentum = 0.9>
            (c3, "bn2.weight", "bn2.bias", "bn2.running_mean", "bn2.running_var")
        [Relu_5] r5 = Relu (b4)
        [GlobalAveragePool_6] g = GlobalAveragePool (r5)
        [Flatten_7] f = Flatten <axis = 1> (g)
        [Gemm_8] logits = Gemm <transB = 1> (f, "fc.weight", "fc.bias")
        """)


@graph(84, "pytorch", 13, features=5, values="x")
def max_pools(w: Weights) -> ModelProto:
    """A strided pool that rounds up, and the largest of all that is left."""
    w.named("k1 8x5x3, b1 8, k2 8x8x3, b2 8, V 3x8, C 3")
    return w.model("""
        main_graph (float[batch,time,5] x) => (float[batch,3] y)
        ["/Transpose"] t = Transpose <perm = [0, 2, 1]> (x)
        ["/conv/Conv"] c = Conv <kernel_shape = [3], pads = [1, 1]> (t, k1, b1)
        ["/act/LeakyRelu"] a = LeakyRelu <alpha = 0.2> (c)
        ["/pool/MaxPool"] p = MaxPool <ceil_mode = 1, kernel_shape = [3], strides = [2], pads = [1, 1]> (a)
        ["/conv2/Conv"] c2 = Conv <kernel_shape = [3], pads = [1, 1]> (p, k2, b2)
        ["/GlobalMaxPool"] g = GlobalMaxPool (c2)
        ["/Squeeze"] s = Squeeze (g, axis2)
        ["/fc/Gemm"] y = Gemm <transB = 1> (s, V, C)
        """)


@graph(85, "pytorch", 11, features=4, channels_said=True, values="x")
def average_pools(w: Weights) -> ModelProto:
    """Averages over windows that count what lies outside, and over windows that do not."""
    w.named("k1 8x4x5, b1 8, V 8x2")
    return w.model("""
        torch_jit (float[batch,4,time] x) => (float[batch,2] y)
        [Conv_0] c = Conv <kernel_shape = [5], pads = [2, 2]> (x, k1, b1)
        [Sigmoid_1] a = Sigmoid (c)
        [AveragePool_2] p1 = AveragePool <count_include_pad = 1, kernel_shape = [3], pads = [1, 1], strides = [2]> (a)
        [AveragePool_3] p2 = AveragePool <count_include_pad = 0, kernel_shape = [3], pads = [1, 1], strides = [1]> (p1)
        [ReduceSum_4] s = ReduceSum <axes = [2], keepdims = 0> (p2)
        [MatMul_5] y = MatMul (s, V)
        """)


@graph(86, "pytorch", features=4, values="series")
def instance_norm(w: Weights) -> ModelProto:
    """Statistics over each row's whole width, twice."""
    w.named("kernel 4x8, scale 8+1, shift 8, k 8x8x3, classifier 8x3")
    return w.model("""
        main_graph (float[N,T,4] series) => (float[N,3] y)
        [project] h = MatMul (series, kernel)
        [channels_first] c = Transpose <perm = [0, 2, 1]> (h)
        [inorm] n = InstanceNormalization <epsilon = 0.001> (c, scale, shift)
        [act] a = Relu (n)
        [conv] d = Conv <kernel_shape = [3], pads = [1, 1]> (a, k)
        [inorm_1] m = InstanceNormalization <epsilon = 0.001> (d, scale, shift)
        [pool] p = ReduceMax <axes = [2], keepdims = 0> (m)
        [out] y = MatMul (p, classifier)
        """)


@graph(87, "pytorch", features=5, values="x")
def group_norm(w: Weights) -> ModelProto:
    """`nn.GroupNorm` in exported form: groups are folded into the time, normalised, and unfolded."""
    w.named("k 12x5x3, b 12, gain 12x1+1, shift 12x1, V 4x12, C 4")
    w |= {"groups": integers(0, 3, -1), "ones": np.ones(3, dtype=np.float32), "zeros": np.zeros(3, dtype=np.float32)}
    return w.model("""
        main_graph (float[batch,time,5] x) => (float[batch,4] y)
        ["/Transpose"] t = Transpose <perm = [0, 2, 1]> (x)
        ["/conv/Conv"] c = Conv <kernel_shape = [3], pads = [1, 1]> (t, k, b)
        ["/norm/Reshape"] r = Reshape (c, groups)
        ["/norm/InstanceNormalization"] n = InstanceNormalization <epsilon = 0.00001> (r, ones, zeros)
        ["/norm/Shape"] s = Shape (c)
        ["/norm/Reshape_1"] u = Reshape (n, s)
        ["/norm/Mul"] m = Mul (u, gain)
        ["/norm/Add"] a = Add (m, shift)
        ["/relu/Relu"] z = Relu (a)
        ["/ReduceMean"] p = ReduceMean <axes = [-1], keepdims = 0> (z)
        ["/fc/Gemm"] y = Gemm <transB = 1> (p, V, C)
        """)


@graph(88, "pytorch", 20, features=6, values="x")
def encoder_block(w: Weights) -> ModelProto:
    """A transformer's block as torch's new exporter writes it, its mean over the time."""
    w.named("inp 6x12, inp_bias 12, gain 12+1, shift 12, wq 12x12, wk 12x12, wv 12x12, w1 12x24, w2 24x12, V 4x12, C 4")
    w |= {"heads": integers(3), "size": integers(4), "dim": integers(12), "scale": scalar(0.5)}
    return w.model("""
        main_graph (float[s0,s1,6] x) => (float[s0,4] logits)
        [node_linear] val_0 = MatMul (x, inp)
        [node_add] linear = Add (val_0, inp_bias)
        [node_layer_norm] norm = LayerNormalization <axis = -1, epsilon = 0.00001> (linear, gain, shift)
        [node_linear_1] q = MatMul (norm, wq)
        [node_linear_2] k = MatMul (norm, wk)
        [node_linear_3] v = MatMul (norm, wv)
        [node_shape] rows = Shape <start = 0, end = 1> (x)
        [node_shape_1] width = Shape <start = 1, end = 2> (x)
        [node_concat] split = Concat <axis = 0> (rows, width, heads, size)
        [node_view] q4 = Reshape <allowzero = 1> (q, split)
        [node_view_1] k4 = Reshape <allowzero = 1> (k, split)
        [node_view_2] v4 = Reshape <allowzero = 1> (v, split)
        [node_transpose] qt = Transpose <perm = [0, 2, 1, 3]> (q4)
        [node_transpose_1] kt = Transpose <perm = [0, 2, 3, 1]> (k4)
        [node_transpose_2] vt = Transpose <perm = [0, 2, 1, 3]> (v4)
        [node_mul] qs = Mul (qt, scale)
        [node_matmul] scores = MatMul (qs, kt)
        [node_softmax] weights = Softmax <axis = -1> (scores)
        [node_matmul_1] mixed = MatMul (weights, vt)
        [node_transpose_3] back = Transpose <perm = [0, 2, 1, 3]> (mixed)
        [node_concat_1] joined = Concat <axis = 0> (rows, width, dim)
        [node_view_3] flat = Reshape <allowzero = 1> (back, joined)
        [node_add_1] res = Add (linear, flat)
        [node_linear_4] up = MatMul (res, w1)
        [node_gelu] act = Gelu <approximate = "none"> (up)
        [node_linear_5] down = MatMul (act, w2)
        [node_add_2] out = Add (res, down)
        [node_mean] mean = ReduceMean <keepdims = 0, noop_with_empty_axes = 0> (out, axis1)
        [node_linear_6] logits = Gemm <transB = 1> (mean, V, C)
        """)


@graph(89, "keras2onnx", 13, features=4, values="input_1")
def last_step_sliced(w: Weights) -> ModelProto:
    """The last step by a Slice from -1, after two RNNs."""
    w.named("W2 1x8x8, R2 1x8x8, B2 1x16*0.2")
    w.recurrent(1, 4, 8).named("V 8x3")
    w |= {"largest": integers(LARGEST), "one": integers(1)}
    return w.model("""
        keras (float[N,T,4] input_1) => (float[N,3] dense)
        [time_first] x = Transpose <perm = [1, 0, 2]> (input_1)
        [simple_rnn] y1 = RNN <hidden_size = 8, activations = ["Tanh"]> (x, W, R, B)
        [squeeze] h1 = Squeeze (y1, axis1)
        [simple_rnn_1] y2 = RNN <hidden_size = 8, activations = ["Tanh"], direction = "reverse"> (h1, W2, R2, B2)
        [squeeze_1] h2 = Squeeze (y2, axis1)
        [both] h = Add (h1, h2)
        [rows_first] r = Transpose <perm = [1, 0, 2]> (h)
        [strided_slice] l = Slice (r, minus_one, largest, axis1, one)
        [drop_time] z = Squeeze (l, axis1)
        [dense_matmul] dense = MatMul (z, V)
        """)


@graph(90, "skl2onnx", 11, features=4)
def mean_max_attributes(w: Weights) -> ModelProto:
    """Mean and maximum with their axes as attributes, counted from the end."""
    w.named("kernel 4x6, bias 6, V 18x2")
    return w.model("""
        pool (float[N,T,4] values) => (float[N,2] logits)
        [dense_0] h = MatMul (values, kernel)
        [bias_0] b = Add (h, bias)
        [act] a = Tanh (b)
        [mean] m = ReduceMean <axes = [-2], keepdims = 1> (a)
        [max] x = ReduceMax <axes = [-2], keepdims = 1> (a)
        [norm] n = ReduceL2 <axes = [1], keepdims = 1> (a)
        [join] j = Concat <axis = -1> (m, x, n)
        [squeeze] s = Squeeze <axes = [1]> (j)
        [classify] logits = MatMul (s, V)
        """)


@graph(91, "onnxscript", 20, features=4)
def mean_max_inputs(w: Weights) -> ModelProto:
    """The same with axes as inputs, as from opset 18 on."""
    w.named("kernel 4x6, bias 6, V 24x2")
    return w.model("""
        pool (float[N,T,4] values) => (float[N,2] logits)
        [dense_0] h = MatMul (values, kernel)
        [bias_0] b = Add (h, bias)
        [act] a = Tanh (b)
        [mean] m = ReduceMean <keepdims = 0> (a, axis1)
        [min] x = ReduceMin <keepdims = 0> (a, axis1)
        [exp] n = ReduceLogSumExp <keepdims = 0> (a, axis1)
        [square] q = ReduceSumSquare <keepdims = 0> (a, axis1)
        [join] j = Concat <axis = 1> (m, x, n, q)
        [classify] logits = MatMul (j, V)
        """)


@graph(92, "pytorch", 11, features=5, shortest=2, values="x")
def deviation(w: Weights) -> ModelProto:
    """`x.std(1)` as torch's old exporter takes it apart: the number of steps is counted, one is taken off."""
    w.named("kernel 5x8, V 3x8, C 3")
    w |= {"dims": integers(1), "one": scalar(1.0)}
    return w.model("""
        torch_jit (float[batch,time,5] x) => (float[batch,3] y)
        [MatMul_0] h = MatMul (x, kernel)
        [Tanh_1] a = Tanh (h)
        [ReduceMean_2] m = ReduceMean <axes = [1], keepdims = 1> (a)
        [Shape_3] s = Shape (a)
        [Gather_4] n = Gather <axis = 0> (s, dims)
        [ReduceProd_5] count = ReduceProd <keepdims = 0> (n)
        [Sub_6] d = Sub (a, m)
        [Mul_7] d2 = Mul (d, d)
        [ReduceMean_8] v = ReduceMean <axes = [1], keepdims = 0> (d2)
        [Cast_9] nf = Cast <to = 1> (count)
        [Mul_10] total = Mul (v, nf)
        [Sub_11] less = Sub (nf, one)
        [Div_12] var = Div (total, less)
        [Sqrt_13] std = Sqrt (var)
        [Gemm_14] y = Gemm <transB = 1> (std, V, C)
        """)


@graph(93, "espnet_onnx", 14, features=5, time_first=True, values="frames")
def gru_max_time_first(w: Weights) -> ModelProto:
    """Steps as [time, rows, features]; the largest state of each direction."""
    w.recurrent(3, 5, 6, directions=2).named("V 12x4*1, C 4")
    return w.model("""
        gru (float[time,batch,5] frames) => (float[batch,4] scores)
        [gru_0] y, y_h = GRU <hidden_size = 6, linear_before_reset = 1, direction = "bidirectional"> (frames, W, R, B)
        [max_0] m = ReduceMax <axes = [0], keepdims = 0> (y)
        [transpose_0] t = Transpose <perm = [1, 0, 2]> (m)
        [flatten_0] f = Flatten <axis = 1> (t)
        [gemm_0] scores = Gemm (f, V, C)
        """)


@graph(94, "tf2onnx", features=3, values="x")
def reversed_rnn(w: Weights) -> ModelProto:
    """A backward RNN by hand: the steps are flipped by a Slice with a step of -1."""
    w.recurrent(4, 3, 6).named("V 6x2")
    w |= {"lowest": integers(np.iinfo(np.int64).min + 1)}
    return w.model("""
        backward (float[N,T,3] x) => (float[N,2] y)
        ["flip/Slice"] flipped = Slice (x, minus_one, lowest, axis1, minus_one)
        ["rnn/Transpose"] t = Transpose <perm = [1, 0, 2]> (flipped)
        ["rnn/LSTM"] states, h, c = LSTM <hidden_size = 6> (t, W, R, B)
        ["rnn/Squeeze"] s = Squeeze (h, axis0)
        ["out/MatMul"] y = MatMul (s, V)
        """)


@graph(95, "optimum", 14, vocabulary=40, longest=128, values="input_ids")
def small_bert(w: Weights) -> ModelProto:
    """Tokens, learned positions cut to the width, one head, the answer read off at the first token."""
    w.named("table 40x8*1, positions 128x8, wq 8x8, wk 8x8, wv 8x8, V 3x8*1, C 3")
    w |= {"position_ids": np.arange(128, dtype=np.int64)[None], "root": scalar(math.sqrt(8))}
    return w.model("""
        bert (int64[batch,sequence] input_ids) => (float[batch,3] logits)
        ["/embeddings/Gather"] words = Gather (table, input_ids)
        ["/embeddings/Shape"] s = Shape (input_ids)
        ["/embeddings/Gather_1"] t = Gather <axis = 0> (s, one)
        ["/embeddings/Unsqueeze"] t1 = Unsqueeze (t, axis0)
        ["/embeddings/Slice"] ids = Slice (position_ids, axis0, t1, axis1)
        ["/embeddings/Gather_2"] places = Gather (positions, ids)
        ["/embeddings/Add"] e = Add (words, places)
        ["/encoder/query"] q = MatMul (e, wq)
        ["/encoder/key"] k = MatMul (e, wk)
        ["/encoder/value"] v = MatMul (e, wv)
        ["/encoder/Transpose"] kt = Transpose <perm = [0, 2, 1]> (k)
        ["/encoder/MatMul"] scores = MatMul (q, kt)
        ["/encoder/Div"] scaled = Div (scores, root)
        ["/encoder/Softmax"] weights = Softmax <axis = -1> (scaled)
        ["/encoder/MatMul_1"] context = MatMul (weights, v)
        ["/encoder/Add"] h = Add (context, e)
        ["/pooler/Gather"] first = Gather <axis = 1> (h, zero)
        ["/pooler/Tanh"] pooled = Tanh (first)
        ["/classifier/Gemm"] logits = Gemm <transB = 1> (pooled, V, C)
        """)


@graph(96, "pytorch", 20, features=4, per_step=True, values="x")
def step_tagger(w: Weights) -> ModelProto:
    """An answer for each step, each of which has heard the whole sequence."""
    w.recurrent(4, 4, 6, directions=2).named("V 12x3, C 3")
    return w.model("""
        main_graph (float[s77,s27,4] x) => (float[s77,s27,3] linear)
        [node_transpose] val_0 = Transpose <perm = [1, 0, 2]> (x)
        [node_lstm] val_1, val_2, val_3 = LSTM <direction = "bidirectional", hidden_size = 6> (val_0, W, R, B)
        [node_transpose_1] val_4 = Transpose <perm = [2, 0, 1, 3]> (val_1)
        [node_view] val_5 = Reshape (val_4, flat)
        [node_matmul] val_6 = MatMul (val_5, V)
        [node_linear] linear = Add (val_6, C)
        """)


@graph(97, "tf2onnx", 15, features=5, values="inputs")
def attention_pool(w: Weights) -> ModelProto:
    """A Keras attention layer: a softmax along the time, a weighted sum."""
    w.named("kernel 5x8, context 8x1, V 5x3")
    return w.model("""
        tf2onnx (float[N,T,5] inputs) => (float[N,3] Identity)
        ["attention/MatMul"] u = MatMul (inputs, kernel)
        ["attention/Tanh"] a = Tanh (u)
        ["attention/MatMul_1"] s = MatMul (a, context)
        ["attention/Softmax"] p = Softmax <axis = 1> (s)
        ["attention/mul"] weighted = Mul (inputs, p)
        ["attention/Sum"] z = ReduceSum <keepdims = 0> (weighted, axis1)
        ["dense/MatMul"] Identity = MatMul (z, V)
        """)


@graph(98, "pytorch", 13, features=4, channels_said=True, values="x")
def squeeze_excite(w: Weights) -> ModelProto:
    """A gate of each channel from its mean over time, in the middle; reflected edges in front."""
    w.named("k 8x4x5, b 8, down 2x8x1*1, down_bias 2, up 8x2x1*1, up_bias 8, k2 8x8x3, b2 8, V 3x8, C 3")
    w |= {"pads": integers(0, 0, 2, 0, 0, 2)}
    return w.model("""
        main_graph (float[batch,4,time] x) => (float[batch,3] y)
        ["/pad/Pad"] padded = Pad <mode = "edge"> (x, pads)
        ["/conv/Conv"] c = Conv <kernel_shape = [5]> (padded, k, b)
        ["/act/Elu"] a = Elu (c)
        ["/se/GlobalAveragePool"] g = GlobalAveragePool (a)
        ["/se/Conv"] d = Conv (g, down, down_bias)
        ["/se/Relu"] r = Relu (d)
        ["/se/Conv_1"] u = Conv (r, up, up_bias)
        ["/se/Sigmoid"] gate = Sigmoid (u)
        ["/se/Mul"] m = Mul (a, gate)
        ["/conv2/Conv"] c2 = Conv <kernel_shape = [3], pads = [1, 1], strides = [2]> (m, k2, b2)
        ["/GlobalMaxPool"] p = GlobalMaxPool (c2)
        ["/Flatten"] f = Flatten (p)
        ["/fc/Gemm"] y = Gemm <transB = 1> (f, V, C)
        """)


@graph(99, "pytorch", 11, features=4, shortest=3, values="x")
def top_three(w: Weights) -> ModelProto:
    """The three largest of each channel."""
    w.named("kernel 4x6, V 18x3*1")
    w |= {"three": integers(3)}
    return w.model("""
        torch_jit (float[batch,time,4] x) => (float[batch,3] y)
        [MatMul_0] h = MatMul (x, kernel)
        [Sigmoid_1] a = Sigmoid (h)
        [TopK_2] top, where = TopK <axis = 1, largest = 1, sorted = 1> (a, three)
        [Flatten_3] f = Flatten <axis = 1> (top)
        [MatMul_4] y = MatMul (f, V)
        """)


@graph(100, "tf2onnx", 15, features=4)
def scanned_rnn(w: Weights) -> ModelProto:
    """A recurrent cell of its own, in a Scan over the time."""
    w.named("inner 4x6, outer 6x6, V 6x2")
    w |= {"zero1": integers(0), "one1": integers(1), "six": integers(6)}
    return w.model("""
        scan (float[N,T,4] values) => (float[N,2] logits)
        [time_first] x = Transpose <perm = [1, 0, 2]> (values)
        [shape] s = Shape (values)
        [rows] b = Slice (s, zero1, one1)
        [state_shape] hs = Concat <axis = 0> (b, six)
        [start] h0 = ConstantOfShape (hs)
        [scan] h, ys = Scan <num_scan_inputs = 1, body = cell (float[N,6] before, float[N,4] step)
            => (float[N,6] after, float[N,6] shown)
            {
                c1 = MatMul (step, inner)
                c2 = MatMul (before, outer)
                c3 = Add (c1, c2)
                after = Tanh (c3)
                shown = Identity (after)
            }> (h0, x)
        [dense] logits = MatMul (h, V)
        """)


@graph(None, features=3, values="keras_tensor")
def keras_loop_gru() -> ModelProto:
    """Keras 3's GRU through tf2onnx: a Loop, because its reset is not found to be a layer's."""
    return KerasLoop("gru").model(seed=101)


@graph(None, features=3, values="keras_tensor")
def keras_masked_lstm() -> ModelProto:
    """Keras' `Masking(-9.0)` and LSTM through tf2onnx: a Loop whose states a mask of the values holds."""
    return KerasLoop("lstm", masked=-9.0).model(seed=102)


@graph(None, features=3, values="keras_tensor")
def keras_masked_gru() -> ModelProto:
    """Keras' masked GRU with `reset_after=False`."""
    return KerasLoop("gru, reset before", masked=-9.0, limit=False).model(seed=103)


@graph(None, features=3, values="keras_tensor")
def keras_two_cells() -> ModelProto:
    """Keras' `RNN([LSTMCell, LSTMCell])` behind `Masking(0.0)`: two cells in one Loop."""
    return KerasLoop("lstm", masked=0.0, doubled=True).model(seed=104)
