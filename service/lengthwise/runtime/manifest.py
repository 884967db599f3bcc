"""The manifest of a model directory: the graph's inputs and outputs, the model's labels, and the promises made for it.

A model directory is `MODELS/<name>/<version>/` with four data files:

| file | holds |
|---|---|
| `model.onnx` | the graph |
| `manifest.json` | this module's `Manifest` |
| `verification.json` | the cases of verification, with the differences measured |
| `golden.npz` | a few sequences with their expected logits, run again at every load |

The service knows a model by its manifest only: decoding, padding, scoring and the metadata endpoints read it, and none
of them reads the graph.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from lengthwise import files
from lengthwise.errors import ManifestError, VerificationError
from lengthwise.files import digest as digest
from lengthwise.padding import LENGTHS, STATIC, Sample
from lengthwise.runtime.input_tables import NAME
from lengthwise.runtime.input_tables import Fit as Fit
from lengthwise.runtime.input_tables import ManifestTable as ManifestTable
from lengthwise.runtime.input_tables import Name as Name
from lengthwise.runtime.input_tables import SequenceInput as SequenceInput
from lengthwise.runtime.input_tables import StaticInput as StaticInput
from lengthwise.runtime.input_tables import StepInput as StepInput
from lengthwise.runtime.input_tables import StopAt as StopAt
from lengthwise.runtime.input_tables import Streaming as Streaming
from lengthwise.runtime.input_tables import StreamPromise as StreamPromise
from lengthwise.runtime.input_tables import StreamState as StreamState
from lengthwise.runtime.onnx import onnx_graph
from lengthwise.wrong_values import all_wrong

CONTRACT = 1
"""The *contract* is the format that exporter and service share; a service reads the versions that it knows."""

GRAPH_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
VERIFICATION_FILE = "verification.json"
GOLDEN_FILE = "golden.npz"
EXAMPLES_FILE = "examples.jsonl"
"""A few labelled recordings, as JSON Lines, for people who try the model; it may be missing, or be removed."""
_BESIDE_WEIGHTS: Final = {GRAPH_FILE, VERIFICATION_FILE, GOLDEN_FILE, EXAMPLES_FILE, "stream.py", "config.pbtxt"}
"""The files of a model directory that hold no weights of the graph, or are the graph itself."""

MOST_MANIFEST_BYTES: Final = 2**26
"""Largest manifest that is read, and largest file beside the graph and its weights: a hundred thousand labels are a few
megabytes."""
MOST_BYTES: Final = 2**36
"""Most bytes of graph, weights and verification that are read, unless the caller limits them further."""


Task = Literal["single-label", "multi-label", "per-step", "embedding"]
"""What an answer is; an `embedding` is a vector, of a model without a head, and has no labels."""
LongPolicy = Literal["reject", "head", "tail", "window"]
MissingPolicy = Literal["refuse", "zero", "mean", "indicator", "handled"]
"""`zero`, `mean` and `indicator` are computed inside the graph; `handled` is a user's own graph that accepts NaN."""
Precision = Literal["fp32", "fp16", "int8"]
"""The type of weights and products; inputs and outputs are always float32."""


