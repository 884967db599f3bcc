"""Two-layer BiLSTMs in the forms that people write, as torch modules: `FORMS`.

    lengthwise export benchmarks/form_models.py:tanh_scores --features 12

A form is one function: what it does with the layers' output `H [rows, width, 2 * units]`. To add one, write a function
of (layers, steps, lengths) with the decorator `form`; its name is that of the target and of the line in
`benchmarks.forms`. `UNITS` in the environment is the number of units of each direction.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

FEATURES: Final = 12
CLASSES: Final = 9
UNITS: Final = int(os.environ.get("UNITS", "128"))
_HEADS: Final = 4

FORMS: dict[str, Callable[[], nn.Module]] = {}
"""The modules' factories by the names of the forms."""


class Network(nn.Module):
    """Layers by their names, and a form's function of them."""

    def __init__(self, function: Callable[[Any, Tensor, Tensor], Tensor], layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """`[rows, classes]` of `steps [rows, width, features]` and `lengths [rows]`."""
        logits: Tensor = self.head(self.function(self, steps, lengths))
        return logits


def form(
    pooled: int = 2 * UNITS, inputs: int = FEATURES, **layers: Callable[[], nn.Module]
) -> Callable[[Callable[[Any, Tensor, Tensor], Tensor]], Callable[[], nn.Module]]:
    """Makes a form of a function that returns `[rows, pooled]`, and adds it to `FORMS`.

    Args:
        pooled: How many features the function returns.
        inputs: How many features a step has before the recurrent layers.
        layers: Further layers, by the names that the function has for them; `recurrent` and `head` are there already.
    """

    def add(function: Callable[[Any, Tensor, Tensor], Tensor]) -> Callable[[], nn.Module]:
        def factory() -> nn.Module:
            torch.manual_seed(0)
            recurrent = nn.LSTM(inputs, UNITS, 2, batch_first=True, bidirectional=True)
            made = {name: make() for name, make in layers.items()}
            return Network(function, {"recurrent": recurrent, "head": nn.Linear(pooled, CLASSES), **made})

        FORMS[function.__name__] = factory
        return factory

    return add


def _hidden(layer: nn.Module, steps: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The output of a recurrent layer, `[rows, width, features]`, and its last states, `[layers, rows, units]`."""
    packed = pack_padded_sequence(steps, lengths.cpu(), batch_first=True, enforce_sorted=False)
    output, (states, _) = layer(packed)
    return pad_packed_sequence(output, batch_first=True, total_length=steps.size(1))[0], states


def _valid(steps: Tensor, lengths: Tensor) -> Tensor:
    """`[rows, width, 1]`: which steps are within the lengths."""
    return (torch.arange(steps.size(1), device=steps.device) < lengths[:, None]).unsqueeze(2)


def _weights(scores: Tensor, valid: Tensor) -> Tensor:
    """The softmax of scores over the valid steps, `[rows, width, heads]`."""
    return torch.softmax(scores.masked_fill(~valid, float("-inf")), dim=1)


def _last(states: Tensor) -> Tensor:
    """The last layer's last states in both directions, `[rows, 2 * units]`."""
    return torch.cat((states[-2], states[-1]), dim=1)


def _linear(inputs: int, outputs: int, *, bias: bool = True) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(inputs, outputs, bias=bias)


@form(first=_linear(2 * UNITS, UNITS), second=_linear(UNITS, 1, bias=False))
def additive_attention(net: Any, steps: Tensor, lengths: Tensor) -> Tensor:
    """Scores by a hidden layer (Bahdanau et al., 2015)."""
    hidden, _ = _hidden(net.recurrent, steps, lengths)
    weights = _weights(net.second(torch.tanh(net.first(hidden))), _valid(steps, lengths))
    return (weights * hidden).sum(1)


@form(scores=_linear(2 * UNITS, 1, bias=False))
def tanh_scores(net: Any, steps: Tensor, lengths: Tensor) -> Tensor:
    """`softmax(w . tanh(H))`, the form of Zhou et al., 2016."""
    hidden, _ = _hidden(net.recurrent, steps, lengths)
    return (_weights(net.scores(torch.tanh(hidden)), _valid(steps, lengths)) * hidden).sum(1)


@form(scores=_linear(2 * UNITS, 1))
def linear_scores(net: Any, steps: Tensor, lengths: Tensor) -> Tensor:
    """`softmax(w . H)`, and a product with the steps."""
    hidden, _ = _hidden(net.recurrent, steps, lengths)
    weights = _weights(net.scores(hidden), _valid(steps, lengths))
    return torch.bmm(weights.transpose(1, 2), hidden).squeeze(1)


@form(
    _HEADS * 2 * UNITS,
    first=_linear(2 * UNITS, UNITS, bias=False),
    second=_linear(UNITS, _HEADS, bias=False),
)
def four_heads(net: Any, steps: Tensor, lengths: Tensor) -> Tensor:
    """Structured self-attention with four heads (Lin et al., 2017)."""
    hidden, _ = _hidden(net.recurrent, steps, lengths)
    weights = _weights(net.second(torch.tanh(net.first(hidden))), _valid(steps, lengths))
    return torch.bmm(weights.transpose(1, 2), hidden).flatten(1)


@form(inputs=UNITS, project=_linear(FEATURES, UNITS))
def dense_before(net: Any, steps: Tensor, lengths: Tensor) -> Tensor:
    """A dense layer on each step before the recurrent ones, and their last states."""
    return _last(_hidden(net.recurrent, torch.relu(net.project(steps)), lengths)[1])


@form(UNITS, project=_linear(2 * UNITS, UNITS))
def dense_after(net: Any, steps: Tensor, lengths: Tensor) -> Tensor:
    """A dense layer on each step after the recurrent ones, and a masked mean."""
    hidden, _ = _hidden(net.recurrent, steps, lengths)
    return _mean(torch.relu(net.project(hidden)), steps, lengths)


@form(inputs=UNITS, convolution=lambda: nn.Conv1d(FEATURES, UNITS, 5, padding=2))
def convolution_before(net: Any, steps: Tensor, lengths: Tensor) -> Tensor:
    """A masked convolution before the recurrent layers, and their last states."""
    valid = _valid(steps, lengths)
    convolved = net.convolution(steps.masked_fill(~valid, 0.0).transpose(1, 2)).transpose(1, 2)
    return _last(_hidden(net.recurrent, torch.relu(convolved), lengths)[1])


@form()
def last_state(net: Any, steps: Tensor, lengths: Tensor) -> Tensor:
    """The last states of both directions."""
    return _last(_hidden(net.recurrent, steps, lengths)[1])


@form()
def state_attention(net: Any, steps: Tensor, lengths: Tensor) -> Tensor:
    """Attention whose query is the last state."""
    hidden, states = _hidden(net.recurrent, steps, lengths)
    scores = (hidden * _last(states).unsqueeze(1)).sum(2, keepdim=True)
    return (_weights(scores, _valid(steps, lengths)) * hidden).sum(1)


@form()
def masked_mean(net: Any, steps: Tensor, lengths: Tensor) -> Tensor:
    """The mean over the valid steps."""
    return _mean(_hidden(net.recurrent, steps, lengths)[0], steps, lengths)


@form()
def masked_maximum(net: Any, steps: Tensor, lengths: Tensor) -> Tensor:
    """The maximum over the valid steps."""
    hidden, _ = _hidden(net.recurrent, steps, lengths)
    return hidden.masked_fill(~_valid(steps, lengths), float("-inf")).amax(1)


@form(
    norm=lambda: nn.LayerNorm(2 * UNITS), third=lambda: nn.LSTM(2 * UNITS, UNITS, batch_first=True, bidirectional=True)
)
def norm_and_third_layer(net: Any, steps: Tensor, lengths: Tensor) -> Tensor:
    """A norm, and a third recurrent layer with its last states."""
    hidden, _ = _hidden(net.recurrent, steps, lengths)
    return _last(_hidden(net.third, net.norm(hidden), lengths)[1])


def _mean(hidden: Tensor, steps: Tensor, lengths: Tensor) -> Tensor:
    """The mean over the valid steps, `[rows, features]`."""
    return hidden.masked_fill(~_valid(steps, lengths), 0.0).sum(1) / lengths[:, None]
