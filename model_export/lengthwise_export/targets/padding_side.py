"""Finds the layout of steps that a check tries: that of the options, or else that which the model names.

A model names it as `padding_side`, in an attribute of the module, of a part, or of a configuration of Hugging Face.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, Final

from lengthwise_export.checking.limits import answers_padding_last
from lengthwise_export.errors import ConfigurationError
from lengthwise_export.layouts import StepLayout
from lengthwise_export.options import CheckOptions
from lengthwise_export.targets.target import Target, TorchTarget

_HOLDERS: Final = ("config", "generation_config", "tokenizer", "processor")
"""Attributes of a module whose objects may have a `padding_side`, as those of Hugging Face have."""


def stated_layout(options: CheckOptions) -> StepLayout | None:
    """The layout that the options `packed` or `padding` name; None if neither is set.

    Raises:
        ConfigurationError: They name two, or an input of packed rows without `packed`.
    """
    if options.packed_input is not None and options.packed is None:
        raise ConfigurationError("--packed-input names what tells the borders of packed rows: also pass --packed")
    if options.packed is not None and options.padding is not None:
        raise ConfigurationError(
            f"--packed {options.packed} and --padding {options.padding}: rows are packed or padded, so check each alone"
        )
    if options.packed is not None:
        return StepLayout(packed=options.packed, packed_input=options.packed_input, is_stated=True)
    return None if options.padding is None else StepLayout(options.padding, is_stated=True)


def with_layout(target: Target, stated: StepLayout | None, options: CheckOptions) -> Target:
    """The target, with its model in the layout that a check tries; `train` and `pad_id` are applied as well.

    That is the layout of the options; without these options, left padding if the model says `padding_side = "left"`;
    else the layout in which it was read, right padding.

    Args:
        target: The target as it was read: for packed rows, in their layout already.
        stated: The layout of the options; None if they name none.
        options: The options of the check.

    Raises:
        ConfigurationError: An option does not apply to the layout, to the kind of a step, or to the kind of the target.
    """
    if options.train:
        target = _in_training(target)
    layout, notices = stated, target.notices
    if options.pad_id is not None:
        layout = _with_pad_id(target, layout or target.subject.layout, options)
    if _padding_side(target) == "left" and options.padding is None and options.packed is None:
        layout = dataclasses.replace(layout or target.subject.layout, padding="left")
        notices = (
            *notices,
            "the model says padding_side='left', so rows are padded so: --padding right tries the other",
        )
    if layout is None:
        return target
    for name in ("suggest", "missing"):
        if not layout.is_right_padded and getattr(options, name):
            raise ConfigurationError(
                f"--{name} is about rows that are padded on the right, but {target.text} is checked {layout.name}: "
                f"leave --{name} out" + ("" if layout.packed else ", or pass --padding right")
            )
    subject: Any = target.subject
    if layout.packed is not None and subject.layout.packed is None:
        raise ConfigurationError(f"--packed: only torch modules and ONNX files take packed rows, not {target.text}")
    if layout.packed is None:
        subject = subject.with_layout(layout)
    elif layout.packed == "segment_ids" and answers_padding_last(subject):
        subject = subject.with_layout(dataclasses.replace(subject.layout, is_padding_answered_last=True))
        notices = (
            *notices,
            "the last answer is left out: it is that to segment 0, the padding, since only so the others are those to "
            "each sequence alone, or nearest to them",
        )
    return dataclasses.replace(target, subject=subject, notices=notices)


def _with_pad_id(target: Target, layout: StepLayout, options: CheckOptions) -> StepLayout:
    """The layout with the id of the option `pad_id`, which callers write into padding.

    Raises:
        ConfigurationError: Steps are not tokens, or the vocabulary does not have the id.
    """
    count = target.steps.vocabulary
    if count is None:
        raise ConfigurationError(f"--pad-id is for models of tokens, and a step of {target.text} is values")
    if options.pad_id is not None and options.pad_id >= count:
        raise ConfigurationError(
            f"--pad-id {options.pad_id} is not in the vocabulary of {target.text}, 0 to {count - 1}"
        )
    return dataclasses.replace(layout, pad_id=options.pad_id, is_pad_id_of_steps=options.vocabulary is not None)


def _in_training(target: Target) -> Target:
    """The target, with its module in training mode, and a snapshot of the module's state.

    Raises:
        ConfigurationError: The target is not a torch module, or is a Keras model.
    """
    if not isinstance(target, TorchTarget) or target.subject.own_names is not None:
        raise ConfigurationError(f"--train is for torch modules, and {target.text} is none")
    from lengthwise_export.tracing.module_state import ModuleState  # brings torch along

    subject = dataclasses.replace(target.subject, in_training=True)
    return dataclasses.replace(target, subject=dataclasses.replace(subject, state=ModuleState(subject.module)))


def _padding_side(target: Target) -> str | None:
    """The `padding_side` of a model, such as `left`; None if the model does not name it.

    A graph has it in its metadata, a module in an attribute of its own, of a part, or of their `_HOLDERS`.
    """
    if (graph := getattr(target, "graph", None)) is not None:
        return next((str(entry.value) for entry in graph.metadata_props if entry.key == "padding_side"), None)
    module: Any = getattr(target.subject, "module", None)
    parts = [] if module is None else [*module.modules()]
    holders = itertools.chain(parts, (getattr(part, name, None) for part in parts for name in _HOLDERS))
    sides = (getattr(holder, "padding_side", None) for holder in holders)
    return next((side for side in sides if isinstance(side, str)), None)
