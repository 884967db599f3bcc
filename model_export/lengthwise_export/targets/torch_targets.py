"""Loads torch targets: a spec or a checkpoint of the built-in architecture, or a user's module."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from lengthwise.errors import ConfigurationError
from lengthwise_export.architecture import checkpoint, foreign_files, loading, trained
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.errors import CheckpointError, UncheckableError
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets import keras
from lengthwise_export.targets.factory import is_keras, module_of
from lengthwise_export.targets.module_target import module_target
from lengthwise_export.targets.rows import require_order_of_axes
from lengthwise_export.targets.step_inputs import read_steps
from lengthwise_export.targets.target import Target, check_options_agree, labels_of
from lengthwise_export.tracing.call_signature import CallSignature, in_evaluation, output_selector, read_signature
from lengthwise_export.tracing.module_state import ModuleState


def read_spec(text: str, options: TargetOptions) -> Target:
    """The built-in architecture that a spec describes."""
    return _of_spec(text, options, Spec.read(Path(text)), options.weights)


def read_checkpoint(text: str, options: TargetOptions) -> Target:
    """The built-in architecture with the spec that is stored in its checkpoint."""
    path = trained.checkpoint_file(Path(text))
    spec = trained.read_record(path).spec
    if spec is None:
        raise CheckpointError(
            f"{path} does not say which spec it was trained with: give that too, `lengthwise export SPEC.toml "
            f"--checkpoint {path} --out ...`; for a module of yours, package.module:factory --checkpoint {path}"
        )
    return _of_spec(text, options, spec, path)


def _of_spec(text: str, options: TargetOptions, spec: Spec, weights: Path | None) -> Target:
    spec = spec.concrete() if weights is None else trained.settled(spec, weights)
    model, notices = loading.load(spec, weights)
    steps = spec.manifest(name="model", version=1).input
    check_options_agree(text, options, steps, spec.output.labels)
    per_step = spec.output.task == "per-step"
    target = module_target(
        text,
        "spec",
        model,
        steps,
        CallSignature(),
        output_selector(None),
        labels=spec.output.labels,
        per_step=per_step,
    )
    return dataclasses.replace(target, checkpoint=weights, spec=spec, notices=tuple(notices))


def read_module(text: str, options: TargetOptions, *, blind: bool = False) -> Target:
    """The module that a user's factory returns; see `of_module`."""
    return of_module(text, module_of(text), options, blind=blind)


def of_module(text: str, module: nn.Module, options: TargetOptions, *, blind: bool = False) -> Target:
    """A user's module. Its signature shows how to call it, its layers show the kind of a step."""
    module = _unwrapped(module)
    if is_keras(module):
        return keras.of_model(text, module, options)
    if isinstance(module, torch.jit.ScriptModule):
        raise ConfigurationError(f"{text} is TorchScript, which cannot be traced. {foreign_files.FROM_TORCHSCRIPT}")
    elsewhere = {str(tensor.device) for tensor in (*module.parameters(), *module.buffers())} - {"cpu"}
    if elsewhere:
        raise ConfigurationError(f"{text} is on {', '.join(sorted(elsewhere))}: give copy.deepcopy(module).cpu()")
    notices = [] if options.weights is None else checkpoint.load(module, options.weights)
    signature = read_signature(
        module,
        second=options.second,
        time_first=options.time_first,
        channels_first=options.channels_first,
        numbers=options.features is not None,
        blind=blind,
    )
    _require_weights(text, module)
    select_output = output_selector(options.output_name)
    state = ModuleState(in_evaluation(module))
    found = read_steps(text, module, options, signature, select_output)
    if signature.second == "none":
        require_order_of_axes(text, module, found.steps, found.signature, select_output)
    labels = labels_of(text, options, found.shape[-1])
    own = None if options.weights is None else trained.read_record(options.weights).labels
    if own is not None and len(own) == len(labels):  # weights that are told apart by other names
        check_options_agree(text, options.model_copy(update={"features": None, "vocabulary": None}), found.steps, own)
        labels = own
    target = module_target(
        text,
        "module",
        module,
        found.steps,
        found.signature,
        select_output,
        labels=labels,
        per_step=len(found.shape) == 3,
        state=state,
    )
    state.restore()
    return dataclasses.replace(target, checkpoint=options.weights, notices=tuple(notices))


def _require_weights(text: str, module: nn.Module) -> None:
    """Makes sure that a module has all of its weights."""
    lazy = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if is_lazy(tensor)]
    if lazy:
        raise UncheckableError(
            f"{text}: {', '.join(lazy[:3])} would be drawn at random at the first call, as those of nn.Lazy layers: "
            "pass the trained weights with --checkpoint, or call the module once before its weights are loaded"
        )


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module inside a wrapper of `torch.compile` or `DataParallel`, which computes the same."""
    while isinstance(module, nn.DataParallel) or hasattr(module, "_orig_mod"):
        inside = module.module if isinstance(module, nn.DataParallel) else module._orig_mod
        if not isinstance(inside, nn.Module):
            break
        module = inside
    return module
