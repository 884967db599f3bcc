"""Models without lengths beside their mends, made by hand: what a proof and a report are tested with."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from lengthwise.padding import PaddedBatch, step_mask
from lengthwise.runtime.manifest import StepInput
from lengthwise_export.checking.recording import DEFAULT_NAMES, AlternativeCall, ArgumentNames, ModelOutput, Recording
from lengthwise_export.errors import RunError
from lengthwise_export.layouts import RIGHT, StepLayout
from lengthwise_export.mending.engine import MendedOperator
from lengthwise_export.mending.fix import FixProposal, PaddingCurve
from lengthwise_export.mending.proof import ComparedSequence, MendProof
from lengthwise_export.tracing.source_lines import CodeLocation
from tests.gallery.onnx_models import integers, model

WEIGHTS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)

Compute = Callable[[PaddedBatch], NDArray[np.float32]]


class NumpySubject:
    """A model under check that is a function of a batch."""

    def __init__(self, compute: Compute, in_float64: Compute | None = None) -> None:
        self.in_float64 = in_float64
        self.steps = StepInput(features=3)
        self.sizes: frozenset[int] = frozenset({3, 4})
        self.names: ArgumentNames = DEFAULT_NAMES
        self.state = None
        self.layout = RIGHT
        self.compute = compute
        self.widths: list[tuple[int, int]] = []

    def answer(self, batch: PaddedBatch) -> ModelOutput:
        self.widths.append((batch.rows, batch.width))
        return ModelOutput(self.compute(batch))

    def answer_in_float64(self, batch: PaddedBatch) -> ModelOutput | None:
        return None if self.in_float64 is None else ModelOutput(self.in_float64(batch))

    def answers_of_rounded_weights(self, batch: PaddedBatch) -> Iterator[ModelOutput]:
        return iter(())

    def answer_as_shipped(self, batch: PaddedBatch) -> ModelOutput:
        return self.answer(batch)

    def with_layout(self, layout: StepLayout) -> Any:
        return self

    def record(self, batch: PaddedBatch) -> Recording:
        raise NotImplementedError

    def alternatives(self) -> Iterator[AlternativeCall]:
        return iter(())


def over_the_width(batch: PaddedBatch) -> NDArray[np.float32]:
    """The mean over all steps: what a model without lengths computes."""
    pooled: NDArray[np.float32] = batch.steps.mean(axis=1)
    return pooled @ WEIGHTS


def over_the_steps(batch: PaddedBatch) -> NDArray[np.float32]:
    """The mean over the valid steps of each row, each computed by itself."""
    rows = [row[:length].mean(axis=0) @ WEIGHTS for row, length in zip(batch.steps, batch.lengths, strict=True)]
    return np.stack(rows)


def each_step(batch: PaddedBatch) -> NDArray[np.float32]:
    """A per-step model, with each step less the mean of the width."""
    answer: NDArray[np.float32] = (batch.steps - batch.steps.mean(axis=1, keepdims=True)) @ WEIGHTS
    return answer


def each_valid_step(batch: PaddedBatch) -> NDArray[np.float32]:
    """The same with the mean of the valid steps."""
    valid = step_mask(batch.lengths, batch.width)[:, :, None]
    mean = np.where(valid, batch.steps, 0).sum(axis=1, keepdims=True) / batch.lengths[:, None, None]
    answer: NDArray[np.float32] = ((batch.steps - mean) @ WEIGHTS).astype(np.float32)
    return answer


def raising_below(shortest: int, compute: Compute) -> Compute:
    """The model, which raises for batches that are narrower than that."""

    def run(batch: PaddedBatch) -> NDArray[np.float32]:
        if batch.width < shortest:
            raise RunError(f"a kernel of {shortest} is wider than the input")
        return compute(batch)

    return run


CHANGES = (
    MendedOperator(
        operator="node_mean",
        kind="ReduceMean",
        location=CodeLocation("models/net.py", 12, "return h.mean(1)  # <all>", "forward"),
        cause="the mean reads the padding",
        before=("pooled = ReduceMean (h, axes)",),
        after=("kept = Where (valid, h, zero)", "sum = ReduceSum (kept, axes)", "pooled = Div (sum, lengths)"),
    ),
    MendedOperator("node_conv", "Conv", None, "its bias is not 0", ("y = Conv (x, w, b)",), ("y = Conv (z, w, b)",)),
)
PROOF = MendProof(
    sequences=200,
    lengths=(1, 2, 1024),
    raised=(),
    min_length=1,
    worst=ComparedSequence(17, 37, 8, 64, "junk", 2.5e-7),
    tolerance=1e-5,
    bits=True,
    in_company=0.0,
)
CURVE = PaddingCurve(40, (0.0, 1.0, 2.0), (0.9, 0.6, 0.3), (0.9, 0.9, 0.9))
FIX = FixProposal(
    True, "2 operators changed, and the proof holds", changes=CHANGES, proof=PROOF, verdict="sound", curve=lambda: CURVE
)
REFUSED = FixProposal(False, "the width is <fixed> at 32", "head: Gemm", CHANGES[0].location)


def _pooled(body: str, inputs: str = "") -> onnx.ModelProto:
    weights = {
        "V": WEIGHTS,
        "zero": np.zeros(1, np.float32),
        "first": integers(1),
        "second": integers(2),
        "origin": np.array(0, np.int64),
        "one": np.array(1, np.int64),
    }
    used = {name: array for name, array in weights.items() if re.search(rf"\b{name}\b", f"{body} V")}
    signature = f"g (float[rows,width,3] values{inputs}) => (float[rows,4] logits)"
    return model(signature, f"{body}\n[head] logits = MatMul (pooled, V)", used, producer="test")


def blind_mean() -> onnx.ModelProto:
    """A graph without lengths that takes the mean over the width."""
    return _pooled("[mean] pooled = ReduceMean <axes = [1], keepdims = 0> (values)")


def leaking_mean() -> onnx.ModelProto:
    """The same with lengths that it only adds 0 times."""
    return _pooled(
        "[mean] mean = ReduceMean <axes = [1], keepdims = 0> (values)\n"
        "[float] numbers = Cast <to = 1> (lengths)\n[none] nothing = Mul (numbers, zero)\n"
        "[column] added = Unsqueeze (nothing, first)\n[add] pooled = Add (mean, added)",
        ", int32[rows] lengths",
    )


def mended_mean(*, counted_wrong: bool = False, multiplied: bool = False) -> onnx.ModelProto:
    """The mean over the valid steps."""
    keep = "kept = Where (valid3, values, zero)"
    if multiplied:
        keep = "factors = Cast <to = 1> (valid3)\n[times] kept = Mul (factors, values)"
    return _pooled(
        "[shape] shape = Shape <start = 1, end = 2> (values)\n[width] width = Squeeze (shape)\n"
        "[places] places = Range (origin, width, one)\n[whole] whole = Cast <to = 7> (lengths)\n"
        "[column] column = Unsqueeze (whole, first)\n[valid] valid = Less (places, column)\n"
        "[valid3] valid3 = Unsqueeze (valid, second)\n[keep] " + keep + "\n"
        "[sum] sum = ReduceSum <keepdims = 0> (kept, first)\n"
        + ("[more] number = Add (column, one)\n" if counted_wrong else "[same] number = Identity (column)\n")
        + "[float] count = Cast <to = 1> (number)\n[mean] pooled = Div (sum, count)",
        ", int32[rows] lengths",
    )
