"""Loads torch targets: a spec or a checkpoint of the built-in architecture, or a user's module from its factory."""

from __future__ import annotations

import importlib
import importlib.util
import os
import random
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from lengthwise.exporter_api.contract import GraphNames, StepInput, pad
from lengthwise_export.architecture import foreign_files, trained
from lengthwise_export.architecture.model import ClassifierOutput
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.checking.trace_torch import TorchSubject
from lengthwise_export.checking.trials import Sampler
from lengthwise_export.errors import CheckpointError, ConfigurationError, UncheckableError, first_of
from lengthwise_export.layouts import StepLayout
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets import fitted
from lengthwise_export.targets.step_inputs import read_packed_steps, read_steps, require_it_runs, require_order_of_axes
from lengthwise_export.targets.target import (
    ModuleTarget,
    SpecTarget,
    Target,
    TorchTarget,
    check_options_agree,
    labels_of,
)
from lengthwise_export.tracing.beside_arguments import StaticArgument
from lengthwise_export.tracing.call_signature import CallSignature, in_evaluation, read_packed_signature, read_signature
from lengthwise_export.tracing.imports import late_modules
from lengthwise_export.tracing.module_state import ModuleState
from lengthwise_export.tracing.outputs import output_selector
from lengthwise_export.tracing.source_lines import is_users, location_of

_MODULE_NAME: Final = re.compile(r"[\w-]+(\.[\w-]+)*")
"""The name of a module. Relative names, which begin with a dot, have no package here."""

_PLAIN: Final = (int, float, str, bytes, set, torch.Size, torch.dtype, torch.device, NoneType)
"""Values in attributes of modules that nobody draws at random; what can be called is none of them either."""
_ANOTHER_ANSWER: Final = 1e-3  # of the largest logit, or of 1: so far rounding moves no answer
_IMPORTED_FILES: dict[str, tuple[Path, int]] = {}  # By the name of a module: its file, and the time of its last change


def module_of(text: str, seed: int = 0) -> nn.Module:
    """The torch module that a text such as `nets.py:make` names: a module, or what the factory of this name returns.

    Weights that the factory draws at random have this seed.

    Raises:
        ConfigurationError: There is no such name, the factory raises, or it returns something else than a torch module.
    """
    module_text, _, name = text.rpartition(":")
    thing: Any = _import_module(module_text, text)
    for part in name.split("."):
        if not hasattr(thing, part):
            members = vars(thing).items() if isinstance(thing, ModuleType) else ()
            public_names = ", ".join(
                key
                for key, value in members
                if not key.startswith("_") and getattr(value, "__module__", None) == thing.__name__
            )
            raise ConfigurationError(
                f"{text}: {module_text} has no {name}" + (f"; it has {public_names}" if public_names else "")
            )
        thing = getattr(thing, part)
    if not isinstance(thing, nn.Module):
        if not callable(thing):
            raise ConfigurationError(f"{text} is a {type(thing).__name__}: name a function that returns a torch module")
        torch.manual_seed(seed)
        random_state = random.getstate()
        random.seed(seed)  # Keras draws the seeds of its weights from it
        try:
            thing = thing()
        except (Exception, SystemExit) as error:  # the user's own code
            takes_more = isinstance(error, TypeError) and location_of(error) is None  # it is raised by the call itself
            advice = ": name a function without arguments that returns the module" if takes_more else ""
            raise ConfigurationError(f"{text} raises: {_error_and_line(error)}{advice}") from error
        finally:
            random.setstate(random_state)
    if is_keras(thing):
        from lengthwise_export.keras_models.backend import import_keras

        import_keras()
    if type(thing).__name__ == "ExportedProgram":  # torch.export takes long to import, only to ask this
        thing = thing.module()
    if not isinstance(thing, nn.Module):
        raise ConfigurationError(f"{text} gives a {type(thing).__name__}: it must return a torch.nn.Module")
    return thing


