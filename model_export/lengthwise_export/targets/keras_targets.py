"""Loads Keras targets: a `.keras` or `.h5` file, or the Keras model that a user's factory returns."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Final

import onnx
from torch import Tensor

from lengthwise.errors import ConfigurationError
from lengthwise.runtime.manifest import GraphNames, StepInput
from lengthwise_export.checking.trace_torch import TorchSubject
from lengthwise_export.keras_models.agreement import require_agreement
from lengthwise_export.keras_models.backend import import_keras
from lengthwise_export.keras_models.module import KerasModule
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets.target import Target, labels_of
from lengthwise_export.tracing.call_signature import CallSignature
from lengthwise_export.tracing.outputs import OutputSelector, output_selector


def of_model(text: str, model: Any, options: TargetOptions) -> Target:
    import_keras()
    steps, padding = StepInput(features=model.inputs[0].shape[-1]), 0.0
    module = KerasModule(model).eval()
    require_agreement(text, module, steps, padding)
    select_output = output_selector(options.output)
    labels = labels_of(text, options, model.outputs[0].shape[-1])
    per_step = len(model.outputs[0].shape) == 3
    target = _target(text, module, steps, CallSignature(), select_output, labels, per_step)
    return dataclasses.replace(
        target, alone=_target(text, module, steps, CallSignature(second="none"), select_output, labels, per_step)
    )


def _target(
    text: str,
    module: KerasModule,
    steps: StepInput,
    signature: CallSignature,
    select_output: OutputSelector,
    labels: tuple[str, ...],
    per_step: bool,
) -> Target:
    def build(name: str, opset: int) -> onnx.ModelProto:
        from lengthwise_export.tracing import graph  # torch's exporter, which a check does without

        return graph.build(
            module, steps, name=name, labels=labels, signature=signature, select_output=select_output, opset=opset
        )

    return Target(
        text=text,
        kind="keras",
        steps=steps,
        subject=TorchSubject(module, steps, signature=signature, select_output=select_output),
        labels=labels,
        per_step=per_step,
        names=GraphNames(sequences=steps.kind),
        build=build,
        framework=True,
        blind=signature.second == "none",
    )
