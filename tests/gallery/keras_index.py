"""The gallery's Keras models, as their users write them, and the right verdict on each.

Each is a function of `keras_leaking.py`, `keras_sound.py`, `keras_blind.py` or `keras_refused.py` that takes nothing
and seeds itself. Where no model can give what a user has on disk, there is a function `save_NAME(path)` instead.

A model has its mask from `Masking` or `Embedding(mask_zero=True)`, or computes one from the values that these would
mask. So its padding is that value, and a leak is an answer that such padding changes. Models in `keras_blind/` have no
mask at all. What counts as the operator where a leak begins is told in `index`; here it is a layer, by its name.

`test_keras_gallery_is_true.py` proves the verdicts with Keras, without any checker.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gallery.index import Exhibit, Verdict


@dataclass(frozen=True, slots=True)
class KerasExhibit(Exhibit):
    """One Keras model and what a right report says about it.

    Attributes:
        mask_value: What its `Masking` or `Embedding` masks.
        cause: For a leak: words of which the report's cause contains at least one, in small letters: the layer that
            drops the mask or ignores it.
        custom: It needs a class of its own: a file of it cannot be read without.
        suffix: Of the file that it is saved as.
    """

    mask_value: float = 0.0
    cause: tuple[str, ...] = ()
    custom: bool = False
    suffix: str = ".keras"

    def save(self, folder: Path) -> Path:
        """Writes the model as its user would, and says where."""
        path = folder / f"{self.name}{self.suffix}"
        save = getattr(importlib.import_module(f"tests.gallery.{self.room}"), f"save_{self.name}", None)
        if save is not None:
            save(path)
        else:
            self.make().save(path)
        return path


def _leak(name: str, operator: str | tuple[str, ...], *cause: str, **said: Any) -> KerasExhibit:
    operators = (operator,) if isinstance(operator, str) else operator
    return KerasExhibit("keras_leaking", name, "leak", operators, cause=cause, **said)


KERAS_LEAKING = (
    _leak("added_to_unmasked", "global_average_pooling1d", "add", features=6),
    _leak("attention_by_hand", "attention_weights", "flatten", "softmax", features=5),
    _leak("attention_layer_unmasked", "attention", "query_cnn", "conv1d", "mask", vocabulary=60),
    _leak("backwards_without_mask", "backward_gru", "mask", "gru", features=3),
    _leak("batch_statistics", "batch_scale", "row", features=4, custom=True),
    _leak("batchnorm_before_masking", ("masking", "lstm"), "batch_normalization", "batchnorm", "masking", features=6),
    _leak("bilstm_max_pool", "global_max_pooling1d", "pooling", features=5),
    _leak("concatenated_with_conv", ("wider", "gru"), "around", "concatenate", features=4),
    _leak("conv_forgets_mask", "global_average_pooling1d", "conv1d", features=4),
    _leak("conv_stack_max", "conv_b", "conv", features=6),
    _leak("cropped_behind", ("cropping1d", "simple_rnn"), "cropping1d", "mask", features=3, shortest=2),
    _leak("einsum_dense_loses_mask", "global_average_pooling1d", "einsum_dense", "einsumdense", vocabulary=30),
    _leak("global_max_of_relu", "max", "max", vocabulary=45),
    _leak("group_norm", "group_normalization", "over the steps", features=8),
    _leak("last_step_of_bilstm", ("get_item", "getitem"), "last", "index", "reverse", "slice", "step", features=6),
    _leak("mha_after_conv", "multi_head_attention", "conv1d", "mask", features=6),
    _leak("permute_loses_mask", "bidirectional", "permute", "mask", features=5),
    _leak("pooled_between_lstms", ("average_pooling1d", "lstm"), "average_pooling1d", "pool", features=4),
    _leak("positions_from_the_end", "recency", "flip", "width", "end", features=4, custom=True),
    _leak("raw_branch_bidirectional", "fast", "mask", "reverse", features=7),
    _leak("reshape_loses_mask", "lstm", "reshape", vocabulary=50),
    _leak("rms_norm_between", "second", "rms_normalization", features=5),
    _leak("second_encoder_block", "mha_1", "mask", vocabulary=80),
    _leak("softmax_over_steps", "weights", "softmax", "score", features=5),
    _leak("squeeze_excite", ("conv1d", "global_average_pooling1d"), "pooling", "mean", "conv", features=5),
    _leak("subclass_forgets_mask", "rnn", "mask", "multiply", vocabulary=40, custom=True),
    _leak("transformer_without_mask", "self_attention", "mask", "add", vocabulary=70, longest=200, custom=True),
    _leak("unit_norm_over_time", "unit_normalization", "norm", features=4),
    _leak("upsampled", ("up_sampling1d", "fine"), "up_sampling1d", "upsampling1d", "mask", features=4),
)


def _sound(name: str, verdict: Verdict = "sound", **said: Any) -> KerasExhibit:
    return KerasExhibit("keras_sound", name, verdict, **said)


KERAS_SOUND = (
    _sound("attention_layer", features=5),
    _sound("backwards_with_mask", features=5),
    _sound("bidirectional_sum", features=5),
    _sound("bilstm_attention_masked", features=6, custom=True),
    _sound("causal_attention_last", features=6),
    _sound("causal_tagger", features=3, per_step=True),
    _sound("conv_then_given_mask", features=6),
    _sound("embedding_mask_zero_lstm", vocabulary=60),
    _sound("encoder_of_given_masks", "warning", features=6),
    _sound("gru_reset_before", features=4),
    _sound("last_state_asks", features=6),
    _sound("length_in_the_shape", features=12),
    _sound("lstm_last_step", features=4),
    _sound("lstm_max_pool", features=5),
    _sound("lstm_of_odd_gates", features=4),
    _sound("masked_average", features=6),
    _sound("masking_lstm_lstm_dense", features=12),
    _sound("mean_and_max", features=5),
    _sound("nested_and_shared", features=5),
    _sound("pooled_words", vocabulary=90),
    _sound("positions_with_mask", vocabulary=70, longest=150, custom=True),
    _sound("repeat_and_decode", features=4),
    _sound("residual_lstms", features=8),
    _sound("sentinel_mask", features=4, mask_value=-99.0),
    _sound("separable_conv_given_mask", features=6),
    _sound("simple_rnn_stack", features=3),
    _sound("stacked_cells", features=4),
    _sound("step_tagger", vocabulary=50, per_step=True),
    _sound("subclass_passes_mask", features=7, custom=True),
    _sound("time_distributed_conv", features=16),
    _sound("transformer_encoder", vocabulary=80),
)


def _blind(name: str, operator: str, *cause: str, **said: Any) -> KerasExhibit:
    return KerasExhibit("keras_blind", name, "leak", (operator,), cause=cause, **said)


KERAS_BLIND = (
    _blind("attention_layer", "attention", "padded steps", features=6),
    _blind("conv_lstm_fcn", "global_max_pooling1d", "no mask", features=4, shortest=6),
    _blind("fcn", "conv1d", "no mask", features=1),
    _blind("plain_bilstm", "bidirectional", "no mask", features=5),
    _blind("text_cnn", "global_max_pooling1d", "no mask", vocabulary=70, shortest=7),
    _blind("transformer", "multi_head_attention", "padded steps", features=4),
)


def _refused(name: str, *reason: str, **said: Any) -> KerasExhibit:
    return KerasExhibit("keras_refused", name, "uncheckable", reason=reason, features=said.pop("features", 4), **said)


KERAS_REFUSED = (
    _refused("class_not_at_hand", "swish", custom=True),
    _refused("conv_lstm", "radar", "convlstm", "axes", "dimension", features=8),
    _refused("dropout_always_on", "twice", "same answer", "random", custom=True),
    _refused("flattened", "width", "length", "20", longest=20),
    _refused("frozen_rows", "rows", "batch"),
    _refused("images", "conv2d", "axes", "dimension", "shape", features=8),
    _refused("keras_two", "keras 2", suffix=".h5"),
    _refused("lambda_layer", "lambda"),
    _refused("mixed_precision", "float16"),
    _refused("stateful", "stateful"),
    _refused("states_returned", "outputs", "--output"),
    _refused("two_inputs", "patient", "inputs"),
    _refused("words_looked_up", "hashing", features=None, vocabulary=40),
)
