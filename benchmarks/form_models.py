"""Two-layer BiLSTMs in the forms that people write, as torch modules: `FORMS`.

    lengthwise export benchmarks/form_models.py:tanh_scores --features 12

A form is one function, what it makes of the layers' output, and its further layers. To add one, write a function of
(network, hidden, states, valid) with the decorator `form`; its name is that of the target and of its lines in
`benchmarks.forms`:

| argument | is |
|---|---|
| network | the module, with the further layers |
| hidden | `[rows, width, 2 * units]`, the output of the recurrent layers |
| states | `[layers * 2, rows, units]`, their last states |
| valid | `[rows, width, 1]`, which steps are within the lengths |

`UNITS` in the environment is the number of units of each direction.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

FEATURES: Final = 12
UNITS: Final = int(os.environ.get("UNITS", "128"))
HEADS: Final = 4

FORMS: dict[str, Callable[[], nn.Module]] = {}
"""The modules' factories by the names of the forms."""


class Network(nn.Module):
    """A form's function, what is before the recurrent layers, and all layers by their names."""

    def __init__(self, function: Any, before: Any, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.function, self.before = function, before
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """`[rows, classes]` of `steps [rows, width, features]` and `lengths [rows]`."""
        self.lengths = lengths
        valid = (torch.arange(steps.size(1), device=steps.device) < lengths[:, None]).unsqueeze(2)
        hidden, states = self.ran(self.recurrent, self.before(self, steps, valid))
        logits: Tensor = self.head(self.function(self, hidden, states, valid))
        return logits

    def ran(self, layer: Any, steps: Tensor) -> tuple[Tensor, Tensor]:
        """The output and the last states of a recurrent layer, up to the lengths."""
        packed = rnn.pack_padded_sequence(steps, self.lengths.cpu(), batch_first=True, enforce_sorted=False)
        output, (states, _) = layer(packed)
        return rnn.pad_packed_sequence(output, batch_first=True, total_length=steps.size(1))[0], states


def form(
    pooled: int = 2 * UNITS,
    inputs: int = FEATURES,
    before: Callable[[Any, Tensor, Tensor], Tensor] = lambda net, steps, valid: steps,
    **layers: Callable[[], nn.Module],
) -> Callable[[Callable[..., Tensor]], Callable[[], nn.Module]]:
    """Makes a form of a function that returns `[rows, pooled]`, and adds it to `FORMS`.

    Args:
        pooled: How many features the function returns.
        inputs: How many features a step has before the recurrent layers.
        before: What the recurrent layers get, of (network, steps, valid).
        layers: Makes the further layers; the network has them by these names.
    """

    def add(function: Callable[..., Tensor]) -> Callable[[], nn.Module]:
        def factory() -> nn.Module:
            torch.manual_seed(0)
            made = {name: make() for name, make in layers.items()}
            recurrent = nn.LSTM(inputs, UNITS, 2, batch_first=True, bidirectional=True)
            return Network(function, before, made | {"recurrent": recurrent, "head": nn.Linear(pooled, 9)})

        FORMS[function.__name__] = factory
        return factory

    return add


def _weights(scores: Tensor, valid: Tensor) -> Tensor:
    """The softmax of scores over the valid steps, `[rows, width, heads]`."""
    return torch.softmax(scores.masked_fill(~valid, float("-inf")), dim=1)


def _last(states: Tensor) -> Tensor:
    """The last layer's last states in both directions, `[rows, 2 * units]`."""
    return torch.cat((states[-2], states[-1]), dim=1)


def _mean(hidden: Tensor, valid: Tensor) -> Tensor:
    """The mean over the valid steps, `[rows, features]`."""
    return hidden.masked_fill(~valid, 0.0).sum(1) / valid.sum(1)


@form(first=lambda: nn.Linear(2 * UNITS, UNITS), second=lambda: nn.Linear(UNITS, 1, bias=False))
def additive_attention(net: Any, hidden: Tensor, states: Tensor, valid: Tensor) -> Tensor:
    """Scores by a hidden layer (Bahdanau et al., 2015)."""
    return (_weights(net.second(torch.tanh(net.first(hidden))), valid) * hidden).sum(1)


@form(scores=lambda: nn.Linear(2 * UNITS, 1, bias=False))
def tanh_scores(net: Any, hidden: Tensor, states: Tensor, valid: Tensor) -> Tensor:
    """`softmax(w . tanh(H))`, the form of Zhou et al., 2016."""
    return (_weights(net.scores(torch.tanh(hidden)), valid) * hidden).sum(1)


@form(scores=lambda: nn.Linear(2 * UNITS, 1))
def linear_scores(net: Any, hidden: Tensor, states: Tensor, valid: Tensor) -> Tensor:
    """`softmax(w . H)`, and a product with the steps."""
    return torch.bmm(_weights(net.scores(hidden), valid).transpose(1, 2), hidden).squeeze(1)


@form(
    HEADS * 2 * UNITS,
    first=lambda: nn.Linear(2 * UNITS, UNITS, bias=False),
    second=lambda: nn.Linear(UNITS, HEADS, bias=False),
)
def four_heads(net: Any, hidden: Tensor, states: Tensor, valid: Tensor) -> Tensor:
    """Structured self-attention with four heads (Lin et al., 2017)."""
    weights = _weights(net.second(torch.tanh(net.first(hidden))), valid)
    return torch.bmm(weights.transpose(1, 2), hidden).flatten(1)


@form(
    inputs=UNITS,
    before=lambda net, steps, valid: torch.relu(net.project(steps)),
    project=lambda: nn.Linear(FEATURES, UNITS),
)
def dense_before(net: Any, hidden: Tensor, states: Tensor, valid: Tensor) -> Tensor:
    """A dense layer on each step before the recurrent ones, and their last states."""
    return _last(states)


@form(UNITS, project=lambda: nn.Linear(2 * UNITS, UNITS))
def dense_after(net: Any, hidden: Tensor, states: Tensor, valid: Tensor) -> Tensor:
    """A dense layer on each step after the recurrent ones, and a masked mean."""
    return _mean(torch.relu(net.project(hidden)), valid)


@form(
    inputs=UNITS,
    before=lambda net, steps, valid: torch.relu(
        net.convolution(steps.masked_fill(~valid, 0.0).transpose(1, 2)).transpose(1, 2)
    ),
    convolution=lambda: nn.Conv1d(FEATURES, UNITS, 5, padding=2),
)
def convolution_before(net: Any, hidden: Tensor, states: Tensor, valid: Tensor) -> Tensor:
    """A masked convolution before the recurrent layers, and their last states."""
    return _last(states)


@form()
def last_state(net: Any, hidden: Tensor, states: Tensor, valid: Tensor) -> Tensor:
    """The last states of both directions."""
    return _last(states)


@form()
def state_attention(net: Any, hidden: Tensor, states: Tensor, valid: Tensor) -> Tensor:
    """Attention whose query is the last state."""
    scores = (hidden * _last(states).unsqueeze(1)).sum(2, keepdim=True)
    return (_weights(scores, valid) * hidden).sum(1)


@form()
def masked_mean(net: Any, hidden: Tensor, states: Tensor, valid: Tensor) -> Tensor:
    """The mean over the valid steps."""
    return _mean(hidden, valid)


@form()
def masked_maximum(net: Any, hidden: Tensor, states: Tensor, valid: Tensor) -> Tensor:
    """The maximum over the valid steps."""
    return hidden.masked_fill(~valid, float("-inf")).amax(1)


@form(
    norm=lambda: nn.LayerNorm(2 * UNITS),
    third=lambda: nn.LSTM(2 * UNITS, UNITS, batch_first=True, bidirectional=True),
)
def norm_and_third_layer(net: Any, hidden: Tensor, states: Tensor, valid: Tensor) -> Tensor:
    """A norm, and a third recurrent layer with its last states."""
    return _last(net.ran(net.third, net.norm(hidden))[1])
