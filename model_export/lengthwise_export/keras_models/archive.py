"""Examines Keras files before Keras sees them: a zip file with a configuration and weights, or HDF5.

A configuration names classes and functions, and Keras imports and calls them. Its `safe_mode` refuses code that is
stored in the file, but not everything that such a name could call. So each name must be in a table here. What only
training needs (initializers, regularizers, constraints, the optimizer) is left out: the weights come from the file.
Of weights, nothing but numbers is read.

A configuration is JSON; each layer in it is an object such as
`{"class_name": "Dense", "module": "keras.layers", "registered_name": null, "config": {"name": "dense", "units": 8}}`.
"""

from __future__ import annotations

import json
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from lengthwise_export.errors import ConfigurationError

# The members of a .keras file
CONFIG: Final = "config.json"
METADATA: Final = "metadata.json"
WEIGHTS: Final = "model.weights.h5"
SHARDS: Final = "model.weights.json"  # in a file whose weights are in several members
MOST_CONFIG: Final = 32 << 20  # the largest configuration, in bytes
MOST_BYTES: Final = 8 << 30  # the largest file of weights, in bytes
_MOST_MEMBERS: Final = 16
_MOST_EXPANSION: Final = 100  # how many times larger than its stored bytes a member or array may be
_FREE: Final = 1 << 20  # up to this number of bytes, members and arrays may expand more than that


def read_archive(path: Path, weights: Path) -> tuple[Any, dict[str, Any]]:
    """Reads the configuration and the metadata of a .keras file, and copies its weights into the file `weights`.

    The metadata is empty if there is none, or it is no JSON object.

    Raises:
        ConfigurationError: It is not such an archive, or holds something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # Check the members
            infos = archive.infolist()
            if len(infos) > _MOST_MEMBERS and not any(info.filename.startswith("assets/") for info in infos):
                raise ConfigurationError(f"it has {len(infos)} members; a .keras file has three")
            members: dict[str, zipfile.ZipInfo] = {}
            for info in infos:
                _require_known_member(info, is_duplicate=info.filename in members)
                members[info.filename] = info
            if missing := [name for name in (CONFIG, WEIGHTS) if name not in members]:
                raise ConfigurationError(
                    f"it has no {' and no '.join(missing)}: it is no model that model.save('model.keras') wrote"
                )
            # Read them
            config, metadata = (
                _read_json(archive, members[name]) if name in members else {} for name in (CONFIG, METADATA)
            )
            with archive.open(members[WEIGHTS]) as source, weights.open("wb") as target:
                shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise ConfigurationError(f"it cannot be read as a .keras file: {error}") from error
    return config, metadata if isinstance(metadata, dict) else {}


def _require_known_member(info: zipfile.ZipInfo, *, is_duplicate: bool) -> None:
    """Makes sure that a member of a zip file is a part of a .keras file.

    It must have one of three names, be there once, be a plain file, and not be too large.

    Raises:
        ConfigurationError: It is something else; the message says what.
    """
    name, size = info.filename, info.file_size
    most_bytes = MOST_BYTES if name == WEIGHTS else MOST_CONFIG
    reason_of_asset = "which belongs to a layer that prepares data: give a keras.Model of the layers behind it"
    is_shard = name == SHARDS or (name.endswith(".weights.h5") and name != WEIGHTS)
    reason_of_expansion = f"of which the archive stores {info.compress_size}: Keras wrote no such file"
    for is_wrong, why in (
        (is_duplicate, f"has {name} twice"),
        (name.startswith("assets/"), f"has {name}, {reason_of_asset}"),
        (is_shard, "has its weights in several files: save it with model.save('model.keras') without max_shard_size"),
        (name not in (CONFIG, METADATA, WEIGHTS), f"has {name[:80]!r}, which is no part of a .keras file"),
        (stat.S_ISLNK(info.external_attr >> 16), f"has {name} as a link"),
        (info.flag_bits & 1, f"has {name} encrypted"),
        (size > most_bytes, f"has {size} bytes in {name}; at most {most_bytes} are read"),
        (_expands(size, info.compress_size), f"has {size} bytes in {name}, {reason_of_expansion}"),
    ):
        if is_wrong:
            raise ConfigurationError(f"it {why}")


def _expands(unpacked_bytes: int, stored_bytes: int) -> bool:
    """Whether data is so much larger than its stored bytes that it is a zip bomb; Keras does not compress."""
    return unpacked_bytes > _FREE and unpacked_bytes > _MOST_EXPANSION * max(stored_bytes, 1)


def _read_json(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    """Reads a member as JSON. With a limit, zipfile inflates no more, whatever size its directory says."""
    with archive.open(info) as file:
        return parse_json(info.filename, file.read(MOST_CONFIG))


def parse_json(name: str, data: bytes | str) -> Any:
    """Parses a JSON text, and returns its values.

    Raises:
        ConfigurationError: It is not JSON, or nested too deeply; the message begins with `name`.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigurationError(f"{name} is not JSON: {why}") from error


