"""Examines the configuration in a Keras file before Keras sees it: only layers of Keras that are known to be safe.

A configuration names classes and functions, and Keras imports and calls them. Its `safe_mode` refuses code that is
stored in the file, but not everything that such a name could call. So each name must be in a table here. What only
training needs (initializers, regularizers, constraints, the optimizer) is taken out: the weights come from the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from lengthwise.errors import ConfigurationError

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
