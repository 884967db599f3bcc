"""ONNX models through which no padding reaches an answer, in the dialects of several exporters."""

import numpy as np
from onnx import ModelProto

from tests.gallery.onnx_models import Weights, graph, integers, scalar


@graph(20, "onnxscript", features=6)
def lstm_int64_lengths(w: Weights) -> ModelProto:
    """The final states of both directions."""
    w.recurrent(4, 6, 8, directions=2).named("V 16x3")
    return w.model("""
        lstm (float[N,T,6] values, int64[N] lengths) => (float[N,3] logits)
        [lens] n = Cast <to = 6> (lengths)
        [time_first] x = Transpose <perm = [1, 0, 2]> (values)
        [lstm] y, y_h = LSTM <hidden_size = 8, direction = "bidirectional"> (x, W, R, B, n)
        [rows_first] h = Transpose <perm = [1, 0, 2]> (y_h)
        [concat] f = Flatten (h)
        [dense] logits = MatMul (f, V)
        """)


@graph(21, "pytorch", 14, features=4, time_first=True, values="input", second_name="input_lengths")
def gru_time_first(w: Weights) -> ModelProto:
    w.recurrent(3, 4, 8).named("weight 2x8, bias 2")
    return w.model("""
        gru (float[T,N,4] input, int32[N] input_lengths) => (float[N,2] output)
        [GRU_0] y, y_h = GRU <hidden_size = 8, linear_before_reset = 1> (input, W, R, B, input_lengths)
        [Squeeze_1] h = Squeeze (y_h, axis0)
        [Gemm_2] output = Gemm <transB = 1> (h, weight, bias)
        """)


@graph(22, "tf2onnx", 15, verdict="warning", features=5, second="mask", values="features", second_name="mask")
def float_mask_attention(w: Weights) -> ModelProto:
    """TensorFlow's additive mask: a billion below zero."""
    prefix = "StatefulPartitionedCall/classifier/attention/"
    w |= {
        f"{prefix}dense/kernel:0": w.normal(5, 8),
        f"{prefix}score/kernel:0": w.normal(8, 1),
        f"{prefix}out/kernel:0": w.normal(8, 4),
        "const_axis1": integers(1),
        "const_axis2": integers(2),
        "const_one": scalar(1),
        "const_big": scalar(-1e9),
    }
    return w.model(
        """
        tf2onnx (float[unk__1,unk__2,5] features, float[unk__1,unk__2] mask) => (float[unk__1,4] Identity)
        ["@dense/MatMul"] "@dense:0" = MatMul (features, "@dense/kernel:0")
        ["@Tanh"] "@Tanh:0" = Tanh ("@dense:0")
        ["@score/MatMul"] "@score:0" = MatMul ("@Tanh:0", "@score/kernel:0")
        ["@Squeeze"] "@Squeeze:0" = Squeeze ("@score:0", const_axis2)
        ["@sub"] "@sub:0" = Sub (const_one, mask)
        ["@mul"] "@mul:0" = Mul ("@sub:0", const_big)
        ["@add"] "@add:0" = Add ("@Squeeze:0", "@mul:0")
        ["@Softmax"] "@Softmax:0" = Softmax <axis = -1> ("@add:0")
        ["@ExpandDims"] "@ExpandDims:0" = Unsqueeze ("@Softmax:0", const_axis1)
        ["@MatMul"] "@MatMul:0" = MatMul ("@ExpandDims:0", "@Tanh:0")
        ["@Squeeze_1"] "@Squeeze_1:0" = Squeeze ("@MatMul:0", const_axis1)
        ["@out/MatMul"] Identity = MatMul ("@Squeeze_1:0", "@out/kernel:0")
        """.replace("@", prefix)
    )


@graph(23, "onnx.helper", features=4, second="mask", second_name="mask")
def bool_mask_mean(w: Weights) -> ModelProto:
    """Small enough to read."""
    return w.model("""
        mean (float[N,T,4] values, bool[N,T] mask) => (float[N,4] logits)
        [column] m = Unsqueeze (mask, axis2)
        [keep] x = Where (m, values, nought)
        [total] t = ReduceSum <keepdims = 0> (x, axis1)
        [ones] f = Cast <to = 1> (m)
        [count] n = ReduceSum <keepdims = 0> (f, axis1)
        [mean] logits = Div (t, n)
        """)


