"""A model to be exported: how to build its graph, its manifest, and the reference to verify the graph against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import onnx
import torch

from lengthwise.errors import ConfigurationError
from lengthwise.padding import PaddedBatch
from lengthwise.runtime.manifest import Manifest, digest
from lengthwise.verification.measurement import BatchLogits, ExactReference, Reference
from lengthwise_export.architecture import loading, trained
from lengthwise_export.architecture.loading import BuiltInModel
from lengthwise_export.architecture.normalization import Normalize
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.checking.recording import Subject
from lengthwise_export.exporting.accuracy import UNTRAINED
from lengthwise_export.options import ExportOptions
from lengthwise_export.tracing import graph

if TYPE_CHECKING:
    from lengthwise_export.mending.fix import FixProposal

PLAIN: Final = ExportOptions()
"""No option given."""

Tell = Callable[[str], None]
"""Receives a line that begins with `warning: ` or `notice: `, or describes what was rewritten."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model to be exported.

    Attributes:
        manifest: Its manifest without name, version, promises and digests, which `export` adds.
        reference: The model in its own framework; None for an ONNX file.
        exact: The same in float64; None if that is not known.
        tolerance: Allowed difference between batched and unbatched answers, beyond rounding; None requires the same
            bits.
        original: The model before its mend; None if it was not mended.
    """

    manifest: Manifest
    build: Callable[[Manifest], onnx.ModelProto]
    reference: Reference | None
    tolerance: float | None = None
    notices: tuple[str, ...] = ()
    mend: FixProposal | None = None
    original: Subject | None = None
    exact: ExactReference | None = None


def from_spec(spec: Spec, weights: Path | None, options: ExportOptions = PLAIN) -> Candidate:
    """A model of the built-in architecture."""
    said, own = options.max_length, spec.input.max_length
    if said not in (None, own):
        raise ConfigurationError(f"--max-length {said} contradicts input.max_length = {own}")
    if options.multi_label and spec.output.task != "multi-label":
        raise ConfigurationError(f"--multi-label contradicts output.task = '{spec.output.task}'")
    if spec.model.kind == "rocket" and options.precision != "fp32":
        raise ConfigurationError(
            f"--precision {options.precision}: a rocket model compares sums that are exact in float32 only: leave "
            "--precision out"
        )
    spec = spec.concrete() if weights is None else trained.settled(spec, weights)
    model, _ = loading.load(spec, weights)
    made: dict[str, str | int | float | None] = {"architecture": "built-in"}
    record = trained.TrainingRecord() if weights is None else trained.read_record(weights)
    if weights is None:
        made["weights"] = UNTRAINED
    else:
        made["checkpoint"] = digest(weights)
        known = {"temperature": record.temperature, "trained": record.trained}
        made |= {name: value for name, value in known.items() if value is not None}
    mean, std = _statistics(model)

    def build(named: Manifest) -> onnx.ModelProto:
        return graph.without_exporter_metadata(
            graph.build(model, named.input, name=named.name, labels=named.labels, opset=options.opset)
        )

    return Candidate(
        manifest=spec.manifest(name="model", version=1, mean=mean, std=std).model_copy(
            update={"made": made, "training": record.profile}
        ),
        build=build,
        reference=eager_reference(model),
        tolerance=options.tolerance,
    )


def with_threshold(source: Candidate, threshold: float) -> Candidate:
    """The same model with another probability from which a class is assigned."""
    if source.manifest.task != "multi-label":
        raise ConfigurationError(f"--threshold is for multi-label models; this one is {source.manifest.task}")
    return replace(source, manifest=source.manifest.model_copy(update={"threshold": threshold}))


def eager_reference(model: BuiltInModel) -> Reference:
    """A reference that runs the model in torch, with packed sequences."""

    def answer(batch: PaddedBatch) -> BatchLogits:
        with torch.inference_mode():
            logits = model(torch.from_numpy(batch.steps), torch.from_numpy(batch.lengths).long()).logits
        return cast("BatchLogits", logits.numpy())

    return answer


def _statistics(model: BuiltInModel) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and standard deviation of each feature; None if the model does not normalise with them."""
    first = model.first
    if not isinstance(first, Normalize) or first.normalize not in ("training", "both"):
        return None, None
    return tuple(first.mean.tolist()), tuple(first.std.tolist())
