"""Loads Keras targets: the model that a user's factory returns, or a file, without running anything that is in it.

file --archive--> configuration and weights, known layers only --Keras--> model

The file is copied first, so what is examined is what is loaded. Keras builds the model once without memory for its
weights, to compare their number with that in the file: a small file cannot ask for a large model.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from lengthwise.errors import ConfigurationError
from lengthwise.padding import pad
from lengthwise.runtime.manifest import StepInput, digest
from lengthwise_export.checking.causes import ArgumentNames
from lengthwise_export.checking.trace_torch import TorchSubject
from lengthwise_export.checking.trials import Sampler
from lengthwise_export.errors import RunError
from lengthwise_export.keras_models import archive
from lengthwise_export.keras_models.agreement import require_agreement
from lengthwise_export.keras_models.archive import FACTORY, REFUSED, examined
from lengthwise_export.keras_models.backend import first_line, import_keras, quiet
from lengthwise_export.keras_models.causes import IN_OWN_LAYER, LayerParts
from lengthwise_export.keras_models.inputs import all_layers, input_of, probable_scores
from lengthwise_export.keras_models.module import KerasModule
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets.step_inputs import module_target
from lengthwise_export.targets.target import Target, check_options_agree, labels_of, require_applicable
from lengthwise_export.tracing.call_signature import CallSignature, OutputSelector, output_selector
from lengthwise_export.tracing.module_state import ModuleState

_FLOAT: Final = "float32"
_WIDTHS: Final = (8, 64, 131)  # widths to try; convolutions without padding need many steps


def read_file(text: str, options: TargetOptions) -> Target:
    """The Keras model in a file."""
    path = Path(text)
    target = of_model(text, load(path), options)
    made = {**target.made, "checkpoint": digest(path)}
    alone = None if target.alone is None else dataclasses.replace(target.alone, made=made)
    return dataclasses.replace(target, made=made, alone=alone)


def of_model(text: str, model: Any, options: TargetOptions) -> Target:
    """A Keras model. Its answers alone are compared with those of Keras first."""
    keras = import_keras()
    require_applicable(text, "keras", options)
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
    check_options_agree(text, options.model_copy(update={"classes": None, "labels": None}), given.steps, ())
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


_ZIP: Final = b"PK\x03\x04"
_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_SAVE_AGAIN: Final = "load it where it was made and save it again, with model.save('model.keras')"


def load(path: Path) -> Any:
    """The Keras model in a file, or an error that says what to do."""
    text = str(path)
    with path.open("rb") as file:
        begin = file.read(8)
    try:
        with tempfile.TemporaryDirectory(prefix="lengthwise-keras-") as folder:
            if begin.startswith(_ZIP):
                return _load_archive(text, path, Path(folder))
            if begin == _HDF5:
                return _load_hdf5(text, path, Path(folder))
    except ConfigurationError as error:
        raise ConfigurationError(_printable(str(error))) from error
    raise ConfigurationError(f"{text} is neither a .keras file nor an HDF5 file")


def _printable(told: str) -> str:
    """A message without what a terminal would obey: names in it come from the file."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in told)


def _load_archive(text: str, path: Path, folder: Path) -> Any:
    weights = folder / archive.WEIGHTS
    config, metadata = archive.read_archive(text, path, weights)
    keras = import_keras()
    stored = archive.require_plain(text, weights)
    safe = examined(config, text, registered=keras.saving.get_registered_object)
    if not isinstance(safe, dict) or "class_name" not in safe or "config" not in safe:
        raise ConfigurationError(f"{text}: {archive.CONFIG} describes no model")
    by = metadata.get("keras_version")
    said = f" (it was written by Keras {by}, this is {keras.__version__})" if isinstance(by, str) else ""
    model = _made(text, keras, stored, lambda: _built(keras, safe, text, said))
    with quiet(), keras.device("cpu"):
        try:
            model.load_weights(weights)
        except Exception as error:  # Keras raises many kinds
            raise ConfigurationError(f"{text}: the weights do not fit the model{said}: {first_line(error)}") from error
    return model


def _load_hdf5(text: str, path: Path, folder: Path) -> Any:
    if path.stat().st_size > archive.MOST_BYTES:
        raise ConfigurationError(f"{text} has more than {archive.MOST_BYTES} bytes")
    copied = folder / "model.h5"
    shutil.copyfile(path, copied)
    keras = import_keras()
    stored = archive.require_plain(text, copied)
    import h5py

    with h5py.File(copied, "r+") as file:
        config = file.attrs.get("model_config")
        if config is None:
            raise ConfigurationError(
                f"{text} holds weights only, or no model: save the model, with model.save('model.keras')"
            )
        if not isinstance(config, str | bytes) or len(config) > archive.MOST_CONFIG:
            raise ConfigurationError(f"{text}: its configuration is no text, or too long")
        safe = examined(archive.parsed(f"{text}: model_config", config), text)
        file.attrs["model_config"] = json.dumps(safe)
    return _made(text, keras, stored, lambda: _loaded_hdf5(keras, copied, text))


def _loaded_hdf5(keras: Any, path: Path, text: str) -> Any:
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises many kinds
        raise ConfigurationError(
            f"{text} cannot be read by Keras {keras.__version__}: {first_line(error)}. If it is of Keras 2, "
            f"{_SAVE_AGAIN}"
        ) from error


def _made(text: str, keras: Any, stored: int, build: Callable[[], Any]) -> Any:
    """What `build` gives, if that is a model with no more weights than the file stores."""
    with quiet(), keras.device("meta"):
        model = build()
    if not isinstance(model, keras.Model):
        raise ConfigurationError(f"{text} holds a {type(model).__name__}, which is no model")
    wanted = sum(math.prod(map(int, variable.shape)) for variable in model.weights)
    if wanted > stored:
        raise ConfigurationError(f"{text}: the model has {wanted} weights, and the file holds {stored}")
    with quiet(), keras.device("cpu"):
        return build()


def _built(keras: Any, config: dict[str, Any], text: str, said: str) -> Any:
    try:
        return keras.saving.deserialize_keras_object(copy.deepcopy(config), safe_mode=True)  # Keras empties it
    except Exception as error:  # Keras raises many kinds
        raise ConfigurationError(
            f"{text} cannot be read by Keras {keras.__version__}{said}: {first_line(error)}. If an older Keras wrote "
            f"it, {_SAVE_AGAIN}; if a layer is your own, {FACTORY}"
        ) from error