@graph(24, "pytorch", features=7, values="x", second_name="lens")
def packed_bilstm_attention(w: Weights) -> ModelProto:
    """torch's names; scores behind each length are minus infinity."""
    w.recurrent(4, 7, 6, directions=2).named("onnx::MatMul_51 12x1, fc.weight 3x12, fc.bias 3")
    w |= {"lowest": scalar(-np.inf)}
    return w.model("""
        main_graph (float[batch,seq,7] x, int32[batch] lens) => (float[batch,3] logits)
        ["/Transpose"] "/Transpose_output_0" = Transpose <perm = [1, 0, 2]> (x)
        ["/rnn/LSTM"] "/rnn/LSTM_output_0" = LSTM <hidden_size = 6, direction = "bidirectional">
            ("/Transpose_output_0", W, R, B, lens)
        ["/rnn/Transpose"] "/rnn/Transpose_output_0" = Transpose <perm = [2, 0, 1, 3]> ("/rnn/LSTM_output_0")
        ["/rnn/Reshape"] "/rnn/Reshape_output_0" = Reshape ("/rnn/Transpose_output_0", flat)
        ["/attn/MatMul"] "/attn/MatMul_output_0" = MatMul ("/rnn/Reshape_output_0", "onnx::MatMul_51")
        ["/Squeeze"] "/Squeeze_output_0" = Squeeze ("/attn/MatMul_output_0", axis2)
        ["/Shape"] "/Shape_output_0" = Shape <start = 1, end = 2> (x)
        ["/Squeeze_1"] "/Squeeze_1_output_0" = Squeeze ("/Shape_output_0")
        ["/Range"] "/Range_output_0" = Range (zero, "/Squeeze_1_output_0", one)
        ["/Cast"] "/Cast_output_0" = Cast <to = 7> (lens)
        ["/Unsqueeze"] "/Unsqueeze_output_0" = Unsqueeze ("/Cast_output_0", axis1)
        ["/GreaterOrEqual"] "/GreaterOrEqual_output_0" = GreaterOrEqual ("/Range_output_0", "/Unsqueeze_output_0")
        ["/Where"] "/Where_output_0" = Where ("/GreaterOrEqual_output_0", lowest, "/Squeeze_output_0")
        ["/Softmax"] "/Softmax_output_0" = Softmax <axis = 1> ("/Where_output_0")
        ["/Unsqueeze_1"] "/Unsqueeze_1_output_0" = Unsqueeze ("/Softmax_output_0", axis1)
        ["/MatMul"] "/MatMul_output_0" = MatMul ("/Unsqueeze_1_output_0", "/rnn/Reshape_output_0")
        ["/Squeeze_2"] "/Squeeze_2_output_0" = Squeeze ("/MatMul_output_0", axis1)
        ["/fc/Gemm"] logits = Gemm <transB = 1> ("/Squeeze_2_output_0", "fc.weight", "fc.bias")
        """)


@graph(25, "keras2onnx", 15, features=3, values="input_1", second_name="input_2")
def remasked_convolutions(w: Weights) -> ModelProto:
    w.named("kernel1 8x3x5, bias1 8, kernel2 8x8x3, bias2 8, dense_kernel 8x2")
    return w.model("""
        fcn (float[N,T,3] input_1, int64[N] input_2) => (float[N,2] dense)
        [shape] s = Shape <start = 1, end = 2> (input_1)
        [width] t = Squeeze (s)
        [steps] r = Range (zero, t, one)
        [column] n = Unsqueeze (input_2, axis1)
        [inside] inside_2d = Less (r, n)
        [inside_3d] m = Unsqueeze (inside_2d, axis1)
        [permute] x0 = Transpose <perm = [0, 2, 1]> (input_1)
        [mask_0] x1 = Where (m, x0, nought)
        [conv1d] x2 = Conv <kernel_shape = [5], pads = [2, 2]> (x1, kernel1, bias1)
        [relu] x3 = Relu (x2)
        [mask_1] x4 = Where (m, x3, nought)
        [conv1d_1] x5 = Conv <kernel_shape = [3], pads = [2, 2], dilations = [2]> (x4, kernel2, bias2)
        [relu_1] x6 = Relu (x5)
        [mask_2] x7 = Where (m, x6, nought)
        [sum] total = ReduceSum <keepdims = 0> (x7, axis2)
        [count] c = Cast <to = 1> (n)
        [average] mean = Div (total, c)
        [dense_matmul] dense = MatMul (mean, dense_kernel)
        """)


