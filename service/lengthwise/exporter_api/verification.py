"""Runs a graph as the service does, and measures that a row has the same answer in every batch.

    session = Session(graph_bytes, manifest)
    outputs = session.run(batch)                          `Outputs`: logits, and what else the graph answers
    cases = measure_cases(open_session, manifest, ...)    a `Case` for each kind of batch, with its largest difference
    promises.failures(cases, tolerance=...)               the cases that differ by more than is allowed

A `Reference` computes the logits of the model that the graph was made from, an `ExactReference` in float64.
`check_rows` and `run_odd_values` refuse a graph that would crash the process of a server. The module `golden` has the
sequences whose answers are stored beside the graph and compared at each load; `promises` what the cases guarantee.

Only this module of the package imports onnxruntime.
"""

from __future__ import annotations

from lengthwise.repository.verifier import check_rows, run_odd_values
from lengthwise.runtime.opening import RUNTIME_VERSION
from lengthwise.runtime.recurrent_kernels import ONNXRUNTIME, register
from lengthwise.runtime.session import CPU_LABEL, OutputName, Outputs, Session
from lengthwise.verification import golden, promises
from lengthwise.verification.measurement import BatchVariations, Case, ExactReference, Reference, measure_cases

__all__ = [
    "CPU_LABEL",
    "ONNXRUNTIME",
    "RUNTIME_VERSION",
    "BatchVariations",
    "Case",
    "ExactReference",
    "OutputName",
    "Outputs",
    "Reference",
    "Session",
    "check_rows",
    "golden",
    "measure_cases",
    "promises",
    "register",
    "run_odd_values",
]
