"""ONNX models through which padding reaches an answer, in the dialects of several exporters."""

import numpy as np
from onnx import ModelProto

from tests.gallery.onnx_models import Weights, graph, integers, scalar


@graph(0, "pytorch", operator="/lstm/LSTM", features=6, values="x")
def plain_bilstm(w: Weights) -> ModelProto:
    """What torch's exporters make of an unpacked bidirectional LSTM: no sequence_lens."""
    w.recurrent(4, 6, 8, directions=2).named("fc.weight 3x16, fc.bias 3")
    return w.model("""
        main_graph (float[batch,seq_len,6] x, int64[batch] lengths) => (float[batch,3] output)
        ["/lstm/Transpose"] "/lstm/Transpose_output_0" = Transpose <perm = [1, 0, 2]> (x)
        ["/lstm/LSTM"] "/lstm/LSTM_output_0" = LSTM <hidden_size = 8, direction = "bidirectional">
            ("/lstm/Transpose_output_0", W, R, B)
        ["/lstm/Transpose_1"] "/lstm/Transpose_1_output_0" = Transpose <perm = [2, 0, 1, 3]> ("/lstm/LSTM_output_0")
        ["/lstm/Reshape"] "/lstm/Reshape_output_0" = Reshape ("/lstm/Transpose_1_output_0", flat)
        ["/Shape"] "/Shape_output_0" = Shape <start = 1, end = 2> (x)
        ["/Squeeze"] "/Squeeze_output_0" = Squeeze ("/Shape_output_0")
        ["/Range"] "/Range_output_0" = Range (zero, "/Squeeze_output_0", one)
        ["/Unsqueeze"] "/Unsqueeze_output_0" = Unsqueeze (lengths, axis1)
        ["/Less"] "/Less_output_0" = Less ("/Range_output_0", "/Unsqueeze_output_0")
        ["/Unsqueeze_1"] "/Unsqueeze_1_output_0" = Unsqueeze ("/Less_output_0", axis2)
        ["/Where"] "/Where_output_0" = Where ("/Unsqueeze_1_output_0", "/lstm/Reshape_output_0", nought)
        ["/ReduceSum"] "/ReduceSum_output_0" = ReduceSum <keepdims = 0> ("/Where_output_0", axis1)
        ["/Cast"] "/Cast_output_0" = Cast <to = 1> ("/Unsqueeze_output_0")
        ["/Div"] "/Div_output_0" = Div ("/ReduceSum_output_0", "/Cast_output_0")
        ["/fc/Gemm"] output = Gemm <transB = 1> ("/Div_output_0", "fc.weight", "fc.bias")
        """)


@graph(1, "onnx.helper", 14, operator="average", features=4)
def mean_over_time(w: Weights) -> ModelProto:
    """The lengths stop at the LSTM."""
    w.recurrent(4, 4, 8).named("V 8x2")
    return w.model("""
        lstm_mean (float[N,T,4] values, int32[N] lengths) => (float[N,2] logits)
        [to_time_first] x = Transpose <perm = [1, 0, 2]> (values)
        [lstm] y = LSTM <hidden_size = 8> (x, W, R, B, lengths)
        [drop_direction] h = Squeeze (y, axis1)
        [average] pooled = ReduceMean <axes = [0], keepdims = 0> (h)
        [classify] logits = MatMul (pooled, V)
        """)