@graph(26, "optimum", vocabulary=40, second="mask", values="input_ids", second_name="attention_mask")
def token_mean(w: Weights) -> ModelProto:
    """Sentence embeddings, as served everywhere: two int64 inputs of one shape."""
    w.named("table 40x6, kernel 6x8, classifier 8x5")
    return w.model("""
        sentence (int64[batch,sequence] input_ids, int64[batch,sequence] attention_mask) => (float[batch,5] logits)
        ["embeddings/Gather"] e = Gather (table, input_ids)
        ["layer.0/MatMul"] h = MatMul (e, kernel)
        ["layer.0/Erf"] a = Erf (h)
        ["pooling/Cast"] f = Cast <to = 1> (attention_mask)
        ["pooling/Unsqueeze"] m = Unsqueeze (f, axis2)
        ["pooling/Mul"] z = Mul (a, m)
        ["pooling/ReduceSum"] t = ReduceSum <keepdims = 0> (z, axis1)
        ["pooling/ReduceSum_1"] n = ReduceSum <keepdims = 0> (m, axis1)
        ["pooling/Div"] p = Div (t, n)
        ["classifier/MatMul"] logits = MatMul (p, classifier)
        """)


@graph(27, "sherpa", features=4, per_step=True, values="x", second_name="x_lens")
def step_tagger(w: Weights) -> ModelProto:
    """One answer a step."""
    w.recurrent(3, 4, 5, directions=2).named("V 10x3")
    return w.model("""
        tagger (float[N,T,4] x, int32[N] x_lens) => (float[N,T,3] tags)
        [to_time_first] t = Transpose <perm = [1, 0, 2]> (x)
        [bigru] y = GRU <hidden_size = 5, direction = "bidirectional", linear_before_reset = 1> (t, W, R, B, x_lens)
        [to_rows_first] r = Transpose <perm = [2, 0, 1, 3]> (y)
        [join_directions] h = Reshape (r, flat)
        [head] tags = MatMul (h, V)
        """)


@graph(28, "tf2onnx", features=3, values="x", second_name="seq_len")
def reversed_by_length(w: Weights) -> ModelProto:
    """TensorFlow's way to run backwards: ReverseSequence, then a forward RNN with lengths."""
    w.recurrent(1, 3, 6).named("V 6x2")
    return w.model("""
        backward (float[N,T,3] x, int64[N] seq_len) => (float[N,2] y)
        ["reverse/ReverseSequence"] b = ReverseSequence <batch_axis = 0, time_axis = 1> (x, seq_len)
        ["rnn/Transpose"] t = Transpose <perm = [1, 0, 2]> (b)
        ["rnn/Cast"] n = Cast <to = 6> (seq_len)
        ["rnn/RNN"] states, last = RNN <hidden_size = 6> (t, W, R, B, n)
        ["rnn/Squeeze"] h = Squeeze (last, axis0)
        ["out/MatMul"] y = MatMul (h, V)
        """)


@graph(29, "onnx.helper", 16, features=5, second="mask", second_name="mask")
def masked_max(w: Weights) -> ModelProto:
    w.named("kernel 5x8, classifier 8x3")
    w |= {"low": scalar(np.finfo(np.float32).min)}
    return w.model("""
        segments (float[N,T,5] values, int32[N,T] mask) => (float[N,3] logits)
        [dense_0] d = MatMul (values, kernel)
        [selu] h = Selu (d)
        [mask_bool] b = Cast <to = 9> (mask)
        [mask_3d] m = Unsqueeze (b, axis2)
        [hide] z = Where (m, h, low)
        [max] p = ReduceMax <axes = [1], keepdims = 0> (z)
        [dense_1] logits = MatMul (p, classifier)
        """)


