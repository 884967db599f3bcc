"""The target of a torch module: of the built-in architecture, of a user's own, or of a Keras model that runs in one."""

from __future__ import annotations

import onnx
from torch import nn

from lengthwise.runtime.manifest import GraphNames, StepInput
from lengthwise_export.checking.causes import ArgumentNames
from lengthwise_export.checking.trace_torch import DescribePart, TorchSubject
from lengthwise_export.targets.target import Target, TargetKind
from lengthwise_export.tracing.call_signature import CallSignature, OutputSelector
from lengthwise_export.tracing.module_state import ModuleState


def module_target(
    text: str,
    kind: TargetKind,
    module: nn.Module,
    steps: StepInput,
    signature: CallSignature,
    select_output: OutputSelector,
    *,
    labels: tuple[str, ...],
    per_step: bool,
    whole: DescribePart | None = None,
    names: ArgumentNames | None = None,
    state: ModuleState | None = None,
) -> Target:
    """The target of a module: it is checked and exported with the same signature and the same output."""

    def build(name: str, opset: int) -> onnx.ModelProto:
        from lengthwise_export.tracing import graph  # torch's exporter, which a check does without

        return graph.build(
            module, steps, name=name, labels=labels, signature=signature, select_output=select_output, opset=opset
        )

    return Target(
        text=text,
        kind=kind,
        steps=steps,
        subject=TorchSubject(
            module, steps, signature=signature, select_output=select_output, whole=whole, names=names, state=state
        ),
        labels=labels,
        per_step=per_step,
        names=GraphNames(sequences=steps.kind),
        build=build,
        framework=True,
        blind=signature.second == "none",
    )
