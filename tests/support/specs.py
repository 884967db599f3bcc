"""Small specs and records for tests."""

import functools
import json
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch

from lengthwise.datasets.dataset import Record
from lengthwise.runtime.manifest import Manifest
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.exporting.candidate import PLAIN, Candidate, from_spec_target
from lengthwise_export.options import ExportOptions
from lengthwise_export.targets.torch_targets import target_of_spec

# Tables of specs that are trained in a moment
TINY: Final[dict[str, Any]] = {"input": {"normalize": "training"}, "model": {"hidden": 8, "layers": 1}}
ROCKET: Final[dict[str, Any]] = {"input": {"normalize": "training"}, "model": {"kind": "rocket", "kernels": 84}}


def parsed_spec(text: str) -> Spec:
    """The spec in the text of a `.toml` file."""
    return Spec.from_table(tomllib.loads(text))


def spec(text: str = "", *, step: str = "features = 3", labels: str = '["a", "b"]', task: str = "single-label") -> Spec:
    """A spec of 3 features and 8 units; `text` is its table `[model]`."""
    is_whole = any(word in text for word in ("hidden", "rocket", "summaries"))
    model = text if is_whole else f"hidden = 8\n{text}"
    return parsed_spec(f'[input]\n{step}\n[model]\n{model}\n[output]\nlabels = {labels}\ntask = "{task}"\n')


def from_spec(spec: Spec, weights: Path | None, options: ExportOptions = PLAIN) -> Candidate:
    """The candidate of a spec, with the weights of a checkpoint; untrained if `weights` is None."""
    return from_spec_target(target_of_spec("the spec", options, spec, weights), options)


@functools.cache
def candidate(
    text: str = "", *, step: str = "features = 3", labels: str = '["a", "b"]', task: str = "single-label"
) -> Candidate:
    """A model of `spec` with untrained weights. It is traced once for each name: nearly all of an export's time."""
    torch.manual_seed(0)
    made = from_spec(spec(text, step=step, labels=labels, task=task), None)
    graphs: dict[str, bytes] = {}

    def build(named: Manifest) -> onnx.ModelProto:
        asked = named.model_copy(update={"version": 1}).model_dump_json()
        if asked not in graphs:
            graphs[asked] = made.build(named).SerializeToString()
        return onnx.load_from_string(graphs[asked])

    return replace(made, build=build)


def separable(count: int, *, seed: int = 0, features: int = 3) -> list[Record]:
    """Records of two labels that the sign of the first feature's mean tells apart; lengths 2 to 9."""
    random = np.random.default_rng(seed)
    records = []
    for index in range(count):
        steps = random.standard_normal((int(random.integers(2, 10)), features)).astype(np.float32)
        steps[:, 0] += 2.0 if index % 2 else -2.0
        records.append(Record(str(index), steps, "ab"[index % 2], f"made:{index}"))
    return records


def in_memory(count: int = 24, seed: int = 0) -> tuple[list[Any], list[str]]:
    """The sequences and the labels of `separable` records, as Python callers pass them."""
    records = separable(count, seed=seed)
    return [record.steps for record in records], [str(record.label) for record in records]


def json_lines(records: Sequence[Record]) -> str:
    """Records as a file of JSON Lines."""
    lines = ({"id": each.id, "steps": each.steps.tolist(), "label": each.label} for each in records)
    return "\n".join(map(json.dumps, lines))