@graph(30, "pytorch", 20, verdict="warning", features=6, values="src", second_name="src_lengths")
def self_attention(w: Weights) -> ModelProto:
    """One transformer layer, pooled at the last valid step; opset 20."""
    w.named("w_in 6x8, w_q 8x8, w_k 8x8, w_v 8x8, w_out 8x4, ln_scale 8+1, ln_bias 8")
    w |= {"ones": integers(1), "low": scalar(np.finfo(np.float32).min)}
    return w.model("""
        encoder (float[N,T,6] src, int64[N] src_lengths) => (float[N,4] logits)
        [embed] x = MatMul (src, w_in)
        [to_q] q = MatMul (x, w_q)
        [to_k] k = MatMul (x, w_k)
        [to_v] v = MatMul (x, w_v)
        [k_transposed] kt = Transpose <perm = [0, 2, 1]> (k)
        [scores] s = MatMul (q, kt)
        [width] t1 = Shape <start = 1, end = 2> (src)
        [width_scalar] t = Squeeze (t1)
        [positions] r = Range (zero, t, one)
        [column] n = Unsqueeze (src_lengths, axis1)
        [key_valid] m = Less (r, n)
        [key_valid_3d] m3 = Unsqueeze (m, axis1)
        [masked_scores] sm = Where (m3, s, low)
        [weights] p = Softmax <axis = -1> (sm)
        [attended] o = MatMul (p, v)
        [residual] z = Add (x, o)
        [norm] y = LayerNormalization <axis = -1> (z, ln_scale, ln_bias)
        [act] g = Gelu (y)
        [last_index] i = Sub (n, ones)
        [last] l = GatherND <batch_dims = 1> (g, i)
        [head] logits = MatMul (l, w_out)
        """)


@graph(
    31, "cntk", features=4, second="mask", time_first=True, output="probabilities", values="signal", second_name="mask"
)
def mask_time_first(w: Weights) -> ModelProto:
    """Steps and mask both time first; answers with the weights as well, and with probabilities."""
    w.recurrent(4, 4, 6, directions=2).named("scorer 12x1, V 12x3")
    w |= {"flat_shape": integers(0, 0, -1), "low": scalar(-1e30)}
    return w.model("""
        vad (float[T,N,4] signal, float[T,N] mask) => (float[T,N] alignment, float[N,3] probabilities)
        [count] c = ReduceSum <keepdims = 0> (mask, axis0)
        [lens] n = Cast <to = 6> (c)
        [lstm] y = LSTM <hidden_size = 6, direction = "bidirectional"> (signal, W, R, B, n)
        [join] j = Transpose <perm = [0, 2, 1, 3]> (y)
        [flat] h = Reshape (j, flat_shape)
        [score] e3 = MatMul (h, scorer)
        [score_2d] e = Squeeze (e3, axis2)
        [on] b = Cast <to = 9> (mask)
        [hide] em = Where (b, e, low)
        [align] alignment = Softmax <axis = 0> (em)
        [align_3d] a3 = Unsqueeze (alignment, axis2)
        [weigh] z = Mul (a3, h)
        [context] g = ReduceSum <keepdims = 0> (z, axis0)
        [dense] d = MatMul (g, V)
        [softmax] probabilities = Softmax <axis = 1> (d)
        """)


