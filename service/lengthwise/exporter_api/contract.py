"""What a model promises to the service: what its directory holds, what its graph takes, and what its answers are.

An exporter writes a `Manifest` beside a graph. It says what a step is (`StepInput`), what stands beside a sequence
(`StaticInput`, `SequenceInput`), how the graph's inputs and outputs are called (`GraphNames`, `LENGTHS`, `STATIC`) and
which lengths it takes. The service then runs the graph on padded batches:

    batch = pad([first, second], multiple=manifest.width_multiple)    a `PaddedBatch`: steps [rows, width, features]
    inputs = feed(manifest.graph, batch)                              the arrays that the graph takes, by name
    answers.by_row(logits, batch.lengths, manifest)                   its logits, cut to the steps of each row

`draw` and `raw` give random sequences to try a model with. A difference of two answers counts as rounding up to
`ROUNDING` times max(1, the row's largest |logit|); where rounding moves the model's own answer (`rounded_otherwise`),
up to `AMPLIFIED` times as much.

The module `files` writes a file whole or not at all, and locks a folder; `answers` cuts and scores what a graph
returns.
"""

from __future__ import annotations

from lengthwise import files
from lengthwise.addresses import is_address
from lengthwise.padding import (
    LENGTHS,
    STATIC,
    BatchLogits,
    PaddedBatch,
    RowInput,
    Sample,
    Steps,
    pad,
    rounded_width,
    step_mask,
    steps_of,
)
from lengthwise.runtime import answers
from lengthwise.runtime.feature_names import FeatureNames, listed
from lengthwise.runtime.graph_inputs import feed
from lengthwise.runtime.input_tables import MISSING_SHARE, MOST_STATIC, StopAt
from lengthwise.runtime.manifest import (
    CONTRACT,
    EXAMPLES_FILE,
    GOLDEN_FILE,
    GRAPH_FILE,
    MANIFEST_FILE,
    VERIFICATION_FILE,
    Fit,
    GraphNames,
    LongPolicy,
    Manifest,
    Precision,
    SequenceInput,
    StaticInput,
    StepInput,
    Streaming,
    StreamPromise,
    StreamState,
    Task,
    digest,
    is_name,
)
from lengthwise.verification.random_sequences import (
    AMPLIFIED,
    EXTREME_PADDING,
    KINDS,
    MOST_AMPLIFIED,
    ROUNDING,
    ULPS,
    draw,
    largest_difference,
    lengths_for,
    raw,
    rounded_otherwise,
    scale_of,
)
from lengthwise.versions import MOST_DIGITS, is_version

__all__ = [
    "AMPLIFIED",
    "CONTRACT",
    "EXAMPLES_FILE",
    "EXTREME_PADDING",
    "GOLDEN_FILE",
    "GRAPH_FILE",
    "KINDS",
    "LENGTHS",
    "MANIFEST_FILE",
    "MISSING_SHARE",
    "MOST_AMPLIFIED",
    "MOST_DIGITS",
    "MOST_STATIC",
    "ROUNDING",
    "STATIC",
    "ULPS",
    "VERIFICATION_FILE",
    "BatchLogits",
    "FeatureNames",
    "Fit",
    "GraphNames",
    "LongPolicy",
    "Manifest",
    "PaddedBatch",
    "Precision",
    "RowInput",
    "Sample",
    "SequenceInput",
    "StaticInput",
    "StepInput",
    "Steps",
    "StopAt",
    "StreamPromise",
    "StreamState",
    "Streaming",
    "Task",
    "answers",
    "digest",
    "draw",
    "feed",
    "files",
    "is_address",
    "is_name",
    "is_version",
    "largest_difference",
    "lengths_for",
    "listed",
    "pad",
    "raw",
    "rounded_otherwise",
    "rounded_width",
    "scale_of",
    "step_mask",
    "steps_of",
]
