"""What a model directory that streams has for people who run other servers: a loop over onnxruntime, Triton's file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from lengthwise.exporter_api.contract import Manifest, StreamState, files

LOOP_FILE: Final = "stream.py"
TRITON_FILE: Final = "config.pbtxt"
INITIAL_FOLDER: Final = "initial_state"
"""Where Triton reads the values that states begin with, where these are not zero."""

_LOOP: Final = '''"""Streams a sequence with onnxruntime alone: a line of JSON has the next steps."""

import json
import pathlib
import sys

import numpy as np
import onnxruntime

folder = pathlib.Path(__file__).parent
states = json.loads((folder / "manifest.json").read_text())["streaming"]["states"]
session = onnxruntime.InferenceSession(folder / "model.onnx")
state = {{one["name"]: np.full((1, *one["shape"]), one["initial"], one["dtype"]) for one in states}}
for line in sys.stdin:
    steps = np.array(json.loads(line), "{dtype}")
    inputs = {{{inputs}}}
    answer, *after = session.run(["{logits}", *(name + "_next" for name in state)], {{**inputs, **state}})
    state = dict(zip(state, after))
    print(json.dumps(answer[0].tolist()), flush=True)
'''

_TYPES: Final = {
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "bool": "TYPE_BOOL",
}


def write(folder: Path, manifest: Manifest) -> None:
    """Writes the files of a model that streams into its directory: both texts, and what states begin with if not zero.

    The service reads none of them, so they have no digest: change them as you like. Triton wants `config.pbtxt` in the
    folder of the model, beside that of the version.
    """
    assert manifest.streaming is not None
    files.write(folder / LOOP_FILE, loop(manifest))
    files.write(folder / TRITON_FILE, triton_config(manifest))
    for state in filter(lambda state: state.initial, manifest.streaming.states):
        (folder / INITIAL_FOLDER).mkdir(exist_ok=True)
        values = np.full(state.shape, state.initial, dtype=state.dtype)
        files.write(folder / INITIAL_FOLDER / state.name, values.tobytes())


def loop(manifest: Manifest) -> str:
    """The text of a program that streams with onnxruntime alone."""
    names = manifest.graph
    steps = "steps[None]" if names.features_axis else "steps[None, :, 0]"
    if names.channels_first:
        steps = "np.ascontiguousarray(steps.T[None])"
    elif names.time_first:
        steps = "steps[:, None]" if names.features_axis else "steps"
    inputs = [f'"{names.sequences}": {steps}']
    if names.lengths is not None:
        inputs.append(f'"{names.lengths}": np.array([len(steps)], "{names.lengths_type}")')
    if names.mask is not None:
        shape = "(len(steps), 1)" if names.time_first else "(1, len(steps))"
        marks = int(names.mask_marks == "valid")
        inputs.append(f'"{names.mask}": np.full({shape}, {marks}, "{names.mask_type}")')
    dtype = "int64" if manifest.input.kind == "tokens" else "float32"
    return _LOOP.format(dtype=dtype, inputs=", ".join(inputs), logits=names.logits)


def triton_config(manifest: Manifest) -> str:
    """The text of Triton's `config.pbtxt`: the states are its implicit states, kept by its sequence batcher."""
    assert manifest.streaming is not None
    states = "\n".join(map(_state, manifest.streaming.states))
    inputs, outputs = "\n".join(_inputs(manifest)), "\n".join(_outputs(manifest))
    return (
        f'name: "{manifest.name}"\nplatform: "onnxruntime_onnx"\nmax_batch_size: 64\n{inputs}\n{outputs}\n'
        f"sequence_batching {{\n  oldest {{ max_candidate_sequences: 1024 }}\n{states}\n}}\n"
    )


def _tensor(kind: str, name: str, dtype: str, dims: list[int]) -> str:
    """The entry of an input or output for Triton; if rows are the only axis, Triton has `[1]`, and reshapes it."""
    reshape = "" if dims else ", reshape: { shape: [] }"
    return f'{kind} [{{ name: "{name}", data_type: {_TYPES[dtype]}, dims: {dims or [1]}{reshape} }}]'


def _inputs(manifest: Manifest) -> Iterator[str]:
    """Yields the inputs without the states."""
    names, step = manifest.graph, manifest.input
    features = [step.features or 1] if step.kind == "values" and names.features_axis else []
    dims = [*features, -1] if names.channels_first else [-1, *features]
    yield _tensor("input", names.sequences, "int64" if step.kind == "tokens" else "float32", dims)
    if names.lengths is not None:
        yield _tensor("input", names.lengths, names.lengths_type, [])
    if names.mask is not None:
        yield _tensor("input", names.mask, names.mask_type, [-1])


def _outputs(manifest: Manifest) -> Iterator[str]:
    """Yields the outputs without the states."""
    width = [-1] if manifest.task == "per-step" else []
    yield _tensor("output", manifest.graph.logits, "float32", [*width, manifest.classes])
    if manifest.graph.attention is not None:
        yield _tensor("output", manifest.graph.attention, "float32", [-1])


def _state(state: StreamState) -> str:
    """The entry of a state for Triton."""
    form = f"data_type: {_TYPES[state.dtype]}, dims: {[*state.shape]}"
    begin = f'data_file: "{state.name}"' if state.initial else "zero_data: true"
    return (
        f'  state [{{ input_name: "{state.name}", output_name: "{state.name}_next", {form},\n'
        f'    initial_state [{{ name: "initial", {form}, {begin} }}] }}]'
    )
