"""The options of `lengthwise train`, in a module that does not import torch, so that help is fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from lengthwise.errors import ConfigurationError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def _option(default: Any, meaning: str, *, recipe: bool = False, **bounds: float | bool) -> Any:
    """A dataclass field with the help and the bounds (arguments of click's ranges) of its command-line option.

    Args:
        default: The default in Python.
        meaning: The help.
        recipe: Whether the command chooses the value (`training.recipe`) if the option is not given.
        bounds: The bounds.
    """
    return field(default=default, metadata={"help": meaning, "bounds": bounds, "recipe": recipe})


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """Training options; each field is an option of `lengthwise train`.

    The defaults here are a plain recipe. The command takes its own where an option is not given: see
    `training.recipe`.
    """

    epochs: int = _option(40, "Maximum number; the learning rate follows half a cosine over them.", recipe=True, min=1)
    batch_rows: int = _option(16, "Sequences in a batch.", min=1)
    learning_rate: float = _option(2e-3, "Highest learning rate of AdamW.", recipe=True, min=0, min_open=True)
    weight_decay: float = _option(0.05, "Weight decay of AdamW.", min=0)
    clip: float = _option(1.0, "Maximum norm of all gradients together.", min=0, min_open=True)
    patience: int = _option(15, "Stop after this many epochs without a better validation loss.", recipe=True, min=1)
    validation: float = _option(
        0.15,
        "Share of the records for validation, to choose the epoch; 0: train on all, use the last.",
        recipe=True,
        min=0,
        max=1,
        max_open=True,
    )
    class_weights: bool = _option(False, "Give rare labels the same influence as frequent ones.")
    seed: int = _option(0, "Seed of initial weights, split, order and dropout.", min=0, max=2**31)
    warm_up: float = _option(
        0.0, "Share of the training during which the learning rate rises.", recipe=True, min=0, max=1, max_open=True
    )
    label_smoothing: float = _option(
        0.0, "Share of each target that is spread over all labels.", recipe=True, min=0, max=1, max_open=True
    )
    average: float = _option(
        0.0, "Decay of the running average of the weights, which is the result; 0: none.", recipe=True, min=0, max=1,
        max_open=True,
    )  # fmt: skip

    calibration: bool = _option(
        True,
        "Leave the probabilities as they are. By default all logits are divided by a temperature "
        "that is fitted on the validation split.",
    )


@dataclass(frozen=True, slots=True)
class RecipeOptions:
    """Options of `lengthwise train` about the whole of a training, which may be several runs."""

    min_steps: int = _option(
        600,
        "Minimum optimiser steps; raises the number of epochs for small data sets, if --epochs is not given.",
        min=1,
    )
    budget_minutes: float = _option(
        0.0, "Fewer epochs, so that training takes about this long on this machine; 0: no limit.", min=0
    )
    seeds: int = _option(1, "Number of trainings, each with another seed; the best run is the result.", min=1, max=32)
    ensemble: bool = _option(False, "One graph that averages the networks of all --seeds (5 if not given).")


def require_in_bounds(table: type[DataclassInstance], given: Mapping[str, Any]) -> None:
    """Makes sure that options given in Python are of the right type and within their bounds, as click does for flags.

    Args:
        table: `TrainingOptions` or `RecipeOptions`.
        given: Options of this table by their names.

    Raises:
        ConfigurationError: One is not.
    """
    for option in fields(table):
        if option.name not in given:
            continue
        value, bounds = given[option.name], option.metadata["bounds"]
        kind: type = type(option.default)
        if kind is bool:
            fits, wanted = isinstance(value, bool), "True or False"
        else:
            number = int if kind is int else int | float
            fits = isinstance(value, number) and not isinstance(value, bool) and _within(value, **bounds)
            wanted = ("an integer" if kind is int else "a number") + _bounds_text(**bounds)
        if not fits:
            raise ConfigurationError(f"{option.name} must be {wanted}, got {value!r}")


def plain(value: Any) -> Any:
    """A number of NumPy, as a grid of scikit-learn holds them, as a number of Python; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _within(
    value: float,
    min: float | None = None,
    max: float | None = None,
    min_open: bool = False,
    max_open: bool = False,
) -> bool:
    above = min is None or (value > min if min_open else value >= min)
    return above and (max is None or (value < max if max_open else value <= max))


def _bounds_text(
    min: float | None = None, max: float | None = None, min_open: bool = False, max_open: bool = False
) -> str:
    lower = "" if min is None else f" {'>' if min_open else '>='} {min:g}"
    return lower + ("" if max is None else f" and {'<' if max_open else '<='} {max:g}")
