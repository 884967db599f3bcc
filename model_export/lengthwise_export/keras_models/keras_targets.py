"""Loads Keras targets: the model that a user's factory returns, or a file, without running anything that is in it.

file --archive--> configuration and weights, known layers only --Keras--> model --KerasModule--> a torch module

The file is copied first, so that the bytes that are checked are those that are loaded. Keras builds the model first on
torch's device `meta`, without memory for weights, and their number is compared with that in the file: a small file
cannot ask for a large model.

The *text* of a target is what the user calls it, such as `model.keras` or `file.py:factory`; messages begin with it.
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
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from numpy.typing import NDArray

from lengthwise.exporter_api.contract import GraphNames, digest, pad
from lengthwise_export.checking.recording import ArgumentNames
from lengthwise_export.checking.trace_torch import TorchSubject
from lengthwise_export.checking.trials import Sampler
from lengthwise_export.errors import ConfigurationError, RunError
from lengthwise_export.keras_models import archive
from lengthwise_export.keras_models.agreement import require_agreement
from lengthwise_export.keras_models.archive import FACTORY, FLOAT, IN_FLOAT32, REFUSED, STATEFUL, safe_config
from lengthwise_export.keras_models.backend import first_line, import_keras, on_device
from lengthwise_export.keras_models.causes import IN_OWN_LAYER, LayerParts
from lengthwise_export.keras_models.module import (
    MASK_FROM_STEPS,
    KerasModule,
    ModelInput,
    input_of,
    probable_scores,
)
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets.target import (
    TorchTarget,
    check_options_agree,
    labels_of,
    require_applicable,
)
from lengthwise_export.tracing.call_signature import CallSignature
from lengthwise_export.tracing.module_state import ModuleState
from lengthwise_export.tracing.outputs import output_selector

_SECOND_ARGUMENTS: Final[tuple[Literal["lengths", "none"], ...]] = ("lengths", "none")
_WIDTHS: Final = (8, 64, 131)  # widths to try; convolutions without padding need many steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class KerasTarget(TorchTarget):
    """A Keras model, as a torch module that gives the same answers."""

    provenance: Mapping[str, str]  # Entries of the manifest: the version of Keras, the digest of a file, and notices

    def origin(self) -> dict[str, str | int | float | None]:
        """Where the model comes from, as entries of the manifest; for a file, with its digest."""
        return super().origin() | dict(self.provenance)


def read_file(text: str, options: TargetOptions) -> KerasTarget:
    """The target of the Keras file at the path `text`, whose model is loaded without running code from the file."""
    path = Path(text)
    return of_model(text, load(path), options, {"checkpoint": digest(path)})


def of_model(text: str, model: Any, options: TargetOptions, origin: Mapping[str, str] | None = None) -> KerasTarget:
    """The target of a Keras model, whose torch module answers as Keras does: their answers are compared first.

    The state of the model is restored, but for weights that the first call makes.

    Args:
        text: The user's name of the target, for messages.
        model: What the file holds or the factory returned; a `keras.Model`, or it is refused.
        options: The description of the target.
        origin: Entries for `made` of the manifest.

    Raises:
        ConfigurationError: The factory returned an object of Keras that is not a model, or the answers differ.
    """
    # 1. What can be served, and its input
    keras = import_keras()
    require_applicable(text, "keras", options)
    if not isinstance(model, keras.Model):
        raise ConfigurationError(f"{text} gives a {type(model).__name__} of Keras: it must return a keras.Model")
    _require_servable(text, model)
    _require_steps_only(text, model)
    model_input = input_of(text, model, options)
    notices: tuple[str, ...] = ()
    if model_input.fixed is not None:
        model = with_any_width(text, model, model_input.fixed, [static.name for static in model_input.statics])
        notices = (
            f"it is built for sequences of exactly {model_input.fixed} steps; here each sequence gets the answer that "
            "the same layers give it at its own length, without padding",
        )
    # The classes and labels are those of the answers, which are not known yet (`labels_of`)
    check_options_agree(text, options.model_copy(update={"classes": None, "labels": None}), model_input.steps, ())
    # 2. Its torch module, which answers as Keras does
    agreeing = _AgreeingModule.of(text, model, model_input)
    notices = (*agreeing.model_input.mask_notices, *notices)
    # 3. One target that is called with lengths, and one without
    entries = {"framework": f"keras {keras.__version__}", **({"notices": "; ".join(notices)} if notices else {})}
    signature, steps_alone = (agreeing.model_input.signature(second) for second in _SECOND_ARGUMENTS)
    output = _output_name(text, agreeing.outputs, options)
    subject = agreeing.subject(signature, output)
    answer = _small_answer(subject)
    labels = labels_of(text, options, answer.shape[-1])
    with_lengths, without_lengths = (
        KerasTarget(
            text=text,
            subject=dataclasses.replace(subject, signature=call_signature),
            labels=labels,
            per_step=answer.ndim == 3,
            names=GraphNames(sequences=model_input.steps.kind),
            blind=call_signature.second == "none",
            notices=notices,
            scores=probable_scores(model, output, agreeing.outputs, answer),
            provenance=entries | dict(origin or {}),
        )
        for call_signature in (signature, steps_alone)
    )
    agreeing.state.restore()
    return dataclasses.replace(with_lengths, without_lengths=without_lengths)


@dataclasses.dataclass(frozen=True, slots=True)
class _AgreeingModule:
    """A Keras model as a torch module that answers as Keras does."""

    module: KerasModule
    model_input: ModelInput  # With what its runs have shown of a mask by hand
    outputs: Sequence[str]  # The names of the outputs, or their indices as texts
    state: ModuleState  # That before the calls here; if the first call makes weights, that after it

    @classmethod
    def of(cls, text: str, model: Any, model_input: ModelInput) -> _AgreeingModule:
        """Makes the module, and compares its answers with those of Keras.

        Raises:
            ConfigurationError: They differ.
        """  # noqa: DOC502 - what it calls raises it
        module = KerasModule(model, model_input).eval()
        was_built = all(layer.built for layer in model._flatten_layers(include_self=False))
        state = ModuleState(model)
        module, model_input, outputs = require_agreement(text, module, model_input)
        return cls(module, model_input, outputs, state if was_built else ModuleState(model))

    def subject(self, signature: CallSignature, output: str | None) -> TorchSubject:
        """The model under check, called by a signature; `output` is the name of the output, None for the only one."""
        masked_value = "" if self.model_input.padding == 0 else f"{self.model_input.padding:g}"
        mask_code = f"keras.layers.Masking({masked_value}).compute_mask(inputs)"
        if self.model_input.steps.kind == "tokens" or not self.model_input.features_axis:
            mask_code = f"keras.ops.not_equal(inputs, {masked_value or 0})"
        return TorchSubject(
            self.module,
            self.model_input.steps,
            signature,
            output_selector(output),
            describe_part=LayerParts(self.module, mask_code),
            own_names=ArgumentNames(fix=IN_OWN_LAYER),
            state=self.state,
        )


def _require_servable(text: str, model: Any) -> None:
    """Makes sure that each layer is one that can be served: known, without a state between calls, and in float32.

    Raises:
        ConfigurationError: A layer is not; the message names it.
    """
    for layer in model._flatten_layers(include_self=False):
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


def _require_steps_only(text: str, model: Any) -> None:
    """Makes sure that the model's `call` requires the steps only, and no lengths or mask.

    Raises:
        ConfigurationError: It requires further arguments; the message names them, and says how to make a mask.
    """
    steps, *further_parameters = inspect.signature(model.call).parameters.values()
    required = [
        parameter.name
        for parameter in further_parameters
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    if required:
        advice = MASK_FROM_STEPS.format(steps=steps.name, maker="self.masking")
        layer = "with self.masking = keras.layers.Masking() in __init__"
        names = ", ".join(required)
        raise ConfigurationError(f"{text}: call also takes {names}, and a sequence is one: {advice} ({layer})")


def _output_name(text: str, output_names: Sequence[str], options: TargetOptions) -> str | None:
    """The name of the output of the option `--output`, a name or an index; None for the only output.

    `output_names` are the names of all outputs.

    Raises:
        ConfigurationError: The model has several outputs, and the option names none.
    """
    output = None if options.output is None else str(options.output)
    if len(output_names) > 1 and output is None:
        raise ConfigurationError(
            f"{text} has {len(output_names)} outputs ({', '.join(output_names)}): name one with --output"
        )
    if output is not None and output.isdigit() and int(output) < len(output_names) and output not in output_names:
        output = output_names[int(output)]
    return output


def _small_answer(subject: TorchSubject) -> NDArray[Any]:
    """The answer to a small batch, rows first and classes last, at the first of `_WIDTHS` that runs.

    If none runs, raises the error of the last one.
    """
    sampler = Sampler(subject.steps, seed=0)
    for width in _WIDTHS:
        batch = pad([sampler.sequence(length) for length in (width - 1, width // 2, 1)], width=width)
        with contextlib.suppress(RunError):
            return subject.answer(batch).logits
    return subject.answer(batch).logits


def with_any_width(text: str, model: Any, fixed: int, beside: Collection[str] = ()) -> Any:
    """A copy of a Keras model that takes any number of steps, with the same weights; it is built for `fixed` steps.

    `beside` are the names of its inputs with static values.

    Raises:
        ConfigurationError: A layer needs exactly `fixed` steps; the message says which.
    """
    keras = import_keras()
    new_inputs = []
    for symbol in model.inputs:
        is_fixed = len(symbol.shape) > 1 and symbol.name not in beside
        shape = (None, None, *symbol.shape[2:]) if is_fixed else symbol.shape
        new_inputs.append(keras.Input(batch_shape=shape, dtype=symbol.dtype, name=symbol.name))
    try:
        with on_device():
            cloned = keras.models.clone_model(
                model, input_tensors=new_inputs[0] if len(new_inputs) == 1 else new_inputs, clone_function=_clone_layer
            )
            cloned.set_weights(model.get_weights())
    except Exception as error:  # Keras raises many kinds
        raise ConfigurationError(
            f"{text} is built for exactly {fixed} steps, and cannot be built for any number: {first_line(error)}. "
            "Build it with Input((None, ...)), with a pooling where Flatten is, and load its weights into that"
        ) from error
    return cloned


def _clone_layer(layer: Any) -> Any:
    """A copy of a layer, with `unroll=False` if it is recurrent: an unrolled one runs at one number of steps only."""
    config = layer.get_config()
    return type(layer).from_config({**config, "unroll": False} if config.get("unroll") else config)


# The first bytes of files
_ZIP: Final = b"PK\x03\x04"
_SAVE_AGAIN: Final = "load it where it was made and save it again, with model.save('model.keras')"


def load(path: Path) -> Any:
    """Loads the Keras model in a .keras or an HDF5 file.

    Raises:
        ConfigurationError: The file is not one of Keras, or holds something that is not read; the message says what to
            do.
    """
    with path.open("rb") as file:
        signature = file.read(8)
    try:
        with tempfile.TemporaryDirectory(prefix="lengthwise-keras-") as folder:
            if signature.startswith(_ZIP):
                return _load_archive(path, Path(folder))
            return _load_hdf5(path, Path(folder))
    except ConfigurationError as error:
        text = f"{path}: {error}"  # it may hold names from the file: no control sequence may reach a terminal
        raise ConfigurationError("".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)) from error


def _load_archive(path: Path, folder: Path) -> Any:
    """Loads the model in a .keras file, whose weights are first copied into `folder`.

    Raises:
        ConfigurationError: The archive, its configuration or its weights are not accepted.
    """
    weights = folder / archive.WEIGHTS
    config, metadata = archive.read_archive(path, weights)
    keras = import_keras()
    stored_count = archive.require_numbers_only(weights)
    model_config = safe_config(config, keras.saving.get_registered_object)
    if not isinstance(model_config, dict) or not {"class_name", "config"} <= model_config.keys():
        raise ConfigurationError(f"{archive.CONFIG} describes no model")
    writer = metadata.get("keras_version")
    versions = f" (it was written by Keras {writer}, this is {keras.__version__})" if isinstance(writer, str) else ""

    def build() -> Any:  # Keras empties the configuration, so each call gets a copy
        return keras.saving.deserialize_keras_object(copy.deepcopy(model_config), safe_mode=True)

    advice = f"If an older Keras wrote it, {_SAVE_AGAIN}; if a layer is your own, {FACTORY}"
    model = _build_model(keras, stored_count, build, versions, advice)
    with on_device():
        try:
            model.load_weights(weights)
        except Exception as error:  # Keras raises many kinds
            raise ConfigurationError(f"the weights do not fit the model{versions}: {first_line(error)}") from error
    return model


def _load_hdf5(path: Path, folder: Path) -> Any:
    """Loads the model in an HDF5 file, which is first copied into `folder`; the copy gets the safe configuration.

    Raises:
        ConfigurationError: The file, its configuration or its weights are not accepted.
    """
    if path.stat().st_size > archive.MOST_BYTES:
        raise ConfigurationError(f"it has more than {archive.MOST_BYTES} bytes")
    copied = folder / "model.h5"
    shutil.copyfile(path, copied)
    keras = import_keras()
    stored_count = archive.require_numbers_only(copied)
    import h5py

    with h5py.File(copied, "r+") as file:
        config = file.attrs.get("model_config")
        if config is None:
            raise ConfigurationError("it holds weights only, or no model: save it with model.save('model.keras')")
        if not isinstance(config, str | bytes) or len(config) > archive.MOST_CONFIG:
            raise ConfigurationError("its configuration is no text, or too long")
        file.attrs["model_config"] = json.dumps(safe_config(archive.parse_json("model_config", config)))

    def build() -> Any:
        return keras.models.load_model(copied, compile=False, safe_mode=True)

    return _build_model(keras, stored_count, build, "", f"If it is of Keras 2, {_SAVE_AGAIN}")


def _build_model(keras: Any, stored_count: int, build: Callable[[], Any], versions: str, advice: str) -> Any:
    """Builds a model and returns it; first without memory for weights, to compare their number with that in the file.

    Args:
        keras: The module `keras`.
        stored_count: The number of values that the file stores; the model must not have more weights.
        build: Builds the model.
        versions: The versions of Keras, for messages; empty if the file does not say its version.
        advice: What to do if Keras cannot build it, for messages.

    Raises:
        ConfigurationError: Keras cannot build it, it is not a model, or it has more weights than the file.
    """
    for device in ("meta", "cpu"):
        try:
            with on_device(device):
                model = build()
        except Exception as error:  # Keras raises many kinds
            why = f"it cannot be read by Keras {keras.__version__}{versions}: {first_line(error)}. {advice}"
            raise ConfigurationError(why) from error
        if not isinstance(model, keras.Model):
            raise ConfigurationError(f"it holds a {type(model).__name__}, which is no model")
        count = sum(math.prod(map(int, variable.shape)) for variable in model.weights)
        if count > stored_count:
            raise ConfigurationError(f"the model has {count} weights, and the file holds {stored_count}")
    return model