@graph(2, "tf2onnx", 15, operator="attention/Softmax", features=5, second="mask", values="inputs", second_name="mask")
def softmax_before_mask(w: Weights) -> ModelProto:
    """A TensorFlow attention layer that masks its weights, not its scores."""
    prefix = "StatefulPartitionedCall/model/attention/"
    w |= {
        f"{prefix}w:0": w.normal(5, 1),
        f"{prefix}dense:0": w.normal(5, 3),
        "const_axis1": integers(1),
        "const_axis2": integers(2),
    }
    return w.model(
        """
        tf2onnx (float[unk__10,unk__11,5] inputs, float[unk__10,unk__11] mask) => (float[unk__10,3] Identity)
        ["@Tensordot/MatMul"] "@Tensordot:0" = MatMul (inputs, "@w:0")
        ["@Squeeze"] "@Squeeze:0" = Squeeze ("@Tensordot:0", const_axis2)
        ["@Softmax"] "@Softmax:0" = Softmax <axis = 1> ("@Squeeze:0")
        ["@mul"] "@mul:0" = Mul ("@Softmax:0", mask)
        ["@ExpandDims"] "@ExpandDims:0" = Unsqueeze ("@mul:0", const_axis1)
        ["@MatMul"] "@MatMul:0" = MatMul ("@ExpandDims:0", inputs)
        ["@Squeeze_1"] "@Squeeze_1:0" = Squeeze ("@MatMul:0", const_axis1)
        ["@dense/MatMul"] Identity = MatMul ("@Squeeze_1:0", "@dense:0")
        """.replace("@", prefix)
    )


@graph(3, "espnet_onnx", operator="gru_0", features=5, time_first=True, values="frames", second_name="frame_lengths")
def final_state_time_first(w: Weights) -> ModelProto:
    """A GRU's final state after all padding; the lengths only scale it."""
    w.recurrent(3, 5, 10).named("V 11x4*1, C 4")
    return w.model("""
        gru_cls (float[time,batch,5] frames, int64[batch] frame_lengths) => (float[batch,4] scores)
        [gru_0] y, y_h = GRU <hidden_size = 10, linear_before_reset = 1> (frames, W, R, B)
        [squeeze_0] h = Squeeze (y_h, axis0)
        [cast_0] n = Cast <to = 1> (frame_lengths)
        [log_0] log_n = Log (n)
        [unsqueeze_0] column = Unsqueeze (log_n, axis1)
        [concat_0] both = Concat <axis = 1> (h, column)
        [gemm_0] scores = Gemm (both, V, C)
        """)


@graph(4, "keras2onnx", 13, operator="conv1d_1", features=3, second="mask", values="input_1", second_name="input_mask")
def second_convolution(w: Weights) -> ModelProto:
    """The first convolution's bias stands in the padding when the second one comes by."""
    w.named("kernel1 8x3x3, bias1 8+0.5, kernel2 8x8x3, bias2 8, dense_kernel 8x2")
    return w.model("""
        model_1 (float[N,T,3] input_1, float[N,T] input_mask) => (float[N,2] dense)
        [mask_expand] m = Unsqueeze (input_mask, axis2)
        [masking] x0 = Mul (input_1, m)
        [conv1d_transpose] x1 = Transpose <perm = [0, 2, 1]> (x0)
        [conv1d] x2 = Conv <kernel_shape = [3], pads = [1, 1]> (x1, kernel1, bias1)
        [conv1d_relu] x3 = Relu (x2)
        [conv1d_1] x4 = Conv <kernel_shape = [3], pads = [1, 1]> (x3, kernel2, bias2)
        [conv1d_1_relu] x5 = Relu (x4)
        [conv1d_1_transpose] x6 = Transpose <perm = [0, 2, 1]> (x5)
        [masking_1] x7 = Mul (x6, m)
        [pool_sum] total = ReduceSum <keepdims = 0> (x7, axis1)
        [pool_count] count = ReduceSum <keepdims = 0> (m, axis1)
        [pool_div] mean = Div (total, count)
        [dense_matmul] dense = MatMul (mean, dense_kernel)
        """)


@graph(5, "pytorch", 13, operator="Gather_4", features=4, values="input")
def last_step(w: Weights) -> ModelProto:
    """`output[:, -1]` of a one-way LSTM."""
    w.recurrent(4, 4, 8).named("weight 3x8, bias 3")
    w |= {"minus_one": scalar(-1, np.int64)}
    return w.model("""
        torch_jit (float[N,T,4] input, int32[N] lengths) => (float[N,3] output)
        [Transpose_0] x = Transpose <perm = [1, 0, 2]> (input)
        [LSTM_1] y = LSTM <hidden_size = 8> (x, W, R, B)
        [Squeeze_2] h = Squeeze (y, axis1)
        [Transpose_3] out = Transpose <perm = [1, 0, 2]> (h)
        [Gather_4] last = Gather <axis = 1> (out, minus_one)
        [Gemm_5] output = Gemm <transB = 1> (last, weight, bias)
        """)