class GraphNames(ManifestTable):
    """The names, types and orders of axes of the graph's inputs and outputs.

    `lengths` or `mask` is set, or both if the graph needs both. The default order of axes is `[rows, width, ...]`.
    """

    sequences: str = "values"  # the input with the steps
    lengths: str | None = "lengths"  # the input with the lengths, [rows]
    lengths_type: Literal["int32", "int64"] = "int32"
    mask: str | None = None  # the input with the mask, [rows, width]
    mask_type: Literal["bool", "int32", "int64", "float32"] = "bool"
    mask_marks: Literal["valid", "padding"] = "valid"  # where the mask is 1 (or true)
    time_first: bool = False  # the steps are [width, rows, features], the mask is [width, rows]
    channels_first: bool = False  # the steps are [rows, features, width]
    features_axis: bool = True  # False if steps of one feature have no axis for it: [rows, width]
    logits: str = "logits"  # the output with the logits, or with probabilities (`Manifest.scores`)
    classes_first: bool = False  # the logits of a per-step head are [rows, classes, width]
    attention: str | None = None  # the output with the attention weights, [rows, width]
    # The output with the number of values beyond the range of the training split, [rows] float32
    clipped: str | None = None

    @model_validator(mode="after")
    def _check_inputs(self) -> Self:
        if self.lengths is None and self.mask is None:
            raise ValueError("graph: one of 'lengths' and 'mask' must be named")
        if self.channels_first and (self.time_first or not self.features_axis):
            raise ValueError("graph: 'channels_first' fits neither 'time_first' nor steps without 'features_axis'")
        return self

    @property
    def length_inputs(self) -> list[str]:
        """The names of the inputs that say which steps are valid: the lengths, the mask, or both."""
        return [name for name in (self.lengths, self.mask) if name is not None]

    @property
    def open_axes(self) -> tuple[int, int]:
        """Which axes of the input with the steps are (rows, width): their sizes are open, another in each batch."""
        return (1, 0) if self.time_first else (0, 2) if self.channels_first else (0, 1)


class Promise(ManifestTable):
    """What is guaranteed on one kind of device: how far a batched answer may be from the unbatched one."""

    provider: str  # the device's label: onnxruntime's name of the provider, and the device's name unless it is the CPU
    bits: bool  # whether all bits were equal in every case
    tolerance: float = Field(ge=0)  # the largest absolute difference of a logit that is promised; 0 with `bits`
    seen: float = Field(default=0.0, ge=0)  # the largest difference that was measured; 0 with `bits`
    # Allowed difference from the stored golden logits, if that is more than float32 rounding: on another device than
    # the exporter's, and at a lower precision
    golden: float = Field(default=0.0, ge=0)
    # How much a change of a sequence's values by a few ulps changes its answer, relative to max(1, largest logit). Only
    # for a model that is so ill-conditioned that `seen` is more than rounding, as one with a large constant before a
    # normalisation; 0 for every other
    amplified: float = Field(default=0.0, ge=0)