def require_all_is_saved(text: str, target: ModuleTarget, read_again: Callable[[nn.Module], Target]) -> None:
    """Makes sure that what a factory draws at random is in the checkpoint that was loaded.

    A `state_dict` has registered parameters and persistent buffers. What else a module holds, such as the kernels of
    tsai's Hydra in a list, is drawn anew, and the answers are those of another model than was trained. So the factory
    of a module that holds more is called once more, with another seed, and its module gets the same checkpoint: it has
    to answer as the first does. Where it cannot be made or run again, nothing is known, and nothing is refused.

    Args:
        text: The name of the target.
        target: The target, with the weights of the checkpoint.
        read_again: Reads another module as it was read.

    Raises:
        CheckpointError: The answers differ.
    """
    subject, gap = target.subject, 0.0
    held = unregistered(subject.module)
    if held:
        sequences = [Sampler(subject.steps, seed=0).sequence(subject.steps.width or max(target.min_length, 24))] * 2
        batch = pad(sequences, multiple=1)
        with suppress(Exception), torch.random.fork_rng(devices=[]):  # of the user's own code
            other = read_again(module_of(text, seed=1)).subject
            first, again, second = (each.answer(batch).logits for each in (subject, subject, other))
            if np.array_equal(first, again):
                gap = float(np.abs(first - second).max() / max(np.abs(first).max(), 1.0))
        if subject.state is not None:
            subject.state.restore()
    if gap > _ANOTHER_ANSWER:
        raise CheckpointError(
            f"{text} draws something at random that is no registered parameter or persistent buffer, so no state_dict "
            f"has it (look at {first_of(held, 3)}): with the weights of {target.checkpoint} it is another model than "
            "the one that was trained. Let the function give it the values of the training, from a file or by its seed"
        )


def unregistered(module: nn.Module) -> list[str]:
    """The attributes of a module and its parts with more than parameters, persistent buffers and plain values."""
    lost = {
        id(buffer) for part in module.modules() for buffer in map(part._buffers.get, part._non_persistent_buffers_set)
    }
    saved = {id(tensor) for tensor in (*module.parameters(), *module.buffers())} - lost
    return [
        f"{prefix}.{name}".removeprefix(".")
        for prefix, part in module.named_modules()
        for name, value in (vars(part) | part._buffers).items()
        if name != "_buffers"
        and not all(callable(leaf) or isinstance(leaf, _PLAIN) or id(leaf) in saved for leaf in tree_leaves(value))
    ]


def prefer_torch() -> None:
    """Makes torch the backend of Keras, if a user's file imports it later, unless the user chose another backend."""
    if "keras" not in sys.modules:
        os.environ.setdefault("KERAS_BACKEND", "torch")


def is_keras(thing: object) -> bool:
    """Whether an object is a layer or a model of Keras. Keras is not imported for that."""
    return any(
        kind.__module__.partition(".")[0] in ("keras", "tf_keras") and kind.__name__ == "Layer"
        for kind in type(thing).__mro__
    )


def _remove_stale_module(path: Path) -> None:
    """Removes the module of a file from `sys.modules` if the file has changed since it was imported.

    A user's module of another file with the same name is removed, too.
    """
    module = sys.modules.get(path.stem)
    file = getattr(module, "__file__", None)
    if module is None or file is None or not path.is_file():
        return
    path_before, time_before = _IMPORTED_FILES.get(path.stem, (None, 0))
    is_another_file = Path(file).resolve() != path and is_users(file)
    if is_another_file or (path_before == path and path.stat().st_mtime_ns != time_before):
        del sys.modules[path.stem]
        importlib.invalidate_caches()
        # Python would use the old bytecode if the file has the same size and was changed in the same second.
        with suppress(OSError, NotImplementedError):
            Path(importlib.util.cache_from_source(str(path))).unlink()