@graph(
    60,
    "pytorch",
    verdict="warning",
    features=4,
    second="mask",
    channels_first=True,
    values="signal",
    second_name="signal_mask",
)
def channels_first_fcn(w: Weights) -> ModelProto:
    """Steps as [rows, features, width], as convolutional code has them."""
    w.named("k0 8x4x7, b0 8, k1 6x8x3, b1 6, V 6x3")
    return w.model("""
        fcn (float[batch,4,time] signal, float[batch,time] signal_mask) => (float[batch,3] logits)
        [unsqueeze] m = Unsqueeze (signal_mask, axis1)
        [mask_0] x0 = Mul (signal, m)
        [conv_0] c0 = Conv <pads = [3, 3]> (x0, k0, b0)
        [relu_0] r0 = Relu (c0)
        [mask_1] x1 = Mul (r0, m)
        [conv_1] c1 = Conv <pads = [1, 1]> (x1, k1, b1)
        [relu_1] r1 = Relu (c1)
        [mask_2] x2 = Mul (r1, m)
        [total] t = ReduceSum <keepdims = 0> (x2, axis2)
        [count] n = ReduceSum <keepdims = 0> (m, axis2)
        [mean] p = Div (t, n)
        [dense] logits = MatMul (p, V)
        """)


@graph(61, "pytorch", features=5, channels_said=True, per_step=True, values="x")
def channels_first_tagger(w: Weights) -> ModelProto:
    """Answers each step, with the classes before the steps; the number of features stands nowhere."""
    w.named("k 6x5x1, b 6, v 3x6x1")
    return w.model("""
        tagger (float[batch,channels,time] x, int64[batch] lengths) => (float[batch,3,time] logits)
        [conv] c = Conv (x, k, b)
        [tanh] t = Tanh (c)
        [head] logits = Conv (t, v)
        """)


@graph(62, "pytorch", features=6, second="padding-mask", values="src", second_name="src_key_padding_mask", named=True)
def padding_mask_max(w: Weights) -> ModelProto:
    """A mask that is true at padding."""
    w.named("W 6x8, V 8x2")
    w |= {"lowest": scalar(np.finfo(np.float32).min)}
    return w.model("""
        encoder (float[N,T,6] src, bool[N,T] src_key_padding_mask) => (float[N,2] logits)
        [linear] h = MatMul (src, W)
        [unsqueeze] m = Unsqueeze (src_key_padding_mask, axis2)
        [fill] f = Where (m, lowest, h)
        [max] p = ReduceMax <axes = [1], keepdims = 0> (f)
        [dense] logits = MatMul (p, V)
        """)


@graph(63, "pytorch", features=1, raw=True, values="wave", second_name="wave_lengths")
def raw_samples(w: Weights) -> ModelProto:
    """One number a step, without an axis for it."""
    w.recurrent(3, 1, 6).named("V 6x2")
    return w.model("""
        wave (float[N,T] wave, int32[N] wave_lengths) => (float[N,2] logits)
        [time_first] t = Transpose <perm = [1, 0]> (wave)
        [unsqueeze] x = Unsqueeze (t, axis2)
        [gru] y, y_h = GRU <hidden_size = 6, linear_before_reset = 1> (x, W, R, B, wave_lengths)
        [last] h = Squeeze (y_h, axis0)
        [dense] logits = MatMul (h, V)
        """)


@graph(64, "pytorch", features=4, second="both", third="mask")
def lengths_and_mask(w: Weights) -> ModelProto:
    """A recurrent layer by the lengths, an attention by the mask."""
    w.recurrent(4, 4, 6).named("U 6x1, V 6x3")
    w |= {"lowest": scalar(np.finfo(np.float32).min)}
    return w.model("""
        both (float[N,T,4] values, int64[N] lengths, bool[N,T] mask) => (float[N,3] logits)
        [lens] n = Cast <to = 6> (lengths)
        [time_first] x = Transpose <perm = [1, 0, 2]> (values)
        [lstm] y = LSTM <hidden_size = 6> (x, W, R, B, n)
        [one_direction] s = Squeeze (y, axis1)
        [rows_first] h = Transpose <perm = [1, 0, 2]> (s)
        [score] e = MatMul (h, U)
        [unsqueeze] m = Unsqueeze (mask, axis2)
        [fill] f = Where (m, e, lowest)
        [softmax] a = Softmax <axis = 1> (f)
        [weigh] g = Mul (a, h)
        [pool] p = ReduceSum <keepdims = 0> (g, axis1)
        [dense] logits = MatMul (p, V)
        """)
