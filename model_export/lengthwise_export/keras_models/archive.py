"""Examines Keras files before Keras sees them: a zip file with a configuration and weights, or HDF5.

A configuration names classes and functions, and Keras imports and calls them. Its `safe_mode` refuses code that is
stored in the file, but not everything that such a name could call. So each name must be in a table here. What only
training needs (initializers, regularizers, constraints, the optimizer) is taken out: the weights come from the file.
Of weights, nothing but numbers is read.
"""

from __future__ import annotations

import json
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Final

from lengthwise.errors import ConfigurationError

CONFIG: Final = "config.json"
METADATA: Final = "metadata.json"
WEIGHTS: Final = "model.weights.h5"
SHARDS: Final = "model.weights.json"
MOST_CONFIG: Final = 32 << 20  # the largest configuration, in bytes
MOST_BYTES: Final = 8 << 30  # the largest file of weights, in bytes
_MOST_MEMBERS: Final = 16
_MOST_EXPANSION: Final = 100  # how many times larger than in the archive a member may be; Keras does not compress
_FREE: Final = 1 << 20  # members and arrays of fewer bytes may expand as they like
_CHUNK: Final = 1 << 20


def read_archive(text: str, path: Path, weights: Path) -> tuple[Any, dict[str, Any]]:
    """The configuration and the metadata of an archive, whose weights it writes into the file `weights`."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(text, archive)
            config = _json(text, archive, members[CONFIG])
            metadata = _json(text, archive, members[METADATA]) if METADATA in members else {}
            with archive.open(members[WEIGHTS]) as source, weights.open("wb") as target:
                _copy(text, source, target, members[WEIGHTS].file_size)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, RuntimeError, zipfile.LargeZipFile) as error:
        raise ConfigurationError(f"{text} cannot be read as a .keras file: {error}") from error
    return config, metadata if isinstance(metadata, dict) else {}


def _members(text: str, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    infos = archive.infolist()
    if len(infos) > _MOST_MEMBERS and not any(info.filename.startswith("assets/") for info in infos):
        raise ConfigurationError(f"{text} has {len(infos)} members; a .keras file has three")
    found: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        if info.filename in found:
            raise ConfigurationError(f"{text} has {info.filename} twice")
        why = _no_member(info.filename) or _unreadable(info)
        if why is not None:
            raise ConfigurationError(f"{text} {why}")
        found[info.filename] = info
    missing = [name for name in (CONFIG, WEIGHTS) if name not in found]
    if missing:
        raise ConfigurationError(
            f"{text} has no {' and no '.join(missing)}: it is no model that model.save('model.keras') wrote"
        )
    return found


def _no_member(name: str) -> str | None:
    """Why a name cannot be in a file that is read; None if it can."""
    if name.startswith("assets/"):
        return f"has {name}, which belongs to a layer that prepares data: give a keras.Model of the layers behind it"
    if name == SHARDS or (name.endswith(".weights.h5") and name != WEIGHTS):
        return "has its weights in several files: save it with model.save('model.keras') without max_shard_size"
    if name not in (CONFIG, METADATA, WEIGHTS):
        return f"has {name[:80]!r}, which is no part of a .keras file"
    return None


def _unreadable(info: zipfile.ZipInfo) -> str | None:
    name, most = info.filename, MOST_BYTES if info.filename == WEIGHTS else MOST_CONFIG
    if stat.S_ISLNK(info.external_attr >> 16):
        return f"has {name} as a link"
    if info.flag_bits & 1:
        return f"has {name} encrypted"
    if info.file_size > most:
        return f"has {info.file_size} bytes in {name}; at most {most} are read"
    if info.file_size > _FREE and info.file_size > _MOST_EXPANSION * max(info.compress_size, 1):
        return (
            f"has {info.file_size} bytes in {name}, of which the archive stores {info.compress_size}: Keras wrote no "
            "such file"
        )
    return None


def _json(text: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    with archive.open(info) as file:
        data = file.read(MOST_CONFIG + 1)
    if len(data) > MOST_CONFIG:
        raise ConfigurationError(f"{text}: {info.filename} has more than {MOST_CONFIG} bytes")
    return parsed(f"{text}: {info.filename}", data)


def parsed(name: str, data: bytes | str) -> Any:
    """A JSON text as Python values."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        said = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigurationError(f"{name} is not JSON: {said}") from error