@graph(
    6,
    "optimum",
    operator="pooler/ReduceMax",
    vocabulary=30,
    second="mask",
    values="input_ids",
    second_name="attention_mask",
)
def zeroed_max(w: Weights) -> ModelProto:
    """Tokens; padding is multiplied to zero and then wins the maximum."""
    w.named("table 30x6, kernel 6x8, classifier 8x4")
    w |= {"axis": integers(2)}
    return w.model("""
        text_max (int64[batch,sequence] input_ids, int64[batch,sequence] attention_mask) => (float[batch,4] logits)
        ["embeddings/Gather"] e = Gather (table, input_ids)
        ["encoder/MatMul"] h = MatMul (e, kernel)
        ["encoder/Tanh"] a = Tanh (h)
        ["pooler/Cast"] m = Cast <to = 1> (attention_mask)
        ["pooler/Unsqueeze"] m3 = Unsqueeze (m, axis)
        ["pooler/Mul"] z = Mul (a, m3)
        ["pooler/ReduceMax"] p = ReduceMax <axes = [1], keepdims = 0> (z)
        ["classifier/MatMul"] logits = MatMul (p, classifier)
        """)


@graph(7, "onnxscript", operator="count_used", features=4)
def guessed_lengths(w: Weights) -> ModelProto:
    """Counts the steps that are not all zero, and believes that rather than the input."""
    w.recurrent(4, 4, 6, directions=2).named("V 12x2*2")
    return w.model("""
        guess (float[N,T,4] values, int64[N] lengths) => (float[N,2] logits)
        [magnitude] a = Abs (values)
        [largest] m = ReduceMax <axes = [2], keepdims = 0> (a)
        [used] s = Sign (m)
        [count_used] c = ReduceSum <keepdims = 0> (s, axis1)
        [as_int] n = Cast <to = 6> (c)
        [to_time_first] x = Transpose <perm = [1, 0, 2]> (values)
        [bilstm] y, y_h = LSTM <hidden_size = 6, direction = "bidirectional"> (x, W, R, B, n)
        [rows_first] h = Transpose <perm = [1, 0, 2]> (y_h)
        [flatten] f = Flatten (h)
        [given] g = Cast <to = 1> (lengths)
        [given_column] column = Unsqueeze (g, axis1)
        [weigh] scaled = Div (f, column)
        [dense] logits = MatMul (scaled, V)
        """)


@graph(8, "pytorch", operator="inorm", features=4, second="mask", values="series", second_name="valid_mask")
def instance_norm(w: Weights) -> ModelProto:
    """Statistics over all of the width."""
    w.named("kernel 4x8, scale 8+1, shift 8, classifier 8x3")
    w |= {"low": scalar(-1e9)}
    return w.model("""
        norm (float[N,T,4] series, bool[N,T] valid_mask) => (float[N,3] y)
        [project] h = MatMul (series, kernel)
        [channels_first] c = Transpose <perm = [0, 2, 1]> (h)
        [inorm] n = InstanceNormalization <epsilon = 0.001> (c, scale, shift)
        [act] a = Relu (n)
        [mask_axis] m = Unsqueeze (valid_mask, axis1)
        [hide] z = Where (m, a, low)
        [pool] p = ReduceMax <axes = [2], keepdims = 0> (z)
        [out] y = MatMul (p, classifier)
        """)


