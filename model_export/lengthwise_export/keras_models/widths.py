"""Makes a Keras model that was built for one number of steps take any number."""

from __future__ import annotations

import warnings
from typing import Any

from lengthwise.errors import ConfigurationError
from lengthwise_export.keras_models.backend import import_keras


def with_any_width(text: str, model: Any, fixed: int) -> Any:
    """The same model, with the same weights, for any number of steps."""
    keras = import_keras()
    (symbol,) = model.inputs
    free = keras.Input(batch_shape=(None, None, *symbol.shape[2:]), dtype=symbol.dtype, name=symbol.name)
    try:
        with warnings.catch_warnings(), keras.device("cpu"):
            warnings.simplefilter("ignore")
            cloned = keras.models.clone_model(model, input_tensors=free, clone_function=_clone)
            cloned.set_weights(model.get_weights())
    except Exception as error:  # Keras raises many kinds
        lines = str(error).strip().splitlines()
        raise ConfigurationError(
            f"{text} is built for exactly {fixed} steps, and cannot be built for any number: "
            f"{lines[0] if lines else type(error).__name__}. Build it with Input((None, ...)), with a pooling or an "
            "attention where Flatten is, and load its weights into that"
        ) from error
    return cloned


def _clone(layer: Any) -> Any:
    config = layer.get_config()
    if config.get("unroll"):
        config["unroll"] = False
    return type(layer).from_config(config)