class Manifest(ManifestTable):
    """Everything that the service needs to know of a model; the content of `manifest.json`.

    Some fields explained: a sequence has `min_length` to `max_length` steps. A longer one follows the policy `long`; a
    shorter one is refused, because the model itself raises for it. `from_fp32` is the largest absolute difference of a
    logit from the float32 graph, measured at export; None for a float32 graph. Widths are rounded up to a multiple of
    `width_multiple`. At most `max_batch_rows` rows run together; None leaves that to the service. `host_nodes`
    are the nodes of the graph that compute shapes only; on a device, only they may run on the CPU.
    """

    contract: Literal[1] = 1
    name: Name
    version: int = Field(ge=1)
    input: StepInput
    task: Task = "single-label"
    dimensions: int | None = Field(default=None, ge=1)  # of an embedding only, in the place of labels
    labels: tuple[str, ...] = Field(default=(), validate_default=True)
    threshold: float = Field(default=0.5, gt=0, lt=1)
    scores: Literal["logits", "probabilities"] = "logits"
    min_length: int = Field(default=1, ge=1)
    max_length: int = Field(default=1024, ge=1)
    long: LongPolicy = "reject"
    missing: MissingPolicy = "refuse"
    graph: GraphNames = GraphNames()
    precision: Precision = "fp32"
    from_fp32: float | None = Field(default=None, ge=0)
    width_multiple: int = Field(default=4, ge=1)
    max_batch_rows: int | None = Field(default=None, ge=1)
    host_nodes: tuple[str, ...] = ()
    streaming: Streaming | None = None
    stop_at: StopAt | None = None
    promises: tuple[Promise, ...] = ()
    digests: dict[str, Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]] = Field(default={})
    made: dict[str, str | int | float | None] = Field(default={})

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        """Checks that there are labels, or the dimensions of an embedding.

        Raises:
            ValueError: There are not.
        """
        is_embedding = info.data.get("task") == "embedding"
        if bool(labels) == is_embedding or (info.data.get("dimensions") is not None) != is_embedding:
            raise ValueError("must be at least one; task 'embedding' has 'dimensions' in their place")
        return labels

    @model_validator(mode="before")
    @classmethod
    def _without_profile(cls, table: Any) -> Any:
        """The table without `training`, a profile of the training data that older exporters wrote."""
        return {key: table[key] for key in table if key != "training"} if isinstance(table, dict) else table

    @model_validator(mode="after")
    def _check_dependent_keys(self) -> Self:
        """Checks keys that depend on each other.

        Raises:
            ValueError: Two of them contradict each other.
        """
        beside = self.input.sequences
        for is_wrong, why in (
            (
                self.min_length > self.max_length,
                f"min_length: {self.min_length} steps are more than max_length, {self.max_length}",
            ),
            (
                self.max_length > (self.input.most_steps or self.max_length),
                f"max_length: {self.max_length} steps do not fit into input.width, {self.input.width}",
            ),
            (len(set(self.labels)) != len(self.labels), "labels: every label may stand there once"),
            (
                not self.graph.features_axis and self.input.features != 1,
                "graph.features_axis: steps go in without that axis where they have one feature only",
            ),
            (
                self.graph.channels_first and self.input.kind == "tokens",
                "graph.channels_first: token ids have no axis of features",
            ),
            (
                self.long != "reject" and (beside or self.streaming is not None),
                "long: several sequences, and chunks of a stream, are refused where they are too long",
            ),
            (
                self.stop_at is not None and self.task != "single-label",
                "stop_at: only the one label of a sequence is decided",
            ),
            (
                any(first.max_length != self.max_length for first in beside[:1]),
                "input.sequences: max_length of the first is that of the model",
            ),
        ):
            if is_wrong:
                raise ValueError(why)
        return self

    @cached_property
    def blank(self) -> Sample | None:
        """A sample without steps: what stands beside a filler, and beside a sequence that begins a stream.

        None for a model that takes the steps of one sequence alone.
        """
        beside: dict[str, NDArray[Any]] = {}
        if self.input.static is not None:
            beside[STATIC] = np.zeros(self.input.static.count, dtype=np.float32)
        for state in self.states:
            beside[state.name] = np.full(state.shape, state.initial, dtype=state.dtype)
        others = {name: manifest.input.zeros(1) for name, manifest in self.further.items()}
        return Sample(self.input.zeros(0), beside, others) if beside or others else None

    @property
    def states(self) -> tuple[StreamState, ...]:
        """The states of a model that streams; none of another."""
        return () if self.streaming is None else self.streaming.states

    @property
    def longest(self) -> int:
        """The most steps of any sequence of a row."""
        return max([self.max_length, *(sequence.max_length for sequence in self.input.sequences)])

    @cached_property
    def alone(self) -> Manifest:
        """The manifest of a model that takes the steps of the first sequence alone, by which they are read."""
        if not self.input.has_more:
            return self
        table = self.input.model_dump(exclude={"static", "sequences"})
        return self.like(input=StepInput(**table))

    @cached_property
    def further(self) -> dict[str, Manifest]:
        """By the name of each sequence but the first: the manifest of a model that takes it alone."""
        own = {"streaming": None, "min_length": 1}
        return {
            sequence.name: self.like(
                **own,
                input=sequence.step,
                max_length=sequence.max_length,
                graph=GraphNames(sequences=sequence.name, lengths=LENGTHS.format(sequence.name)),
            )
            for sequence in self.input.sequences[1:]
        }

    def like(self, **changed: Any) -> Manifest:
        """A manifest like this one with some fields changed, and nothing of what was computed of the others."""
        return Manifest(**{name: getattr(self, name) for name in type(self).model_fields} | changed)

    @cached_property
    def by_sequence(self) -> dict[str, Manifest]:
        """By the name of each of several sequences, the manifest of a model that takes it alone."""
        return {sequence.name: self.further.get(sequence.name, self.alone) for sequence in self.input.sequences}

    @cached_property
    def inputs_beside(self) -> dict[str, tuple[str, int]]:
        """The graph's further inputs by name: the type of the elements, and the rank with the axis of rows."""
        if self.blank is None:
            return {}
        arrays = {**self.blank.beside, **self.blank.others}
        inputs = {name: (str(array.dtype), array.ndim + 1) for name, array in arrays.items()}
        return inputs | {LENGTHS.format(name): ("int32", 1) for name in self.blank.others}

    @property
    def classes(self) -> int:
        """Number of classes, which is the number of labels; of an embedding its dimensions."""
        return self.dimensions or len(self.labels)

    @cached_property
    def answer_head(self) -> bytes:
        """The start of every JSON answer: `{` with model, version and labels, without the closing brace."""
        return orjson.dumps({"model": self.name, "version": str(self.version), "labels": self.labels})[:-1]

    @cached_property
    def state_digest(self) -> bytes:
        """By what the texts of states name this version: 16 bytes, equal for equal graphs, weights and names.

        They are the first bytes of a digest (SHA-256): that of the graph; or, where the features have names or weights
        lie in files beside the graph, that of three things together: the graph's digest, the names, these files'
        digests.
        """
        digest = bytes.fromhex(self.digests[GRAPH_FILE].removeprefix("sha256:"))
        weights = {name: self.digests[name] for name in sorted(self.digests) if name not in _BESIDE_WEIGHTS}
        if weights or self.input.names is not None:
            digest = hashlib.sha256(digest + orjson.dumps([self.input.names, weights])).digest()
        return digest[:16]

    @property
    def key(self) -> str:
        """`name/version`, for people."""
        return f"{self.name}/{self.version}"

    def promise(self, provider: str) -> Promise | None:
        """The promise for a provider's label; None if nothing was measured there."""
        return next((promise for promise in self.promises if promise.provider == provider), None)

    def to_json(self) -> str:
        """The text of `manifest.json`; without the keys of what stands beside the steps, where there is nothing.

        So services that do not know these keys read it.
        """
        unused: Any = {"streaming": True, "input": {"static", "sequences"}} if self.blank is None else {}
        unused |= {"stop_at": True} if self.stop_at is None else {}
        return self.model_dump_json(indent=2, exclude=unused) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, source: str = MANIFEST_FILE) -> Manifest:
        """Reads a manifest.

        Raises:
            ManifestError: The text is not a manifest of a known contract version; the message names every wrong field.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            wrong = all_wrong(error.errors(), _keys_of_table, document="the whole")
            raise ManifestError(f"{source} is not a manifest of contract version {CONTRACT}: {wrong}") from error

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Reads `manifest.json` of a model directory.

        Raises:
            ManifestError: It cannot be read, or is malformed.
        """
        path = directory / MANIFEST_FILE
        try:
            text = files.read(path, MOST_MANIFEST_BYTES)
        except OSError as error:
            raise ManifestError(f"{path} cannot be read: {error.strerror}") from error
        return cls.from_json(text, source=str(path))

    def read_files(self, directory: Path, *, most_bytes: int = MOST_BYTES) -> dict[str, bytes]:
        """Reads a model's files, each once, and compares their digests with those in the manifest.

        The caller should use the returned contents, and not read the files again: the contents are what was compared.

        Args:
            directory: The model directory.
            most_bytes: The graph and its weights may have this many bytes together, and each other file as many. Of
                these, one that is returned may have `MOST_MANIFEST_BYTES`.

        Returns:
            The contents by name: of the graph; of `verification.json`, `golden.npz` and `examples.jsonl`, if they have
            digests; and of the files with the graph's weights, by the names that the graph has for these files.

        Raises:
            VerificationError: A file is missing, changed, too large, not a regular file, or outside the directory; or
                the graph, or a file with its weights, has no digest.
        """
        # 1. The graph, and which files it takes weights from
        if GRAPH_FILE not in self.digests:
            raise VerificationError(f"{self.key}: the manifest has no digest of {GRAPH_FILE}; export the model again")
        graph = self._read_file(directory, GRAPH_FILE, most_bytes)
        locations = {name: os.path.normpath(name) for name in external_data(graph)}
        paths_with_digest = {os.path.normpath(name) for name in self.digests}
        for location, name in locations.items():
            if name not in paths_with_digest:
                raise VerificationError(
                    f"{self.key}: the graph takes weights from {location!r}, of which the manifest has no digest"
                )
        # 2. The other files with digests, by their normalised names
        model_files = (VERIFICATION_FILE, GOLDEN_FILE, EXAMPLES_FILE)
        remaining_bytes = most_bytes - len(graph)
        contents: dict[str, bytes] = {}
        for name in self.digests:
            if name == GRAPH_FILE or (name == EXAMPLES_FILE and not (directory / name).exists()):
                continue
            path = os.path.normpath(name)
            keep = path in model_files or path in locations.values()  # of any other file only the digest is compared
            most = most_bytes if not keep else remaining_bytes if path in locations.values() else MOST_MANIFEST_BYTES
            content = self._read_file(directory, name, min(most, most_bytes), keep=keep)
            if keep:
                contents[path] = content
                remaining_bytes -= len(content)
        # 3. The contents by the names that the callers and the graph use. A graph may say that its weights are in
        # `model.onnx` itself, or in examples that were removed: it gets no bytes for that file, and onnxruntime refuses
        # the graph.
        named = {name: contents[name] for name in model_files if name in contents}
        weights = {location: contents.get(name, b"") for location, name in locations.items()}
        return {GRAPH_FILE: graph, **named, **weights}

    def _read_file(self, directory: Path, name: str, most_bytes: int, *, keep: bool = True) -> bytes:
        """Compares a file's digest with that in the manifest, and returns the file's content.

        Without `keep` it reads the file in pieces, and returns no bytes.

        Raises:
            VerificationError: The file is missing, cannot be read, lies outside the directory, or is not the one that
                was published.
        """
        try:
            root = directory.resolve()
            if not (path := (root / name).resolve()).is_relative_to(root):
                raise VerificationError(f"{self.key}: {name} lies outside the model directory")
            content = files.read(path, most_bytes) if keep else b""
            actual = files.digest_of(content) if keep else files.digest(path, most_bytes)
        except FileNotFoundError as error:
            raise VerificationError(f"{self.key}: {name} is missing from {directory}") from error
        except OSError as error:
            raise VerificationError(f"{self.key}: {name!r} cannot be read: {error.strerror}") from error
        except (ValueError, RuntimeError) as error:  # an invalid file name, a loop of links
            raise VerificationError(f"{self.key}: {name!r} cannot be read: {error}") from error
        if actual != self.digests[name]:
            raise VerificationError(f"{self.key}: {name} is not the file that was published (its digest differs)")
        return content


def is_name(text: str) -> bool:
    """Whether a text is a valid name of a model."""
    return re.fullmatch(NAME, text) is not None


def _keys_of_table(keys: tuple[int | str, ...]) -> Iterable[str]:
    """Returns the valid keys of a table inside the manifest, for messages about wrong keys.

    Args:
        keys: The path of keys to the table. For an empty path, or one that leads to no table, the valid keys are those
            of the manifest itself.
    """
    tables: dict[object, type[BaseModel]] = {
        "input": StepInput,
        "static": StaticInput,
        "sequences": SequenceInput,
        "graph": GraphNames,
        "promises": Promise,
        "streaming": Streaming,
        "states": StreamState,
        "promise": StreamPromise,
        "stop_at": StopAt,
    }
    names = [key for key in keys if isinstance(key, str)]
    return tables.get(names[-1], Manifest).model_fields if names else Manifest.model_fields


def external_data(graph: bytes) -> list[str]:
    """Returns the names that a graph has for the files with its weights; empty if the bytes are no ONNX graph."""
    try:
        return sorted(onnx_graph.locations(graph))
    except ValueError:  # onnxruntime will say what is wrong with it, and gets no file
        return []
