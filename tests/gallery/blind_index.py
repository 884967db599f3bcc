"""The gallery's models that know nothing of lengths: those that can be given lengths, and those that cannot.

Each torch module is a name in a file of `torch_blind/` or `torch_unmendable/`, as in `index`; its `forward` takes the
steps alone. Each ONNX model is a function of `onnx_blind.py` or `onnx_unmendable.py`, and has one
input. What a mended model must answer for a sequence is what the original answers for it alone, at its own length.

`test_blind_gallery_is_true.py` proves what is said here by running the models, without any checker.
"""

from __future__ import annotations

from typing import Any

from tests.gallery.index import Exhibit


def _torch_blind(name: str, **said: Any) -> Exhibit:
    return Exhibit("torch_blind", name, "uncheckable", second=None, reason=("length",), **said)


def _published(name: str, **said: Any) -> Exhibit:
    return _torch_blind(name, published=True, **said)


CHANNELS_FIRST: dict[str, Any] = {"channels_first": True, "channels_said": True}

TORCH_BLIND = (
    _published("attention_of_words", vocabulary=60),
    _published("bert_small", vocabulary=90, longest=128),
    _published("causal_eca", features=6),
    _published("causal_encoder", features=3, **CHANNELS_FIRST),
    _published("conformer", features=8),
    _published("conv_tran", features=3, longest=300, **CHANNELS_FIRST),
    _published("crnn", features=16, shortest=4),
    _published("deep_conv_lstm", features=6, shortest=17),
    _published("disjoint_cnn", features=4),
    _published("ecapa_tdnn", features=6),
    _published("fast_text", vocabulary=70),
    _published("fcn_wang", features=4),
    _published("generalised_mean", features=3, **CHANNELS_FIRST),
    _published("gru_fcn", features=1, **CHANNELS_FIRST),
    _published("inception_time", features=3, **CHANNELS_FIRST),
    _published("induced_attention", features=4),
    _published("lstm_fcn", features=4),
    _published("macnn", features=3),
    _published("mlstm_fcn", features=6),
    _published("ms_tcn", features=6, per_step=True, **CHANNELS_FIRST),
    _published("net_vlad", features=5),
    _published("omni_scale_cnn", features=3),
    _published("patch_tst", features=3, shortest=8, longest=519),
    _published("pyramidal_lstm", features=6, shortest=4),
    _published("recurrent_conv_text", vocabulary=50),
    _published("res_cnn", features=5, **CHANNELS_FIRST),
    _published("resnet_wang", features=5),
    _published("subsampled_shortcuts", features=3, **CHANNELS_FIRST),
    _published("tcn_locuslab", features=3, **CHANNELS_FIRST),
    _published("temporal_shift", features=4, per_step=True),
    _published("text_cnn", vocabulary=60, shortest=5),
    _published("tst_pooled", features=6, longest=256),
    _published("two_rnns_pooled", vocabulary=50),
    _published("variable_selection", features=4),
    _published("wave_net", features=2, **CHANNELS_FIRST),
    _published("x_vector", features=8, shortest=16),
    _published("xception_time", features=4),
    _published("xcm", features=5, **CHANNELS_FIRST),
    _torch_blind("attention_by_hand", features=5),
    _torch_blind("attention_pool", features=7),
    _torch_blind("attention_unmasked", features=6),
    _torch_blind("average_pools", features=5),
    _torch_blind("best_step", features=5),
    _torch_blind("bigru_final_states", features=5),
    _torch_blind("bilstm_last_output", features=6),
    _torch_blind("bilstm_tagger", vocabulary=40, per_step=True),
    _torch_blind("both_directions", features=5),
    _torch_blind("causal_attention_last", features=6, longest=300),
    _torch_blind("causal_mask_mean", features=4),
    _torch_blind("channels_first_mean", features=3, **CHANNELS_FIRST),
    _torch_blind("cls_token", features=5, longest=200),
    _torch_blind("conv_then_lstm", features=6),
    _torch_blind("cosine_basis", features=4),
    _torch_blind("covariance_pool", features=6),
    _torch_blind("cropped_by_padding", features=4, shortest=3),
    _torch_blind("dense_in_rows", features=6),
    _torch_blind("differences", features=5, shortest=2),
    _torch_blind("dilated_convs", features=6),
    _torch_blind("distance_penalty", features=5),
    _torch_blind("down_and_up", features=3, per_step=True),
    _torch_blind("each_variable_by_itself", features=4),
    _torch_blind("early_against_late", features=5, shortest=2),
    _torch_blind("first_and_last", features=5),
    _torch_blind("group_norm_convs", features=5),
    _torch_blind("gru_mean", features=7),
    _torch_blind("instance_norm_first", features=3, shortest=2, **CHANNELS_FIRST),
    _torch_blind("last_steps", features=5, shortest=4),
    _torch_blind("layer_norm_over_time", features=4),
    _torch_blind("learned_initial_state", features=4),
    _torch_blind("linear_attention", features=5),
    _torch_blind("local_attention", features=5),
    _torch_blind("logsumexp_pool", features=5),
    _torch_blind("lstm_attention_pool", features=6),
    _torch_blind("lstm_between_convs", features=4),
    _torch_blind("lstm_final_state", features=5),
    _torch_blind("max_pool_mlp", features=3),
    _torch_blind("max_pools", features=5, **CHANNELS_FIRST),
    _torch_blind("mean_and_max", vocabulary=64),
    _torch_blind("mean_in_front", features=8),
    _torch_blind("median_pool", features=5),
    _torch_blind("memory_of_the_mean", features=5, per_step=True),
    _torch_blind("mobile_net", features=6),
    _torch_blind("norm_pool", features=5),
    _torch_blind("normalised_over_time", features=4),
    _torch_blind("patches_filled_up", features=4),
    _torch_blind("peak_scaled", features=3),
    _torch_blind("pool_kernel_of_the_width", features=4),
    _torch_blind("pool_of_eight", features=4),
    _torch_blind("positions_as_share", features=4),
    _torch_blind("positions_from_the_end", features=5, longest=256),
    _torch_blind("query_pooling", features=6),
    _torch_blind("range_pool", features=4),
    _torch_blind("raw_wave", features=1, raw=True),
    _torch_blind("recurrence_plot", features=4),
    _torch_blind("reflect_padding", features=2, shortest=4),
    _torch_blind("relative_position_bias", features=6),
    _torch_blind("remaining_sum", features=4, per_step=True),
    _torch_blind("replicate_padding", features=4),
    _torch_blind("resampled_to_32", features=3),
    _torch_blind("reversed_by_index", features=5),
    _torch_blind("rnn_max", features=4),
    _torch_blind("root_of_squares", features=6),
    _torch_blind("rotary_attention", features=5),
    _torch_blind("sdpa_blocks", features=7),
    _torch_blind("sliding_windows", features=3, shortest=8),
    _torch_blind("softmax_gates", features=6),
    _torch_blind("softmax_over_all", features=5),
    _torch_blind("spectrogram_cnn", features=12, shortest=2),
    _torch_blind("squeeze_excite", features=4),
    _torch_blind("stacked_residual_lstm", features=9),
    _torch_blind("standardised_by_hand", features=4),
    _torch_blind("std_pool", features=6, shortest=2),
    _torch_blind("stretched_positions", features=5),
    _torch_blind("strided_convs", features=4),
    _torch_blind("sum_over_root", features=5),
    _torch_blind("there_and_back", features=3),
    _torch_blind("thirds", features=4, shortest=3),
    _torch_blind("time_first_lstm", features=5, time_first=True),
    _torch_blind("token_behind", features=4),
    _torch_blind("token_convs", vocabulary=60),
    _torch_blind("token_gru_last", vocabulary=50),
    _torch_blind("topk_pool", features=4, shortest=3),
    _torch_blind("transformer_mean", features=6, longest=500),
    _torch_blind("transformer_time_first", features=5, time_first=True),
    _torch_blind("trimmed_mean", features=4),
    _torch_blind("trimmed_states", features=5, shortest=3),
    _torch_blind("two_scales", features=4),
    _torch_blind("u_net", features=3, per_step=True),
    _torch_blind("valid_convs", features=3, shortest=11, **CHANNELS_FIRST),
    _torch_blind("variance_pool", features=6, **CHANNELS_FIRST),
    _torch_blind("vgg_ladder", features=2, shortest=8, **CHANNELS_FIRST),
    _torch_blind("width_as_feature", features=4),
)