def _copy(text: str, source: IO[bytes], target: IO[bytes], size: int) -> None:
    left = size
    while chunk := source.read(_CHUNK):
        left -= len(chunk)
        if left < 0:
            raise ConfigurationError(f"{text}: {WEIGHTS} has more than the {size} bytes that the archive says")
        target.write(chunk)


_MOST_OBJECTS: Final = 100_000
_MOST_DEPTH: Final = 64


def require_plain(text: str, path: Path) -> int:
    """Makes sure that a file holds plain arrays in the file itself; returns the number of their values."""
    import h5py  # comes with Keras

    try:
        with h5py.File(path, "r") as file:
            return _Count(text, h5py).of(file)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise ConfigurationError(f"{text}: its weights cannot be read as HDF5: {error}") from error


class _Count:
    def __init__(self, text: str, h5py: Any) -> None:
        self._text = text
        self._h5py = h5py
        self._objects = 0
        self._bytes = 0
        self._values = 0

    def of(self, group: Any, depth: int = 0) -> int:
        if depth > _MOST_DEPTH:
            raise ConfigurationError(f"{self._text}: its weights are nested too deeply")
        for name in group:
            self._objects += 1
            if self._objects > _MOST_OBJECTS:
                raise ConfigurationError(f"{self._text}: its weights have more than {_MOST_OBJECTS} parts")
            link = group.get(name, getlink=True)
            if not isinstance(link, self._h5py.HardLink):
                raise ConfigurationError(
                    f"{self._text}: {name[:80]!r} in its weights is a link to another place, which Keras does not write"
                )
            held = group[name]
            if isinstance(held, self._h5py.Group):
                self.of(held, depth + 1)
            elif isinstance(held, self._h5py.Dataset):
                self._add(name, held)
            else:
                raise ConfigurationError(f"{self._text}: {name[:80]!r} in its weights is not an array")
        return self._values

    def _add(self, name: str, array: Any) -> None:
        shown = f"{self._text}: {name[:80]!r} in its weights"
        if array.external or array.is_virtual:
            raise ConfigurationError(f"{shown} is in another file, which Keras does not write")
        if array.dtype.kind not in "fiub":
            raise ConfigurationError(f"{shown} is an array of {array.dtype}, not of numbers")
        self._bytes += array.nbytes
        self._values += array.size
        stored = array.id.get_storage_size()
        if self._bytes > MOST_BYTES:
            raise ConfigurationError(f"{self._text}: its weights have more than {MOST_BYTES} bytes")
        if array.nbytes > _FREE and array.nbytes > _MOST_EXPANSION * max(stored, 1):
            raise ConfigurationError(
                f"{shown} has {array.nbytes} bytes, of which {stored} are stored: that is not a file that Keras wrote"
            )


FACTORY: Final = "write a function that returns the model, and name it, as in file.py:factory"
_BEFORE: Final = "do this before a sequence is sent, and give a keras.Model of the layers behind it"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


LAYERS: Final = _words(
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
"""The layers of Keras that a file may hold."""

REFUSED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "Lambda": "its function is code, which is not read from a file: write it as layers or keras.ops, or, if you "
        f"trust it, {FACTORY}",
        "TFSMLayer": "it runs TensorFlow: build the model of Keras' own layers",
        "JaxLayer": "it runs JAX: build the model of Keras' own layers",
        "FlaxLayer": "it runs JAX: build the model of Keras' own layers",
        "TorchModuleWrapper": f"it holds a pickled module: {FACTORY}",
        **dict.fromkeys(
            _words(
                "TextVectorization StringLookup IntegerLookup Hashing HashedCrossing Discretization CategoryEncoding "
                "MelSpectrogram STFTSpectrogram"
            ),
            f"it prepares data: {_BEFORE}",
        ),
        **dict.fromkeys(
            ("TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer"),
            "Keras 2 wrote it for an operation of TensorFlow between layers: build it with keras.ops in Keras 3, "
            "load its weights with load_weights, and save that",
        ),
        **dict.fromkeys(
            ("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", "ConvLSTM1DCell", "ConvLSTM2DCell", "ConvLSTM3DCell"),
            "it convolves inside each step, for which ONNX has no recurrent operator: use Conv1D in TimeDistributed, "
            "and an LSTM behind it",
        ),
    }
)
"""Layers that are known and not read, with what to do instead."""