def _import_module(where: str, text: str) -> ModuleType:
    """Imports the user's module `where`, a file `nets.py` or a name `package.nets`; `text` is the whole target.

    The folder of the file, or the working directory, is put first in `sys.path`.

    Raises:
        ConfigurationError: There is no such file or module, or importing it raises.
    """
    prefer_torch()
    path, folder, name = Path(where), str(Path.cwd()), where
    is_file = path.suffix == ".py"
    is_module_name = _MODULE_NAME.fullmatch(where) is not None and not path.is_file()
    if text.endswith(":") or not (is_file or is_module_name):
        raise ConfigurationError(
            f"{text} names no module and its factory: write file.py:factory, or package.module:factory with dots "
            "between the packages"
        )
    if is_file:
        folder, name = str(path.resolve().parent), path.stem
        _remove_stale_module(path.resolve())
    if sys.path[:1] != [folder]:  # a package of the user's goes before an installed one of that name
        sys.path[:] = [folder, *(entry for entry in sys.path if entry != folder)]
    try:
        time = path.stat().st_mtime_ns if is_file else 0
        with late_modules():
            module = importlib.import_module(name)
        if is_file:
            _IMPORTED_FILES[name] = (path.resolve(), time)
        return module
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigurationError(
                f"{text}: there is no module {error.name}, neither installed nor below the working directory"
            ) from error
        raise ConfigurationError(f"{text}: importing it needs {error.name}, which is not installed") from error
    except (Exception, SystemExit) as error:  # the user's own code
        raise ConfigurationError(f"{text}: importing it raises {_error_and_line(error)}") from error


def _error_and_line(error: BaseException) -> str:
    """An error as text, with the line of the user's code that raised it."""
    location = location_of(error)
    return f"{type(error).__name__}: {error}" + ("" if location is None else f" ({location})")


def read_spec(text: str, options: TargetOptions) -> SpecTarget:
    """Reads the target of a spec: a model of the built-in architecture, with the weights of a checkpoint or random."""
    return target_of_spec(text, options, Spec.read(Path(text)), _checkpoint_path(options))


def _checkpoint_path(options: TargetOptions) -> Path | None:
    """The path of the option `checkpoint`; None if it is not set."""
    return None if options.checkpoint is None else Path(options.checkpoint)


def read_checkpoint(text: str, options: TargetOptions) -> SpecTarget:
    """Reads the target of a checkpoint: a model of the built-in architecture, with the spec stored in the checkpoint.

    Raises:
        CheckpointError: The checkpoint does not record its spec.
    """
    path = trained.checkpoint_file(Path(text))
    spec = trained.read_record(path).spec
    if spec is None:
        raise CheckpointError(
            f"{path} does not say which spec it was trained with: give that too, `lengthwise export SPEC.toml "
            f"--checkpoint {path} --out ...`; for a module of yours, package.module:factory --checkpoint {path}"
        )
    return target_of_spec(text, options, spec, path)


def target_of_spec(text: str, options: TargetOptions, spec: Spec, weights: Path | None) -> SpecTarget:
    """The target of a spec and a checkpoint; `weights`: None for random weights.

    Raises:
        ConfigurationError: An option contradicts the spec, or the weights belong to another model.
    """  # noqa: DOC502 - what it calls raises it
    spec = spec.concrete() if weights is None else trained.with_chosen_keys(spec, weights)
    model, notices = trained.load(spec, weights)
    steps = spec.manifest(name="model", version=1).input
    labels, per_step = spec.output.labels, spec.output.task == "per-step"
    check_options_agree(text, options, steps, labels)
    return SpecTarget(
        text=text,
        subject=TorchSubject(model, steps, _signature_of_spec(steps), ClassifierOutput.present),
        labels=labels,
        per_step=per_step,
        names=GraphNames(sequences=steps.kind),
        notices=tuple(notices),
        checkpoint=weights,
        min_length=spec.input.min_length,
        training=trained.TrainingRecord() if weights is None else trained.read_record(weights),
        padding=spec.input.padding,
        spec=spec,
    )


def _signature_of_spec(steps: StepInput) -> CallSignature:
    """How a model of the built-in architecture is called."""
    if steps.static is None:
        return CallSignature()
    static = StaticArgument("static", steps.static.count)
    arguments = (("steps", None), ("lengths", None), (static.role, None))
    return CallSignature(arguments=arguments, statics=(static,))