def _torch_unmendable(name: str, *reason: str, **said: Any) -> Exhibit:
    return Exhibit("torch_unmendable", name, "uncheckable", second=None, reason=reason, **said)


TORCH_UNMENDABLE = (
    _torch_unmendable("attention_between_rows", "rows", features=6),
    _torch_unmendable("batch_first_forgotten", "rows", features=5),
    _torch_unmendable("batch_statistics", "rows", "training", features=5),
    _torch_unmendable("branch_on_values", "branch", "depends on", "control flow", features=4),
    _torch_unmendable("branch_on_width", "branches on the width", features=4),
    _torch_unmendable("chunks_of_eight", "chunk", "multiple", "divi", "reshape", features=3),
    _torch_unmendable("dropout_always_on", "random", "dropout", "twice", "same answer", features=6),
    _torch_unmendable("fixed_width_head", "width", features=3, longest=32),
    _torch_unmendable("fourier_mixing", "fft", "dft", "fourier", features=6),
    _torch_unmendable("mean_over_rows", "rows", features=4),
    _torch_unmendable("mixer_of_fixed_width", "width", features=5, longest=24),
    _torch_unmendable("noise_added", "random", "twice", "same answer", features=4),
    _torch_unmendable("python_loop", "loop", "width", features=4),
    _torch_unmendable("ranked_among_rows", "rows", features=4),
    _torch_unmendable("softmax_over_rows", "rows", features=5),
    _torch_unmendable("steps_chosen_by_value", "values", "depends on", "nonzero", "boolean", features=5),
)


