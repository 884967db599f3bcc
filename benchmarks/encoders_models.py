"""Encoders and classifiers of other people's libraries, as data: what `benchmarks.encoders` tries.

Each is called as its library calls it, with random weights and a small configuration. `encoders.toml` says what a class
is made with, what it takes beside the steps, and what its library writes into padding.
"""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.machine import version_of

DATA: Final = tomllib.loads(Path(__file__).with_name("encoders.toml").read_text(encoding="utf-8"))
FEATURES: Final = 16
IDS: Final = 50
"""Token ids of valid steps; the special ids of the configurations, the padding's among them, are above."""

NOISE: Final = 0.1
"""Added to all weights, times a normal value: a bias of 0 and a layer that begins at 0 would hide a leak."""

ROLES: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "mask": lambda mask: mask,
    "integer mask": lambda mask: mask.long(),
    "float mask": lambda mask: mask.float(),
    "padding mask": lambda mask: ~mask,
    "lengths": lambda mask: mask.sum(1),
    # Outside torch, so that a division that is the caller's is not where a leak begins
    "shares": lambda mask: torch.from_numpy(mask.numpy().mean(1, dtype=np.float32)),
    "zeros": lambda mask: torch.zeros_like(mask, dtype=torch.int64),
}
"""What an argument of a class is, of a mask `[rows, width]` that is true at valid steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """A class of a library, and how it is called."""

    library: str  # the distribution that has it
    path: str  # `package.module:Class`, or a function that returns a module
    arguments: dict[str, Any] = field(default_factory=dict)  # what it is made with
    config: str | None = None  # the class of the configuration that takes the arguments, if there is one
    note: str = ""  # what sets it apart from others of its class
    steps: str | None = None  # the name of the argument for the steps; None for the first by position
    takes: dict[str, str] = field(default_factory=dict)  # other arguments: names, and their `ROLES`
    answer: str | int | None = None  # the name or index of its output; None for a tensor
    kind: str = "features"  # of a step: `tokens`, `features`, or `samples` of a wave
    padding: float = 0.0  # what the library itself writes into padding
    end: int | None = None  # the id that the library's tokenizer writes at the last valid step
    channels_first: bool = False  # whether it takes `[rows, features, steps]`
    method: str = "__call__"  # what is called
    mapping: bool = False  # whether it takes a dictionary of all arguments
    longest: bool = False  # whether a batch is as wide as its longest row, as the library asks
    squeeze: bool = False  # whether its answers are `[rows, 1, classes]`
    # the index of the numbers of valid frames in its output, if it strides over the steps: their mean is the answer
    frames: int | None = None

    @property
    def name(self) -> str:
        """Such as `BertForSequenceClassification`, or `Pooling, mean`."""
        return self.path.rpartition(":")[2] + (f", {self.note}" if self.note else "")

    @property
    def takes_mask(self) -> bool:
        """Whether it can be told of padding on the left: one that takes lengths, or neither, cannot."""
        return any("mask" in role for role in self.takes.values())

    @property
    def options(self) -> dict[str, int]:
        """The options of `check` that say what a step is."""
        return {"vocabulary": IDS} if self.kind == "tokens" else {"features": 1 if self.kind == "samples" else FEATURES}

    def make(self, *, own_padding: bool) -> Called:
        """The module in evaluation mode, with the same random weights each time."""
        torch.manual_seed(0)
        settings = self.arguments if self.config is None else {"config": tiny(_named(self.config), self.arguments)}
        module = _named(self.path)(**settings).eval()
        with torch.no_grad():
            for weights in _weights(module):
                weights.add_(torch.randn_like(weights), alpha=NOISE)
            for part in module.modules():
                if isinstance(part, nn.Embedding) and part.padding_idx is not None:
                    part.weight[part.padding_idx] = 0  # as no gradient ever moves it
        return Called(module, self, own_padding=own_padding)


class Packed(nn.Module):
    """The encoder of a class of `transformers`, called with sequences packed in one row: it gets no mask."""

    def __init__(self, called: Called) -> None:
        super().__init__()
        model: Any = called.module.base_model
        self.module = model.get_encoder() if model.config.is_encoder_decoder else model

    def forward(self, steps: Tensor, position_ids: Tensor) -> Tensor:
        """The states of `[1, width]` ids whose positions begin again at 0 at each sequence."""
        if steps.dim() != 2:
            raise ValueError("packed sequences are one row: [1, width]")  # ids alone may broadcast: width ** 3 scores
        return self.module(input_ids=steps, position_ids=position_ids, use_cache=False)[0]


class Called(nn.Module):
    """A library's module, called with steps and a mask that is true at valid steps."""

    def __init__(self, module: nn.Module, entry: Encoder, *, own_padding: bool) -> None:
        super().__init__()
        self.module, self.entry, self.own_padding = module, entry, own_padding

    def forward(self, steps: Tensor, mask: Tensor) -> Tensor:
        """The library's answer for `[rows, width]` ids or `[rows, width, features]`, and a mask `[rows, width]`."""
        entry = self.entry
        if entry.end is not None:
            last = (mask * torch.arange(1, mask.shape[1] + 1)).argmax(1, keepdim=True)
            steps = steps.scatter(1, last, entry.end)
        if self.own_padding:
            hidden = ~mask if entry.kind == "tokens" else ~mask.unsqueeze(-1)
            steps = steps.masked_fill(hidden, int(entry.padding) if entry.kind == "tokens" else entry.padding)
        width = mask.shape[1]
        if entry.longest:
            valid = slice(int(mask.sum(1).max()))
            steps, mask = steps[:, valid], mask[:, valid]
        if entry.kind == "samples":
            steps = steps.squeeze(-1)
        if entry.channels_first:
            steps = steps.mT
        named = {name: ROLES[role](mask) for name, role in entry.takes.items()}
        call = getattr(self.module, entry.method)
        if entry.mapping:
            answer = call({entry.steps: steps, **named})
        else:
            answer = call(steps, **named) if entry.steps is None else call(**{entry.steps: steps}, **named)
        frames = None if entry.frames is None else answer[entry.frames]
        answer = answer if entry.answer is None else answer[entry.answer]
        if frames is not None:
            valid_frames = (torch.arange(answer.shape[1]) < frames[:, None]).unsqueeze(-1)
            return answer.masked_fill(~valid_frames, 0).sum(1) / frames[:, None]
        answer = answer.mT if entry.channels_first and answer.dim() == 3 else answer
        if entry.squeeze:
            return answer.squeeze(1)
        # A layer that cuts the width to the longest row has fewer steps than it was given
        return answer if answer.dim() == 2 else functional.pad(answer, (0, 0, 0, width - answer.shape[1]))


