"""The presets of `[model]`: each is a set of ordinary keys, which a spec may override one by one.

| preset | layers |
|---|---|
| `rnn` | a bidirectional LSTM with attention pooling: short sequences |
| `conv` | six convolutional blocks of three kernel sizes each, with residual connections (InceptionTime) |
| `conv-rnn` | two residual convolutions, then a bidirectional GRU |
| `transformer` | a convolution, then two blocks of self-attention; the convolution tells the order of the steps |

`auto` is one of them, chosen by `train` from the data; without data it is `rnn`.
"""

from __future__ import annotations

from typing import Any, Final, Literal

Preset = Literal["auto", "rnn", "conv", "conv-rnn", "transformer"]

_KERNELS: Final = [9, 19, 39]


def _inception(channels: int) -> list[dict[str, Any]]:
    block: dict[str, Any] = {"channels": channels, "kernel": _KERNELS, "bottleneck": 32, "pool": 3}
    return [block, block, block | {"residual": 3}] * 2


PRESETS: Final[dict[str, dict[str, Any]]] = {
    "rnn": {
        "rnn": "lstm",
        "hidden": 64,
        "layers": 2,
        "bidirectional": True,
        "pooling": "attention",
        "dropout": 0.5,
        "input_dropout": 0.5,
    },
    "conv": {
        "conv": _inception(64),
        "rnn": "none",
        "layers": 0,
        "pooling": "mean-max",
        "sequence_features": ["length"],
        "dropout": 0.2,
    },
    "conv-rnn": {
        "conv": [
            {"channels": 64, "kernel": 9},
            {"channels": 64, "kernel": 5, "residual": 2},
            {"channels": 64, "kernel": 5, "dilation": 4},
            {"channels": 64, "kernel": 3, "dilation": 4, "residual": 2},
        ],
        "rnn": "gru",
        "hidden": 64,
        "layers": 1,
        "bidirectional": True,
        "pooling": "mean-max",
        "sequence_features": ["length"],
        "dropout": 0.2,
    },
    "transformer": {
        "conv": [{"channels": 64, "kernel": 9}],
        "rnn": "none",
        "hidden": 64,
        "layers": 0,
        "self_attention_heads": 4,
        "self_attention_layers": 2,
        "feed_forward": 128,
        "pooling": "mean-max",
        "sequence_features": ["length"],
        "dropout": 0.1,
    },
}
"""The keys of each preset except `auto`."""

WITHOUT_DATA: Final = "rnn"
"""The preset of `auto` where there is no data to choose by."""


def narrow_conv() -> dict[str, Any]:
    """The keys that differ from `conv` where there are few records."""
    return {"conv": _inception(32)}


def expanded(model: dict[str, Any], task: object) -> dict[str, Any]:
    """The table `[model]` with the keys of its preset, where it does not give them itself.

    Args:
        model: The table as given; an unknown preset is left to the validation of the table.
        task: The task: a per-step model has no pooling.
    """
    name = model.get("preset")
    keys = PRESETS.get(name, {}) if isinstance(name, str) else {}
    if task == "per-step":
        keys = {key: value for key, value in keys.items() if key not in ("pooling", "sequence_features")}
    if model.get("rnn", keys.get("rnn")) == "none":
        keys = {key: value for key, value in keys.items() if key != "bidirectional"}
    return {**keys, **model}
