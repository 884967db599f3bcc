"""The options of a training: each is declared once, for the command, for Python and for the classifier."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field

from lengthwise.exporter_api.data import Layout, Padding
from lengthwise_export.errors import ConfigurationError
from lengthwise_export.options import PYTHON_ONLY, Options, StrPath

ROCKET_OPTIONS: Final = frozenset({"seed", "class_weights", "calibration"})  # the others are for gradient descent


def _check_share(value: object) -> object:
    """Validates `validation`: a number must be a share; sequences pass, they are checked when they are read.

    Raises:
        ValueError: The number is below 0, or 1 or more.
    """
    if isinstance(value, int | float) and not 0 <= value < 1:
        raise ValueError("must be at least 0 and below 1")
    return value


def _open_option(description: str, **bounds: Any) -> Any:
    """A pydantic field, None by default, of an option that is chosen from the data if the user does not give it."""
    return Field(default=None, description=f"{description} Chosen from the data if it is not given.", **bounds)


class FixedOptions(Options):
    """The options of a training whose default does not depend on the data; those that few users change have no flag."""

    batch_rows: Annotated[int, PYTHON_ONLY] = Field(default=16, ge=1, description="Sequences in a batch.")
    learning_rate: Annotated[float, PYTHON_ONLY] = Field(
        default=2e-3, gt=0, description="Highest learning rate of AdamW."
    )
    weight_decay: Annotated[float, PYTHON_ONLY] = Field(default=0.05, ge=0, description="Weight decay of AdamW.")
    seed: int = Field(default=0, ge=0, le=2**31, description="Seed of initial weights, split, order and dropout.")
    calibration: Annotated[bool, PYTHON_ONLY] = Field(
        default=True,
        description="Divide all logits by a temperature that fits the probabilities to held-out answers.",
    )


class TrainingOptions(FixedOptions):
    """The options of one run, after everything open was chosen: those of `TrainOptions`, none of which is None."""

    epochs: int = 40
    patience: int = 15
    validation: float = 0.15
    class_weights: bool = False


class TrainOptions(FixedOptions):
    """The options of `train`. What is None is chosen from the data."""

    epochs: int | None = _open_option(
        "Maximum number of epochs; the learning rate follows half a cosine over them.", ge=1
    )
    patience: Annotated[int | None, PYTHON_ONLY] = _open_option(
        "Stop after this many epochs without a better validation loss.", ge=1
    )
    validation: Annotated[float | Any | None, AfterValidator(_check_share)] = _open_option(
        "Share of the sequences for validation, to choose the epoch; 0: train on all, use the last epoch. In Python "
        "also other sequences: with their labels as a pair, or a table that has them."
    )
    class_weights: Annotated[bool | None, PYTHON_ONLY] = _open_option(
        "Give rare labels the same influence as frequent ones."
    )
    streaming: bool = Field(
        default=False,
        description="Train a model that answers a sequence chunk by chunk (`export --streaming`): choose among what "
        "streams, and report the accuracy by the share of a sequence that was seen.",
    )
    threads: Annotated[int, PYTHON_ONLY] = Field(default=1, ge=1, description="Threads that torch and NumPy use.")


class TrainCallOptions(TrainOptions):
    """The keywords of `lengthwise_export.train`."""

    layout: Layout = Field(
        default="steps-first",
        description="`channels-first` for arrays `[features, length]`, such as those of aeon and sktime.",
    )
    padding: Padding | None = Field(
        default=None,
        description="`zeros` or `nan` cuts steps of zeros, or without values, off the end of each sequence; default: "
        "that of the spec.",
    )
    test: Any = Field(
        default=None,
        description="Sequences that are scored once, at the end: as a pair with their labels, or a table that has "
        "them.",
    )
    out: StrPath | None = Field(default=None, description="The folder of the run; by default a temporary one.")
    overwrite: bool = Field(default=False, description="Whether a run that is in `out` may be deleted.")


def options_of_layers(options: TrainOptions, kind: str, *, resume: bool = False) -> list[str]:
    """The names of the options that the user gives, and that are for gradient descent.

    Raises:
        ConfigurationError: A model of this kind needs no descent, and there are such options, or a run to resume.
    """
    given = options.model_dump(include={*TrainingOptions.model_fields}, exclude_unset=True, exclude_none=True)
    names = sorted(given.keys() - ROCKET_OPTIONS)
    if kind != "layers" and resume:
        raise ConfigurationError(f"--resume has no meaning with kind = '{kind}': it takes seconds, and keeps no state")
    if kind != "layers" and names:
        name = names[0] if PYTHON_ONLY in TrainOptions.model_fields[names[0]].metadata else f"--{names[0]}"
        raise ConfigurationError(f"{name} has no meaning with kind = '{kind}': it is for gradient descent")
    return names