_FORGOTTEN: Final = ("_regularizer", "_constraint")
_NOT_RUN: Final = ("compile_config", "optimizer", "optimizer_config", "loss", "metrics")
_OPERATIONS: Final = ("keras.src.ops.numpy", "keras.src.ops.nn", "keras.src.ops.core", "keras.src.ops.math")
_CALL_FUNCTIONS: Final = frozenset(
    {"Map", "Scan", "AssociativeScan", "WhileLoop", "ForiLoop", "Switch", "Cond", "VectorizedMap", "CustomGradient"}
)
_LAYER_MODULES: Final = ("keras", "keras.layers", "keras.models", "keras.src.models.functional")
_POLICIES: Final = ("DTypePolicy", "Policy", "DTypePolicyMap")
_VALUES: Final = frozenset({"__keras_tensor__", "__tensor__", "__numpy__", "__ellipsis__", "__slice__", "__tuple__"})
_FLOAT: Final = "float32"


def examined(config: Any, text: str, *, registered: Any = None) -> Any:
    """A configuration without what training needs, if all that it names is known, or `registered` here."""
    try:
        return _Examined(text, registered or (lambda _: None)).walked(config)
    except RecursionError:
        raise ConfigurationError(f"{text}: the configuration is nested too deeply") from None


class _Examined:
    def __init__(self, text: str, registered: Any) -> None:
        self._text = text
        self._registered = registered

    def walked(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.walked(each) for each in value]
        if not isinstance(value, dict):
            return value
        if "class_name" in value:
            self._require_known(value)
        kept: dict[str, Any] = {}
        for key, each in value.items():
            if not isinstance(key, str):
                raise ConfigurationError(f"{self._text}: the configuration has a key that is no text")
            if key.endswith(_FORGOTTEN):
                kept[key] = None
            elif key.endswith("_initializer") and each is not None:
                kept[key] = "zeros"
            elif key not in _NOT_RUN or "config" not in value:
                kept[key] = self.walked(each)
        return kept

    def _require_layer(self, name: str, module: str | None, registered: Any, shown: str) -> None:
        if name in REFUSED:
            raise ConfigurationError(f"{self._text}: {shown} is not read: {REFUSED[name]}")
        is_renamed = isinstance(registered, str) and registered not in (name, "")
        if name in LAYERS and (module is None or module in _LAYER_MODULES) and not is_renamed:
            return
        of_keras = (module or "keras").partition(".")[0] == "keras" and not isinstance(registered, str)
        why = "it is not among the layers of sequence models" if of_keras else "its class is not in the file"
        raise ConfigurationError(f"{self._text}: {shown} is not read: {why}; {FACTORY}")

    def _require_known(self, node: dict[str, Any]) -> None:
        name, module = node["class_name"], node.get("module")
        registered, inner = node.get("registered_name"), node.get("config")
        if not isinstance(name, str) or not isinstance(module, str | None):
            raise ConfigurationError(f"{self._text}: the configuration names a class that is no text")
        own = inner.get("name") if isinstance(inner, dict) else None
        shown = f"{own} ({name})" if isinstance(own, str) and own != name else name
        if name in _VALUES:
            return
        if name == "function" or module == "builtins":
            called = inner if isinstance(inner, str) else name
            raise ConfigurationError(
                f"{self._text}: it calls the function {called!r}, which is not one of Keras' layers: {FACTORY}"
            )
        if isinstance(registered, str) and registered != name and self._registered(registered) is not None:
            return
        if module in _OPERATIONS and name not in _CALL_FUNCTIONS:
            return
        if name in _POLICIES and module in (None, "keras", "keras.dtype_policies", "keras.mixed_precision"):
            self._require_float32("a layer", inner.get("name") if isinstance(inner, dict) else None)
            return
        self._require_layer(name, module, registered, shown)
        if isinstance(inner, dict):
            dtype = inner.get("dtype")
            if isinstance(dtype, str) and (dtype.startswith("mixed_") or dtype in ("float16", "bfloat16", "float64")):
                self._require_float32(shown, dtype)
            if inner.get("stateful"):
                raise ConfigurationError(
                    f"{self._text}: {shown} is stateful: its answer depends on the calls before. Set stateful=False, "
                    "which has the same weights"
                )

    def _require_float32(self, what: str, dtype: object) -> None:
        if dtype != _FLOAT:
            raise ConfigurationError(
                f"{self._text}: {what} computes in {dtype}, and Lengthwise runs Keras models in float32: build the "
                "model with keras.config.set_dtype_policy('float32'), load_weights, and save that"
            )