def _onnx_blind(name: str, **said: Any) -> Exhibit:
    return Exhibit("onnx_blind", name, "uncheckable", second=None, reason=("length",), **said)


ONNX_BLIND = (
    _onnx_blind("attention_pool", features=5, values="inputs"),
    _onnx_blind("average_pools", features=4, values="x", **CHANNELS_FIRST),
    _onnx_blind("bilstm_last", features=6, values="input"),
    _onnx_blind("conv1d_as_2d", features=4, values="input_1"),
    _onnx_blind("conv_bn_global_average", features=3, values="x", **CHANNELS_FIRST),
    _onnx_blind("deviation", features=5, shortest=2, values="x"),
    _onnx_blind("encoder_block", features=6, values="x"),
    _onnx_blind("group_norm", features=5, values="x"),
    _onnx_blind("gru_final_state", features=5, values="input_1"),
    _onnx_blind("gru_max_time_first", features=5, time_first=True, values="frames"),
    _onnx_blind("instance_norm", features=4, values="series"),
    _onnx_blind("keras_loop_gru", features=3, values="keras_tensor"),
    _onnx_blind("keras_masked_gru", features=3, values="keras_tensor"),
    _onnx_blind("keras_masked_lstm", features=3, values="keras_tensor"),
    _onnx_blind("keras_two_cells", features=3, values="keras_tensor"),
    _onnx_blind("last_step_sliced", features=4, values="input_1"),
    _onnx_blind("max_pools", features=5, values="x"),
    _onnx_blind("mean_max_attributes", features=4),
    _onnx_blind("mean_max_inputs", features=4),
    _onnx_blind("reversed_rnn", features=3, values="x"),
    _onnx_blind("scanned_rnn", features=4),
    _onnx_blind("small_bert", vocabulary=40, longest=128, values="input_ids"),
    _onnx_blind("squeeze_excite", features=4, values="x", **CHANNELS_FIRST),
    _onnx_blind("step_tagger", features=4, per_step=True, values="x"),
    _onnx_blind("top_three", features=4, shortest=3, values="x"),
)


def _onnx_unmendable(name: str, *reason: str, **said: Any) -> Exhibit:
    return Exhibit("onnx_unmendable", name, "uncheckable", second=None, reason=reason, **said)


ONNX_UNMENDABLE = (
    _onnx_unmendable("batch_statistics", "rows", "training", features=4, values="x", **CHANNELS_FIRST),
    _onnx_unmendable("compressed", "values", "depends on", "nonzero", features=4),
    _onnx_unmendable("frozen_flatten", "width", "fixed size", features=4, longest=20, values="input_1"),
    _onnx_unmendable("mean_over_rows", "rows", features=4),
    _onnx_unmendable("noise", "random", "twice", "same answer", features=4),
    _onnx_unmendable("resampled", "resize", "interpolate", "resampl", features=4, values="x", **CHANNELS_FIRST),
    _onnx_unmendable("spectrum", "fft", "dft", "fourier", features=1),
)

BLIND = TORCH_BLIND + ONNX_BLIND
"""What can be mended."""

UNMENDABLE = TORCH_UNMENDABLE + ONNX_UNMENDABLE
"""What cannot, and must be refused."""
