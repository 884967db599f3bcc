"""The module of a spec, with the weights of a checkpoint or without."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import torch

from lengthwise_export.architecture import checkpoint, rocket, trained
from lengthwise_export.architecture.model import Classifier, classifier
from lengthwise_export.architecture.rocket import RocketClassifier
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.errors import CheckpointError

BuiltInModel: TypeAlias = Classifier | RocketClassifier
"""A module of the built-in architecture. It maps steps and lengths to a `ClassifierOutput`."""


def load(spec: Spec, weights: Path | None) -> tuple[BuiltInModel, list[str]]:
    """The module of a spec in evaluation mode; without a checkpoint its weights are untrained, and always the same.

    Returns:
        The module, and notices about what could not be compared.

    Raises:
        CheckpointError: The checkpoint cannot be read, or was trained with another spec.
    """
    torch.manual_seed(0)
    is_rocket = spec.model.kind == "rocket"
    if weights is None:
        return (rocket.untrained(spec) if is_rocket else classifier(spec)).eval(), []
    notices = trained.compare_specs(trained.read_record(weights), spec, weights)
    try:
        model = rocket.from_tensors(spec, checkpoint.weights(weights)) if is_rocket else classifier(spec)
    except CheckpointError as error:
        raise CheckpointError(f"{weights}: {error}") from error
    return model.eval(), [*notices, *checkpoint.load(model, weights)]