def read_module(
    text: str, module: nn.Module, options: TargetOptions, *, blind: bool = False, layout: StepLayout | None = None
) -> TorchTarget:
    """Reads the target of a user's module. Its signature shows how to call it, its layers show the kind of a step.

    The weights of the option `checkpoint` are loaded into the module.

    Args:
        text: The name of the target in messages.
        module: The module, which may be a Keras model.
        options: The options of the target.
        blind: Whether the module may take the steps alone.
        layout: The layout of the steps that the user states for a check; None if there is none.

    Raises:
        ConfigurationError: The module is TorchScript, or its weights are not on the CPU.
        UncheckableError: It has lazy weights, which the first call would draw at random.
    """  # noqa: DOC502 - what it calls raises the second
    # 1. What cannot be traced or checked as it is
    module = _unwrapped(module)
    if is_keras(module):
        from lengthwise_export.keras_models import keras_targets

        return keras_targets.of_model(text, module, options)
    if isinstance(module, torch.jit.ScriptModule):
        raise ConfigurationError(f"{text} is TorchScript, which cannot be traced. {foreign_files.FROM_TORCHSCRIPT}")
    if elsewhere := {str(tensor.device) for tensor in (*module.parameters(), *module.buffers())} - {"cpu"}:
        raise ConfigurationError(f"{text} is on {', '.join(sorted(elsewhere))}: give copy.deepcopy(module).cpu()")
    # 2. The weights, and how the module is called
    checkpoint_path = _checkpoint_path(options)
    notices = []
    if checkpoint_path is not None:
        from lengthwise_export.architecture import checkpoint  # brings safetensors along

        notices = checkpoint.load(module, checkpoint_path)
    signature = _signature_of(module, options, blind=blind or options.width is not None, layout=layout)
    _require_no_lazy_weights(text, module)
    module, signature = fitted.module_of_any_width(module, signature, options)
    # 3. The kind of a step, found by running small batches
    state = ModuleState(in_evaluation(module))
    find_steps = read_packed_steps if signature.layout.packed else read_steps
    unread = TorchSubject(module, StepInput(features=1), signature, output_selector(options.output), state=state)
    subject, shape = find_steps(text, unread, options)
    subject = replace(subject, steps=fitted.steps_of_any_width(subject.steps, options))
    if options.width is not None:
        require_it_runs(text, subject, options)
    if signature.second == "none":
        require_order_of_axes(text, subject)
    labels = _labels_of_module(text, options, subject.steps, classes=shape[-1])
    state.restore()
    return ModuleTarget(
        text=text,
        subject=subject,
        labels=labels,
        per_step=len(shape) == 3,
        names=GraphNames(sequences=subject.steps.kind),
        blind=signature.second == "none",
        notices=tuple(notices),
        checkpoint=checkpoint_path,
    )


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module inside wrappers, such as that of `torch.compile`, which compute the same."""
    while isinstance(module, nn.DataParallel) or isinstance(getattr(module, "_orig_mod", None), nn.Module):
        module = module.module if isinstance(module, nn.DataParallel) else module._orig_mod  # type: ignore[assignment]  # asked above
    return module


def _require_no_lazy_weights(text: str, module: nn.Module) -> None:
    """Makes sure that the first call of a module draws no weights at random.

    Raises:
        UncheckableError: It would; the message names them.
    """
    lazy = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if is_lazy(tensor)]
    if lazy:
        raise UncheckableError(
            f"{text}: {', '.join(lazy[:3])} would be drawn at random at the first call, as those of nn.Lazy layers: "
            "pass the trained weights with --checkpoint, or call the module once before its weights are loaded"
        )


def _signature_of(
    module: nn.Module, options: TargetOptions, *, blind: bool, layout: StepLayout | None
) -> CallSignature:
    """How a module is called, by its signature and the options; `blind` and `layout` as for `read_module`."""
    settings: dict[str, Any] = {"numbers": options.features is not None, "channels_first": options.channels_first}
    if layout is not None and layout.packed is not None:
        return read_packed_signature(module, layout, **settings)
    settings |= {"time_first": options.time_first, "blind": blind, "positions": layout is not None}
    settings |= {"static": options.static or ()}
    return read_signature(module, second=options.second, **settings)


def _labels_of_module(text: str, options: TargetOptions, steps: StepInput, *, classes: int) -> tuple[str, ...]:
    """The names of the classes of a module: those that its checkpoint records, if it has as many; else by the options.

    Raises:
        ConfigurationError: An option contradicts them.
    """  # noqa: DOC502 - what it calls raises it
    labels, path = labels_of(text, options, classes), _checkpoint_path(options)
    recorded = None if path is None else trained.read_record(path).labels
    if recorded is None or len(recorded) != len(labels):
        return labels
    check_options_agree(text, options.model_copy(update={"features": None, "vocabulary": None}), steps, recorded)
    return recorded
