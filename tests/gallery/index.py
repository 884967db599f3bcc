"""The gallery's catalogue: models as their users wrote them, and the right verdict on each.

Each torch model is a name in a file of `torch_leaking/`, `torch_sound/` or `torch_refused/`: a factory that takes
nothing and seeds itself. Each ONNX model is a function of `onnx_leaking.py`, `onnx_sound.py` or `onnx_refused.py` that
gives a `ModelProto`.

What counts as the operator where a leak begins: the first one, in the order of execution, with an output that differs
at a valid position, or as a whole where it has no time axis, and whose difference reaches an answer. The last clause
matters for values that differ and are thrown away (the final state of the LSTM in `last_step`) and for those whose
difference is undone (the order that `pack_padded_sequence` sorts by).

`test_gallery_is_true.py` and `test_refusals_are_true.py` prove the verdicts by running the models, without any checker.
"""

from __future__ import annotations

import ast
import functools
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).parent
MARKER = "# leak"

Verdict = Literal["leak", "sound", "warning", "uncheckable"]
"""`warning`: only NaN, Inf or +-1e30 in the padding makes a difference."""


@functools.cache
def torch_sources(room: str) -> dict[str, tuple[Path, range]]:
    """Where each torch model of a room stands: its file, and its lines, from behind those of the model before."""
    found = {}
    for path in sorted((HERE / room).glob("*.py")):
        body = ast.parse(path.read_text()).body
        calls = [node for node in body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)]
        made = {call.value.args[1].id: call.targets[0].id for call in calls}
        start = 0
        for node in body:
            factory = isinstance(node, ast.FunctionDef) and not node.args.args
            name = node.name if factory else made.get(getattr(node, "name", ""))
            if name is not None:
                found[name] = path, range(start, node.end_lineno)
                start = node.end_lineno
    return found


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One model and what a right report says about it.

    Attributes:
        room: `torch_` or `onnx_`, and `leaking`, `sound`, `refused`, `blind` or `unmendable`.
        name: The factory's, or for ONNX the function's.
        verdict: The right one.
        operator: For a leak: a right answer names an operator that contains at least one of these (a module path, a
            torch function, an ONNX node). `last_step` is told by its line alone, an index having many names.
        features: Numbers a step, or None for a token model.
        vocabulary: Number of token ids, for a token model.
        second: What the model takes beside the steps; None where it takes neither, or does not say which.
        third: The mask, for one that takes lengths and a mask.
        arguments: The names by which it is called, the steps first, where that is not by place.
        time_first: Steps come as `[width, rows, features]`.
        channels_first: Steps come as `[rows, features, width]`, and answers a step as `[rows, classes, width]`.
        channels_said: That has to be said: it cannot be read off a graph.
        raw: Steps come as `[rows, width]`, without the axis of their one feature.
        output: The name or index of the logits where the model answers with several.
        per_step: The logits are `[rows, width, classes]`.
        shortest: The module raises for a lone sequence shorter than this, or answers NaN.
        longest: It raises for a wider batch than this: the size of its table of positions, or its only width.
        reason: For an uncheckable one: words of which a right reason contains at least one, in small letters. For one
            that cannot be mended: of the reason why not.
        values: ONNX: the name of the input with the steps.
        second_name: ONNX: the name of the input with the lengths or the mask.
        named: What the inputs are has to be said: it cannot be read off the target.
        published: Built after the published definition of an architecture.
    """

    room: str
    name: str
    verdict: Verdict
    operator: tuple[str, ...] = ()
    features: int | None = None
    vocabulary: int | None = None
    second: Literal["lengths", "mask", "padding-mask", "both"] | None = "lengths"
    third: str | None = None
    arguments: tuple[str, ...] = ()
    time_first: bool = False
    channels_first: bool = False
    channels_said: bool = False
    raw: bool = False
    output: str | int | None = None
    per_step: bool = False
    shortest: int = 1
    longest: int | None = None
    reason: tuple[str, ...] = ()
    values: str = "values"
    second_name: str = "lengths"
    named: bool = False
    published: bool = False

    @property
    def is_torch(self) -> bool:
        """Whether the target is a torch factory; else it is built as an ONNX file."""
        return self.room.startswith("torch")

    @property
    def target(self) -> str:
        """`package.module:factory`."""
        file = f".{self.file.stem}" if self.is_torch else ""
        return f"tests.gallery.{self.room}{file}:{self.name}"

    @property
    def file(self) -> Path:
        """The source that the model is written in."""
        return torch_sources(self.room)[self.name][0] if self.is_torch else HERE / f"{self.room}.py"

    @property
    def line(self) -> int | None:
        """Where the leak begins: the line of a torch source that ends with the marker; None for all others."""
        if not self.is_torch:
            return None
        file, own = torch_sources(self.room)[self.name]
        lines = file.read_text().splitlines()
        marked = [number + 1 for number in own if lines[number].endswith(MARKER)]
        if len(marked) != (1 if self.verdict == "leak" else 0):
            raise ValueError(f"{self}: {len(marked)} lines end with '{MARKER}'")
        return marked[0] if marked else None

    @property
    def options(self) -> list[str]:
        """What `lengthwise check` has to be told beside the target."""
        said: dict[str, object] = {}
        if self.is_torch and self.features is not None:
            said["--features"] = self.features
        if self.vocabulary is not None:
            said["--vocabulary"] = self.vocabulary
        if self.output is not None:
            said["--output"] = self.output
        if self.second == "padding-mask" or (self.named and self.is_torch):
            said["--second"] = self.second
        elif self.named:
            said |= {"--values": self.values, f"--{self.second}": self.second_name}
        if self.channels_said and not self.is_torch:
            said["--features"] = self.features
        flags = ["--time-first"] * self.time_first + ["--channels-first"] * self.channels_said
        return [str(word) for option in said.items() for word in option] + flags

    def make(self) -> Any:
        """The model: a torch module, in training mode as its factory leaves it, or a `ModelProto`."""
        module, _, factory = self.target.partition(":")
        return getattr(importlib.import_module(module), factory)()

    def save(self, folder: Path) -> Path:
        """Writes an ONNX model as a file, and says where."""
        path = folder / f"{self.name}.onnx"
        path.write_bytes(self.make().SerializeToString())
        return path

    def __str__(self) -> str:
        return f"{self.room}/{self.name}"


def _torch_leak(name: str, *operator: str, **said: Any) -> Exhibit:
    return Exhibit("torch_leaking", name, "leak", operator, **said)


TORCH_LEAKING = (
    _torch_leak("adaptive_pool", "pool", features=6, second="mask"),
    _torch_leak("batch_axis_recurrence", "lstm", features=5, second="mask"),
    _torch_leak("batch_first_forgotten", "mha", "multi_head_attention", features=6, second="mask"),
    _torch_leak("batch_statistics", "batch_norm", "input_norm", features=6, shortest=2),
    _torch_leak("batchnorm_shifts_zeros", "block2", features=4, second="mask"),
    _torch_leak("bias_after_mask", "sum", features=10),
    _torch_leak("bilstm_unpacked", "lstm", features=12),
    _torch_leak("conv_reads_padding", "conv1", features=3),
    _torch_leak("conv_without_remask", "convs.1", features=6),
    _torch_leak(
        "channels_first_global_mean", "mean", features=5, second="mask", channels_first=True, channels_said=True
    ),
    _torch_leak("chunk_means", "mean", features=4),
    _torch_leak("chunks_into_features", "lstm", features=5),
    _torch_leak("cross_batch_norm", "mean", features=10),
    _torch_leak("final_hidden_unpacked", "gru", features=20),
    _torch_leak("flip_for_reverse", "flip", features=5),
    _torch_leak("float_key_padding_mask", "self_attention", "multi_head_attention", "scaled_dot", features=5),
    _torch_leak("equal_lengths_unmasked", "mean", features=5),
    _torch_leak("fourier_mixing", "fft", features=6, second="mask"),
    _torch_leak("gated_sum", "einsum", "bmm", "sum", features=9),
    _torch_leak("global_scale", "max", features=6, second="mask"),
    _torch_leak("group_norm", "group_norm", "layers.1", features=9),
    _torch_leak("hidden_viewed_wrong", "reshape", "view", "clone", features=6),
    _torch_leak("instance_norm", "instance_norm", "norm", features=2, second="mask", shortest=2),
    _torch_leak("inverted_mask", "softmax", "matmul", features=6, second="mask"),
    _torch_leak("last_step", features=6),
    _torch_leak("lone_row_unpacked", "lstm", features=6),
    _torch_leak("layernorm_over_time", "layer_norm", features=3, second="mask"),
    _torch_leak("lengths_from_zeros", "sum", features=12),
    _torch_leak("masked_keys_plain_mean", "mean", features=8),
    _torch_leak("max_over_width", "max", features=8),
    _torch_leak("mean_over_longest", "max", "div", features=5),
    _torch_leak("mean_over_width", "mean", features=5),
    _torch_leak("median_baseline", "median", features=2, second="mask"),
    _torch_leak("mha_without_mask", "blocks.0.attn", "multi_head_attention", "scaled_dot", features=6, second="mask"),
    _torch_leak("one_step_too_far", "clamp", "getitem", "index", features=4),
    _torch_leak("padded_in_front", "gru", features=5),
    _torch_leak("padded_to_chunks", "lstm", features=6),
    _torch_leak("padding_mask_ignored_by_pool", "max", features=6, second="padding-mask", named=True),
    _torch_leak("padding_idx_with_positions", "sum", vocabulary=50, second="mask"),
    _torch_leak("pooled_in_pairs", "max_pool", features=4),
    _torch_leak("position_over_longest", "max", "div", features=2, named=True),
    _torch_leak("relative_position", "linspace", features=3),
    _torch_leak("remaining_sum", "sum", features=4, per_step=True),
    _torch_leak("resampled", "interpolate", "upsample", features=3, second="mask"),
    _torch_leak("rolled_difference", "roll", features=3),
    _torch_leak("scores_multiplied_by_mask", "softmax", features=4, second="mask"),
    _torch_leak("second_rnn_unpacked", "lstm2", features=8),
    _torch_leak("similarity_profile", "mean", features=6, second="mask"),
    _torch_leak("softmax_before_mask", "softmax", features=7, second="mask"),
    _torch_leak("softmax_over_rows", "softmax", features=6, second="mask"),
    _torch_leak("sorted_never_unsorted", "sort", features=8),
    _torch_leak("spectrogram_cnn", "pool", "gap", features=8, second="mask"),
    _torch_leak("squeeze_excite", "mean", features=5, second="mask"),
    _torch_leak("src_mask_of_longest", "self_attn", "multi_head_attention", "scaled_dot", features=8, second="mask"),
    _torch_leak("std_pool", "var", features=5),
    _torch_leak("tcn_same_padding", "blocks.0.conv_out", features=8, second="mask", per_step=True),
    _torch_leak("tiny_fill_value", "softmax", features=5),
    _torch_leak("topk_pool", "topk", features=7),
    _torch_leak("unit_norm_over_time", "norm", features=4),
)


def _torch_sound(name: str, verdict: Verdict = "sound", **said: Any) -> Exhibit:
    return Exhibit("torch_sound", name, verdict, **said)


TORCH_SOUND = (
    _torch_sound("additive_attention", "warning", features=4, second="mask"),
    _torch_sound("alibi_attention", "warning", features=6),
    _torch_sound("boolean_indexing", features=5, second="mask"),
    _torch_sound("causal_decoder", "warning", features=4),
    _torch_sound("causal_tcn", features=4),
    _torch_sound("cell_loop", features=4, second="mask"),
    _torch_sound("channels_first_fcn", features=5, second="mask", channels_first=True, channels_said=True),
    _torch_sound(
        "channels_first_tagger", features=4, second="mask", channels_first=True, channels_said=True, per_step=True
    ),
    _torch_sound("cnn_lstm", features=9),
    _torch_sound("deep_sets", features=10),
    _torch_sound("dict_output", features=6, output="mortality"),
    _torch_sound("hugging_face_encoder", second="mask", vocabulary=70, arguments=("input_ids", "attention_mask")),
    _torch_sound("keyword_lengths", features=6, arguments=("x", "seq_lengths")),
    _torch_sound("last_valid_step", features=6),
    _torch_sound("learned_initial_state", features=5),
    _torch_sound("lengths_and_mask", features=5, second="both"),
    _torch_sound("logsumexp_pool", features=7),
    _torch_sound("mask_before_steps", features=4, second="mask", arguments=("x", "mask")),
    _torch_sound("masked_batchnorm", features=5),
    _torch_sound("masked_layers", features=3, second="mask"),
    _torch_sound("masked_max", features=8),
    _torch_sound("masked_mean", "warning", features=3, second="mask"),
    _torch_sound("packed_bilstm", features=12),
    _torch_sound("packed_data_linear", features=5),
    _torch_sound("padding_mask_encoder", "warning", features=6, second="padding-mask", named=True),
    _torch_sound("projected_lstm", features=6),
    _torch_sound("query_pooling", "warning", features=5, second="mask"),
    _torch_sound("raw_samples", features=1, raw=True),
    _torch_sound("relu_rnn", features=4),
    _torch_sound("reversed_by_length", features=5),
    _torch_sound("running_average", features=3),
    _torch_sound("scalar_mix", features=6),
    _torch_sound("sdpa_attention", "warning", features=6, second="mask"),
    _torch_sound("sorted_and_unsorted", features=6),
    _torch_sound("spectrogram_masked", features=8),
    _torch_sound("squeeze_excite_masked", "warning", features=5, second="mask"),
    _torch_sound("statistics_pooling", "warning", features=6, second="mask"),
    _torch_sound("step_tagger", features=7, per_step=True),
    _torch_sound("strided_conv", features=8),
    _torch_sound("tcn_remasked", "warning", features=6, second="mask"),
    _torch_sound("three_layer_bigru", features=7),
    _torch_sound("time_first_attention", "warning", features=8, time_first=True),
    _torch_sound("time_first_gru", features=10, time_first=True),
    _torch_sound("token_cnn", vocabulary=60, second="mask"),
    _torch_sound("token_gru", vocabulary=80),
    _torch_sound("transformer_cls_token", "warning", features=6, second="mask"),
    _torch_sound("transformer_mean", "warning", features=8),
    _torch_sound("tuple_output", "warning", features=4, output=1),
)


def _torch_refused(name: str, *reason: str, **said: Any) -> Exhibit:
    return Exhibit("torch_refused", name, "uncheckable", reason=reason, **said)


TORCH_REFUSED = (
    _torch_refused("channels_first_unsaid", "--channels-first", features=4, second="mask"),
    _torch_refused("chunks_of_eight", "multiples of 8", features=3, second="mask"),
    _torch_refused("double_weights", "float64", features=4, second="mask"),
    _torch_refused("dropout_always_on", "twice", "same answer", features=6, second="mask"),
    _torch_refused("float_mask_wanted", "mask = mask.to(x.dtype)", features=4, second="mask"),
    _torch_refused("frozen_rows", "rows", "batch", features=5),
    _torch_refused("frozen_width", "width", features=4, second="mask"),
    _torch_refused("last_layer_of_zeros", "do not depend on the sequences", features=5),
    _torch_refused("left_padding", "left", features=5),
    _torch_refused("no_axis_of_rows", "must be [rows, classes]", features=5, second="mask"),
    _torch_refused("no_lengths", "length", "mask", features=7, second=None),
    _torch_refused("one_length_a_batch", "lengths differ", features=4),
    _torch_refused("order_demanded", "order", "sorted", features=6),
    _torch_refused("share_of_the_longest", "shares of the", features=4),
    _torch_refused("which_way_round", "pad", "--second", features=6, second=None),
    _torch_refused("wide_of_one", "past a width of 1", features=4),
)


def _onnx_leak(name: str, *operator: str, **said: Any) -> Exhibit:
    return Exhibit("onnx_leaking", name, "leak", operator, **said)


ONNX_LEAKING = (
    _onnx_leak("backward_cumulative_sum", "future", features=3, per_step=True),
    _onnx_leak(
        "final_state_time_first", "gru_0", features=5, time_first=True, values="frames", second_name="frame_lengths"
    ),
    _onnx_leak(
        "channels_first_mean",
        "gap/mean",
        features=5,
        second="mask",
        values="x",
        second_name="mask",
        channels_first=True,
    ),
    _onnx_leak("guessed_lengths", "count_used", features=4),
    _onnx_leak("instance_norm", "inorm", features=4, second="mask", values="series", second_name="valid_mask"),
    _onnx_leak("last_step", "Gather_4", features=4, values="input"),
    _onnx_leak("mean_over_time", "average", features=4),
    _onnx_leak("one_scale_for_the_batch", "quantize", features=6, second="mask", second_name="mask"),
    _onnx_leak("plain_bilstm", "/lstm/LSTM", features=6, values="x"),
    _onnx_leak("second_convolution", "conv1d_1", features=3, second="mask", values="input_1", second_name="input_mask"),
    _onnx_leak(
        "softmax_before_mask", "attention/Softmax", features=5, second="mask", values="inputs", second_name="mask"
    ),
    _onnx_leak("whole_width_reversed", "flip/Slice", features=3, values="x", second_name="seq_len"),
    _onnx_leak(
        "zeroed_max",
        "pooler/ReduceMax",
        vocabulary=30,
        second="mask",
        values="input_ids",
        second_name="attention_mask",
    ),
)


def _onnx_sound(name: str, verdict: Verdict = "sound", **said: Any) -> Exhibit:
    return Exhibit("onnx_sound", name, verdict, **said)


ONNX_SOUND = (
    _onnx_sound("bool_mask_mean", features=4, second="mask", second_name="mask"),
    _onnx_sound(
        "channels_first_fcn",
        "warning",
        features=4,
        second="mask",
        values="signal",
        second_name="signal_mask",
        channels_first=True,
    ),
    _onnx_sound(
        "channels_first_tagger", features=5, values="x", channels_first=True, channels_said=True, per_step=True
    ),
    _onnx_sound("float_mask_attention", "warning", features=5, second="mask", values="features", second_name="mask"),
    _onnx_sound("gru_time_first", features=4, time_first=True, values="input", second_name="input_lengths"),
    _onnx_sound("lengths_and_mask", features=4, second="both", third="mask"),
    _onnx_sound("lstm_int64_lengths", features=6),
    _onnx_sound(
        "mask_time_first",
        features=4,
        second="mask",
        time_first=True,
        output="probabilities",
        values="signal",
        second_name="mask",
    ),
    _onnx_sound("masked_max", features=5, second="mask", second_name="mask"),
    _onnx_sound("packed_bilstm_attention", features=7, values="x", second_name="lens"),
    _onnx_sound(
        "padding_mask_max",
        features=6,
        second="padding-mask",
        values="src",
        second_name="src_key_padding_mask",
        named=True,
    ),
    _onnx_sound("raw_samples", features=1, raw=True, values="wave", second_name="wave_lengths"),
    _onnx_sound("remasked_convolutions", features=3, values="input_1", second_name="input_2"),
    _onnx_sound("reversed_by_length", features=3, values="x", second_name="seq_len"),
    _onnx_sound("self_attention", "warning", features=6, values="src", second_name="src_lengths"),
    _onnx_sound("step_tagger", features=4, per_step=True, values="x", second_name="x_lens"),
    _onnx_sound(
        "token_mean",
        vocabulary=40,
        second="mask",
        values="input_ids",
        second_name="attention_mask",
    ),
)


def _onnx_refused(name: str, *reason: str, **said: Any) -> Exhibit:
    return Exhibit("onnx_refused", name, "uncheckable", reason=reason, features=said.pop("features", 4), **said)


ONNX_REFUSED = (
    _onnx_refused("frozen_inside", "width", values="input_1", second_name="input_lengths"),
    _onnx_refused("frozen_rows", "rows", "batch"),
    _onnx_refused("frozen_width", "width"),
    _onnx_refused("left_padding", "left"),
    _onnx_refused("longest_first", "order", "sorted"),
    _onnx_refused("never_twice_the_same", "twice", "same answer"),
    _onnx_refused("no_second_input", "length", "mask", second=None),
    _onnx_refused("shares_of_the_longest", "shares of the longest", second=None),
    _onnx_refused("token_types", "token_type_ids", second=None),
    _onnx_refused("which_way_round", "--second padding-mask", second=None),
    _onnx_refused("two_sensors", "accelerometer", "gyroscope", features=3, values="accelerometer"),
)
