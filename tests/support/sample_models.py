"""Models whose graphs have further inputs: static values, a second sequence, a state; each a few nodes of ONNX.

The logits of a row are, for each of its two features, the mean of its valid steps, plus what stands beside them:

- `static` `[rows, 3]`: its first two values, and ten times the third, the category `type`;
- `body` `[rows, width]`, token ids: their mean, for both labels;
- the states `sums` `[rows, 2]` and `counts` `[rows, 1]`: the mean is of all steps that they have seen, too.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser

from lengthwise.padding import Sample, steps_of
from lengthwise.repository.loading import LoadedModel
from lengthwise.runtime.manifest import (
    GOLDEN_FILE,
    GRAPH_FILE,
    MANIFEST_FILE,
    VERIFICATION_FILE,
    Manifest,
)
from lengthwise.runtime.session import Session
from lengthwise.verification import golden
from lengthwise.verification.random_sequences import draw
from tests.support import numpy_models
from tests.support.model_directories import sign

STATIC = {"count": 3, "names": ["age", "sex", "type"], "categories": {"type": ["pump", "fan", "valve"]}}
SEQUENCES = [
    {"name": "title", "features": 2, "max_length": 64},
    {"name": "body", "vocabulary": 50, "max_length": 48},
]
STREAMING = {
    "states": [{"name": "sums", "shape": [2]}, {"name": "counts", "shape": [1]}],
    "state_bytes": 12,
    "max_steps": 1000,
    "promise": {"max_difference": 1e-5},
}
LABELS = ("calm", "loud")


def manifest(*, static: bool = False, second: bool = False, streaming: bool = False, **fields: Any) -> Manifest:
    """A manifest of a model that takes what is asked for."""
    step: dict[str, Any] = {"features": 2}
    if static:
        step["static"] = STATIC
    if second:
        step["sequences"] = SEQUENCES
    table = {"name": "beside", "version": 1, "input": step, "labels": LABELS, "max_length": 64} | fields
    if streaming:
        table["streaming"] = STREAMING
    return Manifest.from_json(json.dumps(table))


def graph(of: Manifest, *, leaking: bool = False) -> bytes:
    """The graph of such a manifest; in a leaking one the mean of `body` is of its padding, too."""
    inputs = ["float[rows,width,2] values", "int32[rows] lengths"]
    outputs = ["float[rows,2] logits"]
    nodes = [*_sums("values", "lengths"), "values_count = Cast <to: int = 1> (values_lens)"]
    total, count = "values_sums", "values_count"
    if of.streaming is not None:
        inputs += ["float[rows,2] sums", "float[rows,1] counts"]
        outputs += ["float[rows,2] sums_next", "float[rows,1] counts_next"]
        nodes += [f"sums_next = Add ({total}, sums)", f"counts_next = Add ({count}, counts)"]
        total, count = "sums_next", "counts_next"
    nodes += [f"least = Max ({count}, float_one)", f"mean = Div ({total}, least)"]
    logits = "mean"
    if of.input.static is not None:
        inputs.append("float[rows,3] static")
        nodes += ["beside = MatMul (static, weights)", f"with_static = Add ({logits}, beside)"]
        logits = "with_static"
    if of.input.sequences:
        inputs += ["int64[rows,body_width] body", "int32[rows] body_lengths"]
        nodes += ["body_numbers = Cast <to: int = 1> (body)", "body_3d = Unsqueeze (body_numbers, two)"]
        nodes += [*_sums("body_3d", "body_lengths", leaking=leaking), "body_count = Cast <to: int = 1> (body_3d_lens)"]
        nodes += ["body_mean = Div (body_3d_sums, body_count)", f"with_body = Add ({logits}, body_mean)"]
        logits = "with_body"
    nodes.append(f"logits = Identity ({logits})")
    constants = (
        "int64[1] one = {1}, int64[1] two = {2}, int64[1] nothing = {0}, int64 zero = {0}, int64 step = {1}, "
        "float[1] float_zero = {0.0}, float[1] float_one = {1.0}, float[3,2] weights = {1.0, 0.0, 0.0, 1.0, 10.0, 10.0}"
    )
    text = "\n".join(
        [
            '<ir_version: 9, opset_import: ["": 18]>',
            f"beside ({', '.join(inputs)}) => ({', '.join(outputs)})",
            f"<{constants}> {{",
            *nodes,
            "}",
        ]
    )
    content: bytes = onnx.parser.parse_model(text).SerializeToString()
    return content


def _sums(steps: str, lengths: str, *, leaking: bool = False) -> list[str]:
    """The nodes that sum the valid steps of `[rows, width, features]`: `STEPS_sums` `[rows, features]`."""
    return [
        f"{steps}_shape = Shape <start: int = 1, end: int = 2> ({steps})",
        f"{steps}_width = Squeeze ({steps}_shape, nothing)",
        f"{steps}_range = Range (zero, {steps}_width, step)",
        f"{steps}_wide = Cast <to: int = 7> ({lengths})",
        f"{steps}_lens = Unsqueeze ({steps}_wide, one)",
        f"{steps}_all = Add ({steps}_lens, {steps}_width)",
        f"{steps}_valid = Less ({steps}_range, {steps}_{'all' if leaking else 'lens'})",
        f"{steps}_valid_3d = Unsqueeze ({steps}_valid, two)",
        f"{steps}_kept = Where ({steps}_valid_3d, {steps}, float_zero)",
        f"{steps}_ones = Cast <to: int = 1> ({steps}_valid)",
        f"{steps}_row = Unsqueeze ({steps}_ones, one)",
        f"{steps}_product = MatMul ({steps}_row, {steps}_kept)",  # the same bits at every width that is padded to
        f"{steps}_sums = Squeeze ({steps}_product, one)",
    ]


def session(of: Manifest) -> Session:
    """A session of the graph."""
    return Session(graph(of), of)


def expected(of: Manifest, row: Any) -> np.ndarray[Any, Any]:
    """The logits of one row, computed on paper."""
    logits = steps_of(row).astype(np.float64).mean(axis=0)
    if of.input.static is not None:
        age, sex, kind = row.beside["static"].astype(np.float64)
        logits = logits + np.array([age + 10 * kind, sex + 10 * kind])
    for steps in row.others.values() if isinstance(row, Sample) else ():
        logits = logits + steps.mean()
    return np.asarray(logits)


def place(folder: Path, of: Manifest) -> Path:
    """A model directory `FOLDER/NAME/VERSION` of such a model, as an export writes it."""
    directory = folder / of.name / str(of.version)
    directory.mkdir(parents=True)
    (directory / GRAPH_FILE).write_bytes(graph(of))
    golden.answers(session(of), draw(of, [1, 3, 7], 10), of).write(directory / GOLDEN_FILE)
    case = {"name": "mixed lengths", "holds": True}
    (directory / VERIFICATION_FILE).write_text(json.dumps({"cases": [case]}))
    (directory / MANIFEST_FILE).write_text(of.to_json())
    sign(directory)
    return directory


def loaded(of: Manifest) -> LoadedModel:
    """The model, as a service or the Python interface has it; nothing is verified, and its costs are made up."""
    return replace(numpy_models.model(of), session=session(of))