def _weights(module: nn.Module) -> Iterable[Tensor]:
    """All weights of a module; those of Keras are its variables."""
    return [each.value for each in module.weights] if hasattr(module, "jit_compile") else module.parameters()


def _named(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def tiny(kind: Any, changes: dict[str, Any]) -> Any:
    """A configuration of `transformers`, and its parts, with the sizes of `encoders.toml` that they have names for."""
    usual = kind()
    known = {*vars(usual), *kind.attribute_map} - {
        name for name, value in vars(kind).items() if type(value) is property
    }
    sizes = {name: value for name, value in DATA["tiny"].items() if name in {*known, "num_labels"}}
    parts = {
        name: tiny(type(getattr(usual, name)), {}) for name in kind.sub_configs if getattr(usual, name) is not None
    }
    return kind(**sizes | parts | changes)


def _of_transformers() -> Iterator[Encoder]:
    """The classes that `transformers` lists for a task, each with a tiny configuration."""
    lists = importlib.import_module("transformers.models.auto.modeling_auto")
    configurations = importlib.import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING_NAMES
    for group in DATA["transformers"]:
        for kind, name in getattr(lists, group["list"]).items():
            settings = {"path": f"transformers:{name}", "config": f"transformers:{configurations[kind]}"}
            own = DATA["changes"].get(name, {})
            if name not in DATA["left_out"]:
                yield Encoder(library="transformers", **group["usual"] | settings | own)


def encoders() -> tuple[Encoder, ...]:
    """Those of all libraries that are installed."""
    listed = (Encoder(**entry) for entry in DATA["encoders"])
    every = [*(_of_transformers() if version_of("transformers") else ()), *listed]
    return tuple({entry.name: entry for entry in every if version_of(entry.library)}.values())


def x_encoder(*, average_pool_embed: bool = False, **layers: Any) -> nn.Module:
    """An encoder of x-transformers for sequences of values."""
    library = importlib.import_module("x_transformers")
    return library.ContinuousTransformerWrapper(
        dim_in=FEATURES,
        dim_out=3,
        max_seq_len=256,
        average_pool_embed=average_pool_embed,
        attn_layers=library.Encoder(**layers),
    )


def adapted(*, base: str, adapter: str, settings: dict[str, Any]) -> nn.Module:
    """A classifier of `transformers` with an adapter of peft."""
    peft = importlib.import_module("peft")
    entry = next(one for one in _of_transformers() if one.name == base)
    module = _named(entry.path)(tiny(_named(str(entry.config)), {"use_cache": True}))
    return peft.get_peft_model(module, getattr(peft, adapter)(task_type="SEQ_CLS", **settings))


def gliner_lstm() -> nn.Module:
    """The recurrent layer of GLiNER."""
    layers = importlib.import_module("gliner.modeling.layers")
    return layers.LstmSeq2SeqEncoder(SimpleNamespace(hidden_size=FEATURES))


def keras_hub(*, backbone: str, classifier: str | None = None, **sizes: Any) -> nn.Module:
    """A backbone of KerasHub on the torch backend, or a classifier around one."""
    models = importlib.import_module("keras_hub.models")
    module = getattr(models, backbone)(vocabulary_size=DATA["tiny"]["vocab_size"], num_layers=2, **sizes)
    if classifier is None:
        return module
    return getattr(models, classifier)(module, num_classes=3, preprocessor=None)
