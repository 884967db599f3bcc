"""Loads Keras targets: the model that a user's factory returns, or a file, without running anything that is in it.

file --archive--> configuration and weights, known layers only --Keras--> model --KerasModule--> the same answers alone

The file is copied first, so what is examined is what is loaded. Keras builds the model once without memory for its
weights, to compare their number with that in the file: a small file cannot ask for a large model.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from lengthwise.errors import ConfigurationError
from lengthwise.padding import pad
from lengthwise.runtime.manifest import GraphNames, StepInput, digest
from lengthwise_export.checking.causes import ArgumentNames
from lengthwise_export.checking.trace_torch import TorchSubject
from lengthwise_export.checking.trials import Sampler
from lengthwise_export.errors import RunError
from lengthwise_export.keras_models import archive
from lengthwise_export.keras_models.archive import FACTORY, FLOAT, IN_FLOAT32, REFUSED, STATEFUL, safe_config
from lengthwise_export.keras_models.backend import first_line, import_keras, on_device
from lengthwise_export.keras_models.causes import IN_OWN_LAYER, LayerParts
from lengthwise_export.keras_models.module import (
    MASK_FROM_STEPS,
    KerasModule,
    ModelInput,
    all_layers,
    input_of,
    probable_scores,
)
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets.target import (
    TorchTarget,
    check_options_agree,
    labels_of,
    one_torch_thread,
    require_applicable,
)
from lengthwise_export.tracing.call_signature import CallSignature, OutputSelector, output_selector
from lengthwise_export.tracing.module_state import ModuleState

_WIDTHS: Final = (8, 64, 131)  # widths to try; convolutions without padding need many steps


@dataclass(frozen=True, kw_only=True)
class KerasTarget(TorchTarget):
    """A Keras model, as a torch module of the same answers."""

    provenance: Mapping[str, str]  # The version of Keras, the digest of a file, and notices
    alone: KerasTarget | None = None  # The same model, called with the steps alone; None for that itself

    @property
    def unmended(self) -> KerasTarget:
        """The model that is called with the steps alone, whose masks a mend makes anew."""
        return self.alone or self

    def origin(self) -> dict[str, str | int | float | None]:
        """Where the model comes from; for a file, with its digest."""
        return super().origin() | dict(self.provenance)


def read_file(text: str, options: TargetOptions) -> KerasTarget:
    """The target of a Keras file, whose model is loaded without running anything that is in it."""
    path = Path(text)
    return of_model(text, load(path), options, {"checkpoint": digest(path)})


def of_model(text: str, model: Any, options: TargetOptions, origin: Mapping[str, str] | None = None) -> KerasTarget:
    """The target of a Keras model, whose answers to sequences alone are compared with those of Keras first.

    Args:
        text: What the user calls it, for messages.
        model: The model, or what a factory returned in its place.
        options: The description of the target.
        origin: Entries for `made` of the manifest.

    Raises:
        ConfigurationError: The factory returned a part of Keras that is no model.
    """
    keras = import_keras()
    require_applicable(text, "keras", options)
    if not isinstance(model, keras.Model):
        raise ConfigurationError(f"{text} gives a {type(model).__name__} of Keras: it must return a keras.Model")
    _require_servable(text, model)
    _require_steps_alone(text, model)
    model_input = input_of(text, model, features=options.features, vocabulary=options.vocabulary)
    notices = model_input.masks
    if model_input.fixed is not None:
        model = with_any_width(text, model, model_input.fixed)
        notices = (
            *notices,
            f"it is built for sequences of exactly {model_input.fixed} steps; here each sequence gets the answer that "
            "the same layers give it at its own length, without padding",
        )
    check_options_agree(text, options.model_copy(update={"classes": None, "labels": None}), model_input.steps, ())
    module = KerasModule(model).eval()
    is_built = all(layer.built for layer in all_layers(model))
    state = ModuleState(model)
    outputs = _require_agreement(text, module, model_input)
    if not is_built:  # the first call makes the weights of such layers, and cannot be undone
        state = ModuleState(model)
    signature = CallSignature(features_axis=model_input.features_axis)
    select_output = _selector(text, outputs, options)
    shape = _answer_shape(module, model_input.steps, signature, select_output)
    labels = labels_of(text, options, shape[-1])
    entries = {"framework": f"keras {keras.__version__}", **({"notices": "; ".join(notices)} if notices else {})}
    value = "" if model_input.padding == 0 else f"{model_input.padding:g}"
    mask = f"keras.layers.Masking({value}).compute_mask(inputs)"
    if model_input.steps.kind == "tokens" or not model_input.features_axis:
        mask = f"keras.ops.not_equal(inputs, {value or 0})"
    whole, names = LayerParts(module, mask), ArgumentNames(fix=IN_OWN_LAYER)
    with_lengths, alone = (
        KerasTarget(
            text=text,
            subject=TorchSubject(
                module, model_input.steps, each, select_output, whole=whole, own_names=names, state=state
            ),
            labels=labels,
            per_step=len(shape) == 3,
            names=GraphNames(sequences=model_input.steps.kind),
            blind=each.second == "none",
            notices=notices,
            scores=probable_scores(model),
            provenance=entries | dict(origin or {}),
        )
        for each in (signature, dataclasses.replace(signature, second="none"))
    )
    state.restore()
    return dataclasses.replace(with_lengths, alone=alone)


def _require_servable(text: str, model: Any) -> None:
    for layer in all_layers(model):
        kind, dtype = type(layer).__name__, str(getattr(layer, "compute_dtype", FLOAT))
        is_refused = kind in REFUSED and kind != "Lambda" and type(layer).__module__.startswith("keras.")
        is_number = "float" in dtype or getattr(layer, "quantization_mode", None)
        for is_wrong, why in (
            (is_refused, f"is not served: {REFUSED.get(kind)}"),
            (getattr(layer, "stateful", False), f"is stateful: {STATEFUL}"),
            (dtype != FLOAT and is_number, f"computes in {dtype}, {IN_FLOAT32}"),
        ):
            if is_wrong:
                raise ConfigurationError(f"{text}: {layer.name} ({kind}) {why}")


def _require_steps_alone(text: str, model: Any) -> None:
    """Makes sure that the model's `call` requires the steps only, and no lengths or mask.

    Raises:
        ConfigurationError: Its `call` requires further arguments.
    """
    steps, *others = inspect.signature(model.call).parameters.values()
    if more := [one.name for one in others if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]:
        how = MASK_FROM_STEPS.format(steps=steps.name, maker="self.masking")
        layer = "with self.masking = keras.layers.Masking() in __init__"
        raise ConfigurationError(f"{text}: call also takes {', '.join(more)}, and a sequence is one: {how} ({layer})")


def _selector(text: str, names: Sequence[str], options: TargetOptions) -> OutputSelector:
    chosen = None if options.output is None else str(options.output)
    if len(names) > 1 and chosen is None:
        raise ConfigurationError(f"{text} has {len(names)} outputs ({', '.join(names)}): name one with --output")
    if chosen is not None and chosen.isdigit() and int(chosen) < len(names) and chosen not in names:
        chosen = names[int(chosen)]
    return output_selector(chosen)


def _answer_shape(
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
    """A copy of a Keras model for any number of steps, with the same weights.

    Raises:
        ConfigurationError: A layer needs exactly `fixed` steps; the message says which.
    """
    keras = import_keras()
    (symbol,) = model.inputs
    free = keras.Input(batch_shape=(None, None, *symbol.shape[2:]), dtype=symbol.dtype, name=symbol.name)
    try:
        with on_device():
            cloned = keras.models.clone_model(model, input_tensors=free, clone_function=_clone_layer)
            cloned.set_weights(model.get_weights())
    except Exception as error:  # Keras raises many kinds
        why = f"is built for exactly {fixed} steps, and cannot be built for any number: {first_line(error)}"
        how = "Build it with Input((None, ...)), with a pooling where Flatten is, and load its weights into that"
        raise ConfigurationError(f"{text} {why}. {how}") from error
    return cloned


def _clone_layer(layer: Any) -> Any:
    config = layer.get_config()
    return type(layer).from_config({**config, "unroll": False} if config.get("unroll") else config)


_ZIP: Final = b"PK\x03\x04"
_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_SAVE_AGAIN: Final = "load it where it was made and save it again, with model.save('model.keras')"


def load(path: Path) -> Any:
    """The Keras model in a file.

    Raises:
        ConfigurationError: The file is not one of Keras, or holds something that is not read; the message says what to
            do.
    """
    with path.open("rb") as file:
        begin = file.read(8)
    try:
        with tempfile.TemporaryDirectory(prefix="lengthwise-keras-") as folder:
            if begin.startswith(_ZIP):
                return _load_archive(path, Path(folder))
            if begin == _HDF5:
                return _load_hdf5(path, Path(folder))
        raise ConfigurationError("it is neither a .keras file nor an HDF5 file")
    except ConfigurationError as error:
        text = f"{path}: {error}"  # names in it come from the file: a terminal must not obey them
        raise ConfigurationError("".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)) from error


def _load_archive(path: Path, folder: Path) -> Any:
    weights = folder / archive.WEIGHTS
    config, metadata = archive.read_archive(path, weights)
    keras = import_keras()
    stored = archive.require_plain(weights)
    safe = safe_config(config, keras.saving.get_registered_object)
    if not isinstance(safe, dict) or "class_name" not in safe or "config" not in safe:
        raise ConfigurationError(f"{archive.CONFIG} describes no model")
    by = metadata.get("keras_version")
    versions = f" (it was written by Keras {by}, this is {keras.__version__})" if isinstance(by, str) else ""

    def build() -> Any:  # Keras empties the configuration
        return keras.saving.deserialize_keras_object(copy.deepcopy(safe), safe_mode=True)

    older = f"If an older Keras wrote it, {_SAVE_AGAIN}; if a layer is your own, {FACTORY}"
    model = _build_model(keras, stored, build, versions, older)
    with on_device():
        try:
            model.load_weights(weights)
        except Exception as error:  # Keras raises many kinds
            raise ConfigurationError(f"the weights do not fit the model{versions}: {first_line(error)}") from error
    return model


def _load_hdf5(path: Path, folder: Path) -> Any:
    if path.stat().st_size > archive.MOST_BYTES:
        raise ConfigurationError(f"it has more than {archive.MOST_BYTES} bytes")
    copied = folder / "model.h5"
    shutil.copyfile(path, copied)
    keras = import_keras()
    stored = archive.require_plain(copied)
    import h5py

    with h5py.File(copied, "r+") as file:
        config = file.attrs.get("model_config")
        if config is None:
            raise ConfigurationError("it holds weights only, or no model: save it with model.save('model.keras')")
        if not isinstance(config, str | bytes) or len(config) > archive.MOST_CONFIG:
            raise ConfigurationError("its configuration is no text, or too long")
        file.attrs["model_config"] = json.dumps(safe_config(archive.parsed("model_config", config)))

    def build() -> Any:
        return keras.models.load_model(copied, compile=False, safe_mode=True)

    return _build_model(keras, stored, build, "", f"If it is of Keras 2, {_SAVE_AGAIN}")


def _build_model(keras: Any, stored: int, build: Callable[[], Any], versions: str, otherwise: str) -> Any:
    """Builds a model, first without memory for weights: it must not have more weights than the file stores.

    Args:
        keras: The module `keras`.
        stored: The number of values that the file stores.
        build: Builds the model.
        versions: The versions of Keras, for messages.
        otherwise: What to do if Keras cannot build it, for messages.

    Raises:
        ConfigurationError: Keras cannot build it, it is no model, or it has more weights than the file.
    """
    for device in ("meta", "cpu"):
        try:
            with on_device(device):
                model = build()
        except Exception as error:  # Keras raises many kinds
            why = f"it cannot be read by Keras {keras.__version__}{versions}: {first_line(error)}. {otherwise}"
            raise ConfigurationError(why) from error
        if not isinstance(model, keras.Model):
            raise ConfigurationError(f"it holds a {type(model).__name__}, which is no model")
        count = sum(math.prod(map(int, variable.shape)) for variable in model.weights)
        if count > stored:
            raise ConfigurationError(f"the model has {count} weights, and the file holds {stored}")
    return model


_SAME: Final = 1e-5  # the largest difference of equal answers, in units of max(1, |answer|)
_LENGTHS: Final = (1, 2, 3, 5, 7, 13)
"""Lengths of the sequences; where Keras raises at all of them, the longer ones are tried."""
_LONGER: Final = (24, 33, 64, 130)
_WIDER: Final = 4  # how much wider a padded batch is than its longest sequence


def _require_agreement(text: str, module: KerasModule, model_input: ModelInput, seed: int = 0) -> tuple[str, ...]:
    """Compares the module with Keras on the same sequences; returns the names (or numbers) of the outputs.

    Each sequence alone, as `model(sequence)` answers it, is what Lengthwise promises. A batch that is padded as Keras
    expects it shows that the mask of the lengths does what Keras' computed mask does, leaks included. Runs before these
    show the module which layers read the steps as they came in, and which masks are those of the lengths.
    """
    random = np.random.default_rng(seed)
    with torch.no_grad(), one_torch_thread():
        sequences = _sequences_that_run(text, module, model_input, random)
        padded = _padded_batches(sequences, model_input, random)
        module.known.learning = True
        try:
            for batch, lengths in padded:
                with contextlib.suppress(Exception):  # a model may take no batch as wide
                    module(batch, lengths)
        finally:
            module.known.learning = False
        for sequence in sequences:
            expected = _outputs_by_name(_answer_of_keras(module.model, sequence))
            for ends in (torch.tensor([sequence.shape[1]]), None):
                _require_equal(
                    text, expected, _outputs_by_name(module(sequence, ends)), f"a sequence of {sequence.shape[1]} steps"
                )
        batch, lengths = padded[0]
        expected = {}
        with contextlib.suppress(Exception):  # whatever a model raises at a width
            expected = _outputs_by_name(_answer_of_keras(module.model, batch))
        if expected:
            _require_equal(text, expected, _outputs_by_name(module(batch, lengths)), "a padded batch")
        answer = module(sequences[0], None)
        return tuple(map(str, answer)) if isinstance(answer, Mapping) else tuple(_outputs_by_name(answer))


def _sequences_that_run(
    text: str, module: KerasModule, model_input: ModelInput, random: np.random.Generator
) -> list[Tensor]:
    """Random sequences `[1, length(, features)]` of the lengths that Keras answers alone; at least two.

    Raises:
        ConfigurationError: Keras raises at nearly all lengths.
    """
    error: Exception | None = None
    for lengths in (_LENGTHS, _LONGER):
        running = []
        for length in lengths:
            sequence = _random_steps(model_input, (1, length), random)
            try:
                _answer_of_keras(module.model, sequence)
            except Exception as raised:  # whatever a model raises at a length
                error = raised
            else:
                running.append(sequence)
        if len(running) > 1:
            return running
    why = "" if error is None else first_line(error)
    raise ConfigurationError(f"{text} raises for sequences of {_LENGTHS[0]} to {_LONGER[-1]} steps: {why}") from error


def _answer_of_keras(model: Any, steps: Tensor) -> Any:
    """What Keras itself answers to steps, without lengths."""
    with on_device():
        return model(steps, training=False)


def _random_steps(model_input: ModelInput, shape: tuple[int, ...], random: np.random.Generator) -> Tensor:
    """Random steps `[rows, width(, features)]`, none of which Keras would mask."""
    steps = model_input.steps
    if steps.kind == "tokens":
        vocabulary = steps.vocabulary or 1
        return torch.from_numpy(random.integers(min(1, vocabulary - 1), vocabulary, shape))
    size = (*shape, steps.features or 1) if model_input.features_axis else shape
    values = random.standard_normal(size).astype(np.float32)
    return torch.from_numpy(np.where(values == model_input.padding, values + 1, values).astype(np.float32))


def _padded_batches(
    sequences: Sequence[Tensor], model_input: ModelInput, random: np.random.Generator
) -> list[tuple[Tensor, Tensor]]:
    """Three batches with their lengths `[rows]`: one padded as Keras masks it, and two with other values there."""
    lengths = torch.tensor([sequence.shape[1] for sequence in sequences])
    width = int(lengths.max()) + _WIDER
    batches = []
    for ends, fill in ((lengths, True), (lengths, False), (lengths.flip(0).clamp(max=width - 1), False)):
        batch = _random_steps(model_input, (len(ends), width), random)
        if fill:
            for row, end in enumerate(ends.tolist()):
                batch[row, end:] = 0 if model_input.steps.kind == "tokens" else model_input.padding
        batches.append((batch, ends))
    return batches


def _outputs_by_name(answer: Any) -> dict[str, Tensor]:
    if isinstance(answer, Tensor):
        return {"0": answer}
    if isinstance(answer, Mapping):  # a module names what Keras gives as a list
        answer = list(answer.values())
    return {str(index): value for index, value in enumerate(answer)} if isinstance(answer, tuple | list) else {}


def _require_equal(text: str, expected: Mapping[str, Tensor], actual: Mapping[str, Tensor], of: str) -> None:
    for value, own in zip(expected.values(), actual.values(), strict=True):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        if own.shape == value.shape and torch.equal(own.isfinite(), value.isfinite()):
            # What is not finite is for the check to say: Keras answers the same.
            own, value = (each.nan_to_num(0.0, 0.0, 0.0) for each in (own, value))
        apart = float((own - value).abs().max() / value.abs().max().clamp(min=1)) if own.shape == value.shape else None
        if apart is None or not apart <= _SAME:
            how = "have another shape" if apart is None else f"differ by {apart:.2g}"
            why = "an error of Lengthwise, or of a layer that is not the same twice"
            instead = "export it with model.export and give the ONNX file"
            raise ConfigurationError(f"{text}: the answers to {of} {how} from those of Keras, {why}: {instead}")