_MOST_OBJECTS: Final = 100_000  # the largest number of groups and arrays in a file of weights
_MOST_DEPTH: Final = 64  # how deeply its groups may be nested


def require_numbers_only(path: Path) -> int:
    """Makes sure that an HDF5 file holds nothing but arrays of numbers; returns the number of these numbers.

    Raises:
        ConfigurationError: It has links, arrays in other files, or too many parts or bytes; or it is not an HDF5 file.
    """
    import h5py  # comes with Keras

    count_of_numbers = byte_count = 0
    try:
        with h5py.File(path, "r") as file:
            for count, (description, part) in enumerate(_parts_of_group(file, h5py), start=1):
                if count > _MOST_OBJECTS:
                    raise ConfigurationError(f"its weights have more than {_MOST_OBJECTS} parts")
                if isinstance(part, h5py.Dataset):
                    _require_numbers(description, part)
                    count_of_numbers, byte_count = count_of_numbers + part.size, byte_count + part.nbytes
                if byte_count > MOST_BYTES:
                    raise ConfigurationError(f"its weights have more than {MOST_BYTES} bytes")
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise ConfigurationError(f"its weights cannot be read as HDF5: {error}") from error
    return int(count_of_numbers)


def _parts_of_group(group: Any, h5py: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yields the groups and arrays in an HDF5 group, and those in its groups: a description for messages, and the part.

    `h5py` is the module, and `depth` that of the group in the file.

    Raises:
        ConfigurationError: A part is a link, or neither a group nor an array; or the groups are nested too deeply.
    """
    if depth > _MOST_DEPTH:
        raise ConfigurationError("its weights are nested too deeply")
    for name in group:
        description = f"{name[:80]!r} in its weights"
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ConfigurationError(f"{description} is a link to something else, which Keras does not write")
        part = group[name]
        if not isinstance(part, h5py.Group | h5py.Dataset):
            raise ConfigurationError(f"{description} is not an array")
        yield description, part
        if isinstance(part, h5py.Group):
            yield from _parts_of_group(part, h5py, depth + 1)


def _require_numbers(description: str, array: Any) -> None:
    """Makes sure that an HDF5 array holds numbers, in the file itself, and is not a decompression bomb.

    Raises:
        ConfigurationError: It is another kind of array; the message begins with `description`.
    """
    is_null, stored_bytes = array.shape is None, array.id.get_storage_size()  # HDF5 has arrays without a shape: null
    byte_count = 0 if is_null else array.nbytes
    for is_wrong, why in (
        (array.external or array.is_virtual, "is in another file, which Keras does not write"),
        (is_null, "holds nothing, not even a number"),
        (array.dtype.kind not in "fiub", f"is an array of {array.dtype}, not of numbers"),
        (
            _expands(byte_count, stored_bytes),
            f"has {byte_count} bytes, of which {stored_bytes} are stored: that is not a file that Keras wrote",
        ),
    ):
        if is_wrong:
            raise ConfigurationError(f"{description} {why}")


# Advice in messages
FACTORY: Final = "write a function that returns the model, and name it, as in file.py:factory"

_LAYERS: Final = (
    "Sequential Functional Model InputLayer Masking Embedding Dense EinsumDense Identity "
    "SimpleRNN LSTM GRU RNN Bidirectional TimeDistributed SimpleRNNCell LSTMCell GRUCell StackedRNNCells "
    "Attention AdditiveAttention MultiHeadAttention GroupQueryAttention GroupedQueryAttention Conv1D Convolution1D "
    "SeparableConv1D SeparableConvolution1D DepthwiseConv1D Conv1DTranspose Convolution1DTranspose "
    "MaxPooling1D AveragePooling1D MaxPool1D AvgPool1D AdaptiveAveragePooling1D AdaptiveMaxPooling1D "
    "GlobalMaxPooling1D GlobalAveragePooling1D GlobalMaxPool1D GlobalAvgPool1D "
    "BatchNormalization LayerNormalization GroupNormalization UnitNormalization RMSNormalization "
    "SpectralNormalization Normalization Rescaling Activation ReLU LeakyReLU PReLU ELU Softmax "
    "Dropout SpatialDropout1D GaussianDropout GaussianNoise AlphaDropout ActivityRegularization "
    "Add Subtract Multiply Average Maximum Minimum Concatenate Dot "
    "Reshape Permute RepeatVector Flatten UpSampling1D ZeroPadding1D Cropping1D"
)
LAYERS: Final = frozenset(_LAYERS.split())
"""The layers of Keras that a file may hold."""

_NOT_READ: Final = {
    "Lambda": "its function is code, which is not read from a file: write it as layers or keras.ops, or, if you trust "
    f"it, {FACTORY}",
    "TFSMLayer": "it runs TensorFlow: build the model of Keras' own layers",
    "JaxLayer FlaxLayer": "it runs JAX: build the model of Keras' own layers",
    "TorchModuleWrapper": f"it holds a pickled module: {FACTORY}",
    "TextVectorization StringLookup IntegerLookup Hashing HashedCrossing Discretization CategoryEncoding "
    "MelSpectrogram STFTSpectrogram": "it prepares data: do this before a sequence is sent, and give a keras.Model of "
    "the layers behind it",
    "TFOpLambda SlicingOpLambda TensorFlowOpLayer": "Keras 2 wrote it for an operation of TensorFlow between layers: "
    "build it with keras.ops in Keras 3, load its weights with load_weights, and save that",
    "ConvLSTM1D ConvLSTM2D ConvLSTM3D ConvLSTM1DCell ConvLSTM2DCell ConvLSTM3DCell": "it convolves inside each step, "
    "for which ONNX has no recurrent operator: use Conv1D in TimeDistributed, and an LSTM behind it",
}
REFUSED: Final[Mapping[str, str]] = {name: why for names, why in _NOT_READ.items() for name in names.split()}
"""Layers that are known and not read, with what to do instead."""

# Keys of a configuration that only training needs: how they end, and whole keys
_TRAINING_SUFFIXES: Final = ("_regularizer", "_constraint")
_TRAINING_KEYS: Final = ("compile_config", "optimizer", "optimizer_config", "loss", "metrics")
# Names of classes and of their modules
_OPERATIONS: Final = ("keras.src.ops.numpy", "keras.src.ops.nn", "keras.src.ops.core", "keras.src.ops.math")
_CALL_FUNCTIONS: Final = frozenset(  # operations that call a function, which a file could name
    {"Map", "Scan", "AssociativeScan", "WhileLoop", "ForiLoop", "Switch", "Cond", "VectorizedMap", "CustomGradient"}
)
_LAYER_MODULES: Final = ("keras", "keras.layers", "keras.models", "keras.src.models.functional")
_POLICIES: Final = ("DTypePolicy", "Policy", "DTypePolicyMap")
_VALUES: Final = frozenset({"__keras_tensor__", "__tensor__", "__numpy__", "__ellipsis__", "__slice__", "__tuple__"})
FLOAT: Final = "float32"
# The ends of messages about layers
IN_FLOAT32: Final = (
    "and Lengthwise runs Keras models in float32: build the model with keras.config.set_dtype_policy('float32') and "
    "load its weights into that"
)
STATEFUL: Final = "its answer depends on the calls before. Set stateful=False, which has the same weights"


def safe_config(config: Any, registered: Callable[[str], Any] = lambda name: None) -> Any:
    """Checks every class that a configuration names; returns a copy of it without what only training needs.

    Args:
        config: The configuration, as parsed JSON.
        registered: Returns the class or function that is registered with Keras under a name, or None.

    Raises:
        ConfigurationError: It names a class that is neither in the tables here nor registered, or is nested too deeply;
            the message names the layer, and says what to do.
    """
    try:
        return _without_training(config, registered)
    except RecursionError:
        raise ConfigurationError("the configuration is nested too deeply") from None


def _without_training(value: Any, registered: Callable[[str], Any]) -> Any:
    """Returns a copy of a part of the configuration without what only training needs, and so of the parts inside it.

    Regularizers and constraints become null, initializers `zeros`, and the keys of optimizers and losses go away. Each
    class that is named there is checked (`_require_known`).

    Raises:
        ConfigurationError: A key is not a text, or an object names a class that is not accepted.
    """
    if isinstance(value, list):
        return [_without_training(item, registered) for item in value]
    if not isinstance(value, dict):
        return value
    if "class_name" in value:
        _require_known(value, registered)
    safe: dict[str, Any] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise ConfigurationError("the configuration has a key that is no text")
        if key.endswith(_TRAINING_SUFFIXES):
            safe[key] = None
        elif key.endswith("_initializer") and item is not None:
            safe[key] = "zeros"  # the weights come from the file
        elif key not in _TRAINING_KEYS or "config" not in value:  # without `config`, it is an argument of a layer
            safe[key] = _without_training(item, registered)
    return safe


def _require_known(node: dict[str, Any], registered: Callable[[str], Any]) -> None:
    """Makes sure that an object of a configuration names a class that is accepted.

    - Values such as tensors (`_VALUES`).
    - Classes that the user has registered with Keras: under another name than their own, which `registered` knows.
    - Operations between layers, but those that call a function.
    - Policies of precision, if it is float32.
    - Layers in `LAYERS` that are neither stateful nor of another precision.

    Raises:
        ConfigurationError: It names another class. The message names the layer, and says what to do.
    """
    name, module, config = node["class_name"], node.get("module"), node.get("config")
    alias, arguments = node.get("registered_name"), config if isinstance(config, dict) else {}
    # All but layers
    if not isinstance(name, str) or not isinstance(module, str | None):
        raise ConfigurationError("the configuration names a class that is no text")
    if name in _VALUES:
        return
    if name == "function" or module == "builtins":
        function_name = config if isinstance(config, str) else name
        raise ConfigurationError(
            f"it calls the function {function_name!r}, which is not one of Keras' layers: {FACTORY}"
        )
    is_custom = isinstance(alias, str) and alias != name and registered(alias) is not None
    if is_custom or (module in _OPERATIONS and name not in _CALL_FUNCTIONS):
        return
    if name in _POLICIES and module in (None, "keras", "keras.dtype_policies", "keras.mixed_precision"):
        _require_float32("a layer", arguments.get("name"))
        return
    # Layers
    layer_name = arguments.get("name")
    description = f"{layer_name} ({name})" if isinstance(layer_name, str) and layer_name != name else name
    _require_layer(name, module, alias, description)
    dtype = arguments.get("dtype")
    if isinstance(dtype, str) and (dtype.startswith("mixed_") or dtype in ("float16", "bfloat16", "float64")):
        _require_float32(description, dtype)
    if arguments.get("stateful"):
        raise ConfigurationError(f"{description} is stateful: {STATEFUL}")


def _require_layer(name: str, module: str | None, alias: Any, description: str) -> None:
    """Makes sure that a class is one of `LAYERS`, from a module of Keras, and registered under no other name.

    Args:
        name: The name of the class.
        module: Its module; None if the file does not say it.
        alias: The name under which it is registered with Keras, as the file says.
        description: The layer, for messages.

    Raises:
        ConfigurationError: It is another class; the message says what to do.
    """
    if name in REFUSED:
        raise ConfigurationError(f"{description} is not read: {REFUSED[name]}")
    is_renamed = isinstance(alias, str) and alias not in (name, "")
    if name not in LAYERS or module not in (None, *_LAYER_MODULES) or is_renamed:
        is_keras_layer = (module or "keras").partition(".")[0] == "keras" and not isinstance(alias, str)
        why = "it is not among the layers of sequence models" if is_keras_layer else "its class is not in the file"
        raise ConfigurationError(f"{description} is not read: {why}; {FACTORY}")


def _require_float32(layer: str, dtype: object) -> None:
    """Makes sure that the dtype (or policy) of a layer is float32.

    Raises:
        ConfigurationError: It is another one.
    """
    if dtype != FLOAT:
        raise ConfigurationError(f"{layer} computes in {dtype}, {IN_FLOAT32}")
