"""Sequences and labels: from data files, from tables, and from what Python holds.

    records = dataset.read_all("test.jsonl", "values", reading=reading)    a `Record` for each sequence
    sequences = input_sequences.read(value)                                an `InputSequence` for each, from Python

A `Record` has the steps of a sequence (`[length, features]` float32, or token ids), its label and the line that it came
from; a `BadRecord` the error of a line that cannot be read. `Reading` says what the columns of a file are, and `Roles`
those of a table (pandas, polars, pyarrow). `Layout` is the order of axes, `Padding` what padded steps hold, which are
cut; `doubts` says where steps at the end look like padding. `arrays` turns an `InputSequence` into the arrays that one
model takes.
"""

from __future__ import annotations

from lengthwise.datasets import arrays, dataset, input_sequences
from lengthwise.datasets.arrays import as_steps, items, masked_steps
from lengthwise.datasets.column_roles import ColumnNames, Roles, is_named_as, quoted
from lengthwise.datasets.dataset import BadRecord, Label, Reading, Record, StepKind, valid_records
from lengthwise.datasets.estimator_input import estimator_sequences
from lengthwise.datasets.input_sequences import InputSequence, InputSequences, Layout, Padding
from lengthwise.datasets.long_table import ids_of, labels_of
from lengthwise.datasets.record_fields import label_mismatch, unknown_labels, without_ignored
from lengthwise.datasets.tables import columns_of, id_text, is_number, is_of
from lengthwise.datasets.tails import doubts, without_padding
from lengthwise.decoding.calls import ADVICE_ON_TAILS, TRANSPOSED, first_fault, is_tail

__all__ = [
    "ADVICE_ON_TAILS",
    "TRANSPOSED",
    "BadRecord",
    "ColumnNames",
    "InputSequence",
    "InputSequences",
    "Label",
    "Layout",
    "Padding",
    "Reading",
    "Record",
    "Roles",
    "StepKind",
    "arrays",
    "as_steps",
    "columns_of",
    "dataset",
    "doubts",
    "estimator_sequences",
    "first_fault",
    "id_text",
    "ids_of",
    "input_sequences",
    "is_named_as",
    "is_number",
    "is_of",
    "is_tail",
    "items",
    "label_mismatch",
    "labels_of",
    "masked_steps",
    "quoted",
    "unknown_labels",
    "valid_records",
    "without_ignored",
    "without_padding",
]
