"""Loads Keras targets: a `.keras` or `.h5` file, or the Keras model that a user's factory returns."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from lengthwise.errors import ConfigurationError
from lengthwise.padding import pad
from lengthwise.runtime.manifest import StepInput, digest
from lengthwise_export.checking.causes import ArgumentNames
from lengthwise_export.checking.trace_torch import TorchSubject
from lengthwise_export.checking.trials import Sampler
from lengthwise_export.errors import RunError
from lengthwise_export.keras_models import loading
from lengthwise_export.keras_models.agreement import require_agreement
from lengthwise_export.keras_models.backend import first_line, import_keras, quiet
from lengthwise_export.keras_models.causes import IN_OWN_LAYER, LayerParts
from lengthwise_export.keras_models.config import REFUSED
from lengthwise_export.keras_models.inputs import all_layers, input_of, probable_scores
from lengthwise_export.keras_models.module import KerasModule
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets.module_target import module_target
from lengthwise_export.targets.target import Target, labels_of
from lengthwise_export.tracing.call_signature import CallSignature, OutputSelector, output_selector
from lengthwise_export.tracing.module_state import ModuleState

_NOT_KERAS: Final = ("checkpoint", "time_first", "channels_first", "second")
"""Options that describe torch modules; a Keras model says these things itself."""
_FLOAT: Final = "float32"
_WIDTHS: Final = (8, 64, 131)  # widths to try; convolutions without padding need many steps


def read_file(text: str, options: TargetOptions) -> Target:
    """The Keras model in a file."""
    path = Path(text)
    target = of_model(text, loading.load(path), options)
    made = {**target.made, "checkpoint": digest(path)}
    alone = None if target.alone is None else dataclasses.replace(target.alone, made=made)
    return dataclasses.replace(target, made=made, alone=alone)


def of_model(text: str, model: Any, options: TargetOptions) -> Target:
    """A Keras model. Its answers alone are compared with those of Keras first."""
    keras = import_keras()
    for name in _NOT_KERAS:
        if getattr(options, name) not in (None, False):
            raise ConfigurationError(f"--{name.replace('_', '-')} does not apply to {text} (Keras model)")
    if not isinstance(model, keras.Model):
        raise ConfigurationError(f"{text} gives a {type(model).__name__} of Keras: it must return a keras.Model")
    _require_servable(text, model)
    given = input_of(text, model, features=options.features, vocabulary=options.vocabulary)
    notices = given.masks
    if given.fixed is not None:
        model = with_any_width(text, model, given.fixed)
        notices = (
            *notices,
            f"it is built for sequences of exactly {given.fixed} steps; here each sequence gets the answer that the "
            "same layers give it at its own length, without padding",
        )
    for flag, said, own in (
        ("features", options.features, given.steps.features),
        ("vocabulary", options.vocabulary, given.steps.vocabulary),
    ):
        if said is not None and said != own:
            raise ConfigurationError(f"--{flag} {said} contradicts {text}, which has {own}")
    module = KerasModule(model).eval()
    is_built = all(layer.built for layer in all_layers(model))
    state = ModuleState(model)
    outputs = require_agreement(text, module, given)
    if not is_built:  # the first call makes the weights of such layers, and cannot be undone
        state = ModuleState(model)
    signature = CallSignature(features_axis=given.features_axis)
    select_output = _selector(text, outputs, options)
    shape = _shape(module, given.steps, signature, select_output)
    labels = labels_of(text, options, shape[-1])
    with_lengths, alone = (
        dataclasses.replace(
            module_target(
                text,
                "keras",
                module,
                given.steps,
                each,
                select_output,
                labels=labels,
                per_step=len(shape) == 3,
                whole=LayerParts(module),
                names=ArgumentNames(fix=IN_OWN_LAYER),
                state=state,
            ),
            notices=notices,
            scores=probable_scores(model),
            made={"framework": f"keras {keras.__version__}", **({"notices": "; ".join(notices)} if notices else {})},
        )
        for each in (signature, dataclasses.replace(signature, second="none"))
    )
    state.restore()
    return dataclasses.replace(with_lengths, alone=alone)


def _require_servable(text: str, model: Any) -> None:
    for layer in all_layers(model):
        kind = type(layer).__name__
        shown = f"{layer.name} ({kind})"
        if kind in REFUSED and kind != "Lambda" and type(layer).__module__.startswith("keras."):
            raise ConfigurationError(f"{text}: {shown} is not served: {REFUSED[kind]}")
        if getattr(layer, "stateful", False):
            raise ConfigurationError(
                f"{text}: {shown} is stateful: its answer depends on the calls before. Set stateful=False, which has "
                "the same weights"
            )
        computes_in = str(getattr(layer, "compute_dtype", _FLOAT))
        if computes_in != _FLOAT and ("float" in computes_in or getattr(layer, "quantization_mode", None)):
            raise ConfigurationError(
                f"{text}: {shown} computes in {computes_in}, and Lengthwise runs Keras models in float32: build the "
                "model with keras.config.set_dtype_policy('float32') and load its weights into that"
            )


def _selector(text: str, names: Sequence[str], options: TargetOptions) -> OutputSelector:
    chosen = options.output_name
    if len(names) > 1 and chosen is None:
        raise ConfigurationError(f"{text} has {len(names)} outputs ({', '.join(names)}): name one with --output")
    if chosen is not None and chosen.isdigit() and int(chosen) < len(names) and chosen not in names:
        chosen = names[int(chosen)]
    return output_selector(chosen)


def _shape(
    module: KerasModule, steps: StepInput, signature: CallSignature, select_output: OutputSelector
) -> tuple[int, ...]:
    """The shape of the answer to a batch at one of several widths, rows first."""
    subject = TorchSubject(module, steps, signature=signature, select_output=select_output)
    sampler = Sampler(steps, seed=0)
    for width in _WIDTHS:
        batch = pad([sampler.sequence(length) for length in (width - 1, width // 2, 1)], width=width)
        with contextlib.suppress(RunError):
            return subject.answer(batch).logits.shape
    return subject.answer(batch).logits.shape


def with_any_width(text: str, model: Any, fixed: int) -> Any:
    """The same model, with the same weights, for any number of steps."""
    keras = import_keras()
    (symbol,) = model.inputs
    free = keras.Input(batch_shape=(None, None, *symbol.shape[2:]), dtype=symbol.dtype, name=symbol.name)
    try:
        with quiet(), keras.device("cpu"):
            cloned = keras.models.clone_model(model, input_tensors=free, clone_function=_clone)
            cloned.set_weights(model.get_weights())
    except Exception as error:  # Keras raises many kinds
        raise ConfigurationError(
            f"{text} is built for exactly {fixed} steps, and cannot be built for any number: "
            f"{first_line(error)}. Build it with Input((None, ...)), with a pooling or an "
            "attention where Flatten is, and load its weights into that"
        ) from error
    return cloned


def _clone(layer: Any) -> Any:
    config = layer.get_config()
    return type(layer).from_config({**config, "unroll": False} if config.get("unroll") else config)