@graph(9, "tf2onnx", operator="flip/Slice", features=3, values="x", second_name="seq_len")
def whole_width_reversed(w: Weights) -> ModelProto:
    """A backward RNN over the flipped sequence; the flip starts in the padding."""
    w.recurrent(1, 3, 6).named("V 6x2")
    w |= {"lowest": integers(np.iinfo(np.int64).min + 1)}
    return w.model("""
        backward (float[N,T,3] x, int64[N] seq_len) => (float[N,2] y)
        ["flip/Slice"] flipped = Slice (x, minus_one, lowest, axis1, minus_one)
        ["rnn/Transpose"] t = Transpose <perm = [1, 0, 2]> (flipped)
        ["rnn/RNN"] states = RNN <hidden_size = 6> (t, W, R, B)
        ["rnn/Squeeze"] h = Squeeze (states, axis1)
        ["back/Slice"] b = Slice (h, minus_one, lowest, axis0, minus_one)
        ["first/Gather"] f = Gather <axis = 0> (b, zero)
        ["length/Cast"] n = Cast <to = 1> (seq_len)
        ["length/Sqrt"] q = Sqrt (n)
        ["length/Unsqueeze"] column = Unsqueeze (q, axis1)
        ["scale/Div"] s = Div (f, column)
        ["out/MatMul"] y = MatMul (s, V)
        """)


@graph(10, "onnxruntime.quantization", operator="quantize", features=6, second="mask", second_name="mask")
def one_scale_for_the_batch(w: Weights) -> ModelProto:
    """Dynamic quantisation: the loudest row sets everybody's step size."""
    w |= {
        "kernel": np.random.default_rng(10).integers(-100, 100, size=(6, 3)).astype(np.int8),
        "kernel_zero": scalar(0, np.int8),
        "kernel_scale": scalar(0.01),
    }
    return w.model("""
        quantized (float[N,T,6] values, float[N,T] mask) => (float[N,3] logits)
        [mask_column] m = Unsqueeze (mask, axis2)
        [zero_padding] x = Mul (values, m)
        [quantize] q, q_scale, q_zero = DynamicQuantizeLinear (x)
        [matmul_int] i = MatMulInteger (q, kernel, q_zero, kernel_zero)
        [as_float] f = Cast <to = 1> (i)
        [both_scales] s = Mul (q_scale, kernel_scale)
        [dequantize] h = Mul (f, s)
        [total] t = ReduceSum <keepdims = 0> (h, axis1)
        [count] n = ReduceSum <keepdims = 0> (m, axis1)
        [mean] logits = Div (t, n)
        """)


@graph(11, "skl2onnx", operator="future", features=3, per_step=True)
def backward_cumulative_sum(w: Weights) -> ModelProto:
    """Each step's answer holds the sum of all that follows, padding included."""
    w.named("kernel 3x2")
    w |= {"axis": scalar(1, np.int64), "axes12": integers(1, 2)}
    return w.model("""
        to_go (float[N,T,3] values, int32[N] lengths) => (float[N,T,2] logits)
        [dense] h = MatMul (values, kernel)
        [future] c = CumSum <reverse = 1> (h, axis)
        [lengths_float] n = Cast <to = 1> (lengths)
        [lengths_3d] n3 = Unsqueeze (n, axes12)
        [scaled] s = Div (c, n3)
        [act] logits = Tanh (s)
        """)


@graph(
    65, "pytorch", operator="gap/mean", features=5, second="mask", channels_first=True, values="x", second_name="mask"
)
def channels_first_mean(w: Weights) -> ModelProto:
    """Steps as [rows, features, width], and a mean over the width."""
    w.named("k 8x5x1, V 8x3")
    return w.model("""
        resnet (float[N,5,T] x, bool[N,T] mask) => (float[N,3] logits)
        [float_mask] f = Cast <to = 1> (mask)
        [unsqueeze] m = Unsqueeze (f, axis1)
        [masked] z = Mul (x, m)
        [conv] c = Conv (z, k)
        [relu] r = Relu (c)
        ["gap/mean"] p = ReduceMean <axes = [2], keepdims = 0> (r)
        [dense] logits = MatMul (p, V)
        """)
