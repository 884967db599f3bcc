"""Writes a model directory, and loads it as a service does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson
from onnx import ModelProto

from lengthwise.exporter_api.contract import (
    CONTRACT,
    EXAMPLES_FILE,
    GOLDEN_FILE,
    GRAPH_FILE,
    LENGTHS,
    MANIFEST_FILE,
    VERIFICATION_FILE,
    Manifest,
    digest,
    draw,
    files,
    lengths_for,
)
from lengthwise.exporter_api.graphs import onnx_graph
from lengthwise.exporter_api.verification import (
    ONNXRUNTIME,
    RUNTIME_VERSION,
    Session,
    check_rows,
    golden,
    promises,
    run_odd_values,
)
from lengthwise_export.errors import ModelError, VerificationError
from lengthwise_export.exporting.accuracy import row_of
from lengthwise_export.exporting.verify import VerifiedGraph

if TYPE_CHECKING:
    from lengthwise_export.exporting.accuracy import Record
    from lengthwise_export.mending.fix import FixProposal


GOLDEN_LENGTHS = (1, 2, 3, 5, 8, 13, 21, 34)


def write(
    stage: Path, verified: VerifiedGraph, mend: FixProposal | None, examples: Sequence[Record], *, seed: int
) -> Manifest:
    """Writes all files of a model directory into the staging folder; returns the finished manifest.

    Args:
        stage: The staging folder.
        verified: The graph, with its manifest and the results of its verification.
        mend: What a mend changed; None without one.
        examples: Recordings for the console; none are stored if it is empty.
        seed: The seed of the golden sequences.
    """
    # The graph, golden sequences with its answers, the verification, and recordings
    manifest = verified.manifest
    files.write(stage / GRAPH_FILE, verified.graph.SerializeToString())
    session = Session.load(stage, manifest)
    expected = golden.answers(session, draw(manifest, lengths_for(manifest, GOLDEN_LENGTHS), seed + 10), manifest)
    expected.write(stage / GOLDEN_FILE)
    record = _verification_record(verified, mend, seed)
    files.write(stage / VERIFICATION_FILE, json.dumps(record, indent=2, allow_nan=False) + "\n")
    names = [GRAPH_FILE, VERIFICATION_FILE, GOLDEN_FILE]
    if examples:
        files.write(stage / EXAMPLES_FILE, as_lines(examples))
        names.append(EXAMPLES_FILE)
    # The manifest, with the promise, digests, and where the model comes from
    # On another processor, float32 rounds as it does here; a lower precision may differ by its own rounding.
    promise = promises.promise(
        verified.cases,
        golden.compare(session, expected, manifest),
        golden=promises.HEADROOM * (manifest.from_fp32 or 0.0),
    )
    made = manifest.made | {
        "torch": metadata.version("torch"),
        "onnx": metadata.version("onnx"),
        "onnxruntime": RUNTIME_VERSION,
        promises.KERNELS: session.kernels,
        "exported": datetime.now(UTC).date().isoformat(),
    }
    finished = manifest.model_copy(
        update={
            "host_nodes": host_nodes(verified.graph, manifest.graph.lengths, *map(LENGTHS.format, manifest.further)),
            "promises": (promise,),
            "digests": {name: digest(stage / name) for name in names},
            "made": made,
        }
    )
    files.write(stage / MANIFEST_FILE, finished.to_json())
    return finished


def _verification_record(verified: VerifiedGraph, mend: FixProposal | None, seed: int) -> dict[str, object]:
    """The content of the file of the verification, as JSON values.

    Every case holds, or the export had failed before. The service requires `holds` in each case.
    """
    return {
        "contract": CONTRACT,
        "seed": seed,
        "precision": verified.manifest.precision,
        "from_fp32": verified.manifest.from_fp32,
        "data": None if verified.labels is None else asdict(verified.labels),
        "sample": None if verified.sample is None else verified.sample.as_json(),
        "cases": [{**case.as_json(), "holds": True} for case in verified.cases],
        **({} if mend is None else {"mend": mend.as_record()}),
    }


_FROM_A_SHAPE: Final = frozenset({"Shape", "Size"})
_OF_FEW_NUMBERS: Final = frozenset(
    {
        *("Cast", "Gather", "Squeeze", "Unsqueeze", "Slice", "Concat", "Reshape", "Identity"),
        *("Add", "Sub", "Mul", "Div", "Mod", "Neg", "Abs", "Min", "Max", "Floor", "Ceil"),
        *("ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "Where"),
    }
)
"""Operators whose outputs are not larger than their inputs, so their results stay small."""
_MAX_CONSTANT: Final = 64  # A constant with more numbers is a table of weights


def host_nodes(graph: ModelProto, *lengths: str | None) -> tuple[str, ...]:
    """The names of a graph's nodes that compute only shapes and lengths, in its order; not those inside subgraphs.

    onnxruntime places such nodes on the CPU with every provider; a service on a device accepts no others there. They
    are operators that read the shape of a value, and operators on a few numbers, all of which come from such operators,
    from lengths or from constants. Constants themselves, and what is computed from constants only, are not named.

    Args:
        graph: The graph.
        *lengths: The names of its inputs of lengths; None is left out.
    """
    constants = {tensor.name for tensor in graph.graph.initializer if prod(tensor.dims) <= _MAX_CONSTANT}  # small ones
    sizes = {name for name in lengths if name is not None}  # values that are computed from shapes and lengths only
    names = []
    for node in graph.graph.node:
        inputs = {name for name in node.input if name}
        if node.op_type == "Constant":  # a number, a list, or a small tensor (`value`)
            if any(
                attribute.name != "value" or prod(attribute.t.dims) <= _MAX_CONSTANT for attribute in node.attribute
            ):
                constants |= set(node.output)
        elif node.op_type in _OF_FEW_NUMBERS and inputs <= constants:
            constants |= set(node.output)  # onnxruntime folds it into a constant before it places nodes
        # A shape, or a few numbers that are computed from shapes, lengths and constants
        elif node.domain in ("", "ai.onnx") and (
            node.op_type in _FROM_A_SHAPE or (node.op_type in _OF_FEW_NUMBERS and inputs <= sizes | constants)
        ):
            sizes |= set(node.output)
            if node.name:
                names.append(node.name)
    return tuple(names)


def load_as_a_service_would(stage: Path, manifest: Manifest) -> Iterator[str]:
    """Loads the staged directory as a service does, and yields notices for the user.

    They are about raw values for which the model is ill-conditioned, and about services without our recurrent kernels.
    The directory is loaded while the caller takes the notices, so all must be taken.

    Raises:
        VerificationError: The manifest reads back differently, or the model fails for sequences of one repeated value.
    """
    for promise in manifest.promises:
        if promise.amplified:
            yield (
                "the model is ill-conditioned for some raw values (a constant far from 0, for example): a few ulps of "
                f"such a sequence move its answer by {promise.amplified:.2g}, and batched it may differ by "
                f"{promise.tolerance:.2g} (the manifest's tolerance)"
            )
    reread = Manifest.read(stage)
    if reread != manifest:
        raise VerificationError(f"{manifest.key}: the manifest reads back differently")
    reread.read_files(stage)
    session = Session.load(stage, reread)
    golden.check(session, golden.Golden.read(stage / GOLDEN_FILE, reread), reread)
    graph = onnx_graph.read((stage / GRAPH_FILE).read_bytes())
    check_rows(graph, session.kernels, reread)
    try:
        run_odd_values(session, reread)
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise VerificationError(f"{manifest.key}: it fails for sequences of one repeated value: {error}") from error
    try:
        check_rows(graph, ONNXRUNTIME, reread)
    except ModelError as error:
        yield f"a service without the recurrent kernels of this project will refuse it: {error}"


MOST_RECORDINGS: Final = 6
MOST_VALUES: Final = 40_000  # of all recordings together


def select_examples(records: Sequence[Record], manifest: Manifest) -> list[Record]:
    """Selects at most `MOST_RECORDINGS` labelled recordings that the model accepts, for the console.

    The first of each label is preferred to others. One that would exceed `MOST_VALUES` is skipped.
    """
    accepted = [record for record in records if record.has_label and not isinstance(row_of(record, manifest), str)]
    first_of_label = {record.label: record for record in reversed(accepted)}
    # The first of each label, then the others; the sort is stable, so both groups keep their order
    accepted.sort(key=lambda record: first_of_label[record.label] is not record)
    examples: list[Record] = []
    values_left = MOST_VALUES
    for record in accepted:
        if len(examples) < MOST_RECORDINGS and record.steps.size <= values_left:
            examples.append(record)
            values_left -= record.steps.size
    return examples


def as_lines(records: Sequence[Record]) -> bytes:
    """Recordings in the format JSON Lines, as `score` and `train` read them; a missing value is null."""
    lines = (
        {"id": record.id, "label": record.label, "steps": record.steps}
        | ({} if record.static is None else {"static": record.static})
        for record in records
    )
    return b"".join(orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE) for line in lines)
