"""The manifest of a model directory: what the graph wants, what it answers, and what is promised for it.

A model directory is `MODELS/<name>/<version>/` with four files, all of them data:

| file | holds |
|---|---|
| `model.onnx` | the graph |
| `manifest.json` | this module's `Manifest` |
| `verification.json` | each case of the proof, with its figure |
| `golden.npz` | a few sequences with their expected logits, run again at every load |

The manifest is the only thing the service knows of a model: decoding, padding, scoring and the metadata endpoints all
read it, and none of them reads the graph.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, model_validator

from lengthwise import files
from lengthwise.errors import ManifestError, VerificationError
from lengthwise.files import digest as digest
from lengthwise.runtime import onnx_graph
from lengthwise.wrong_values import all_wrong

CONTRACT = 1
"""Version of the contract between exporter and service. A service reads the contract versions it knows."""

GRAPH_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
VERIFICATION_FILE = "verification.json"
GOLDEN_FILE = "golden.npz"

MOST_MANIFEST_BYTES: Final = 2**26
"""Largest manifest that is read: a hundred thousand labels are a few megabytes."""
MOST_BYTES: Final = 2**36
"""Most bytes of graph, weights and proof that are read, unless somebody says less."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
"""A model's name: also a folder, a URL segment and a metric label, so its alphabet is small."""

_NAME: Final = TypeAdapter(Name)

Task = Literal["single-label", "multi-label", "per-step"]
LongPolicy = Literal["reject", "head", "tail", "window"]
MissingPolicy = Literal["refuse", "zero", "mean", "indicator", "handled"]
"""`zero`, `mean` and `indicator` are done inside the graph; `handled` is a user's own graph that takes NaN."""
Precision = Literal["fp32", "fp16", "int8"]
"""What weights and products are computed in; inputs and outputs are float32 at each."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StepInput(_Part):
    """What one step of a sequence is.

    Attributes:
        kind: `values`: `features` float32 numbers a step. `tokens`: one id a step, 0 to `vocabulary` - 1.
        features: Numbers a step; for `values` only.
        feature_names: Their names, in order, where the spec gives them.
        mean: Per feature, over the valid, present values of the training split; applied inside the graph.
        std: Likewise.
        vocabulary: How many token ids there are; for `tokens` only.
        padding_id: The token id that the model itself treats as no step, where it has one.
    """

    kind: Literal["values", "tokens"] = "values"
    features: int | None = Field(default=None, ge=1)
    feature_names: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    vocabulary: int | None = Field(default=None, ge=1)
    padding_id: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if (self.features is None) == (self.kind == "values") or (self.vocabulary is None) == (self.kind == "tokens"):
            raise ValueError("input.kind 'values' wants 'features' alone, 'tokens' wants 'vocabulary' alone")
        for field in ("feature_names", "mean", "std"):
            given = getattr(self, field)
            if given is not None and len(given) != self.features:
                raise ValueError(f"input.{field} has {len(given)} entries for {self.features} features")
        return self


class GraphNames(_Part):
    """The graph's own names and forms of what the service gives it and takes from it.

    One of `lengths` and `mask` is set, or both where the graph wants both. All orders of axes that are not said are
    `[rows, width, ...]`.

    Attributes:
        sequences: The input with the steps.
        lengths: The input with the lengths, `[rows]`.
        lengths_type: Its element type.
        mask: The input with the mask, `[rows, width]`.
        mask_type: Its element type.
        mask_marks: Where the mask is 1 (or true): at valid steps, or at padding.
        time_first: Steps go in as `[width, rows, features]`, the mask as `[width, rows]`.
        channels_first: Steps go in as `[rows, features, width]`.
        features_axis: False where steps of one feature go in without that axis, as `[rows, width]`.
        logits: The output with the answers.
        classes_first: Answers for each step come out as `[rows, classes, width]`.
        attention: The output with the attention weights, `[rows, width]`.
    """

    sequences: str = "values"
    lengths: str | None = "lengths"
    lengths_type: Literal["int32", "int64"] = "int32"
    mask: str | None = None
    mask_type: Literal["bool", "int32", "int64", "float32"] = "bool"
    mask_marks: Literal["valid", "padding"] = "valid"
    time_first: bool = False
    channels_first: bool = False
    features_axis: bool = True
    logits: str = "logits"
    classes_first: bool = False
    attention: str | None = None

    @model_validator(mode="after")
    def _says_where_a_sequence_ends(self) -> Self:
        if self.lengths is None and self.mask is None:
            raise ValueError("graph: one of 'lengths' and 'mask' must be named")
        return self

    @model_validator(mode="after")
    def _has_one_order_of_axes(self) -> Self:
        if self.channels_first and (self.time_first or not self.features_axis):
            raise ValueError("graph: 'channels_first' fits neither 'time_first' nor steps without 'features_axis'")
        return self

    @property
    def open_axes(self) -> tuple[int, int]:
        """Which axes of the steps are the rows and the width."""
        return (1, 0) if self.time_first else (0, 2) if self.channels_first else (0, 1)


class Promise(_Part):
    """What was measured, on which provider, about a sequence alone against the same in company.

    Attributes:
        provider: onnxruntime's name of the execution provider, and the device where it is not the CPU.
        bits: True where no bit differed in any case.
        tolerance: The largest absolute difference of a logit that is promised; 0 where `bits`.
        seen: The largest that was seen in the proof; 0 where `bits`.
        golden: How far an answer may lie from the stored golden logits, where that is more than rounding in float32: on
            a device other than the exporter's, and at a precision that rounds more.
    """

    provider: str
    bits: bool
    tolerance: float = Field(ge=0)
    seen: float = Field(default=0.0, ge=0)
    golden: float = Field(default=0.0, ge=0)


class Manifest(_Part):
    """Everything the service needs to know of a model. See the module's docstring for its place on disk.

    Of the fields that do not explain themselves: `from_fp32` is the largest absolute difference of a logit to the
    float32 graph that was seen at export, None where this is that graph. A width is rounded up to a `width_multiple`,
    and no more than `max_batch_rows` rows run together, None for as many as the service likes. `host_nodes` are those
    nodes of the graph that compute nothing but shapes: on a device they alone may run on the CPU.
    """

    contract: Literal[1] = 1
    name: Name
    version: int = Field(ge=1)
    input: StepInput
    labels: tuple[str, ...] = Field(min_length=1)
    task: Task = "single-label"
    threshold: float = Field(default=0.5, gt=0, lt=1)
    scores: Literal["logits", "probabilities"] = "logits"
    max_length: int = Field(default=1024, ge=1)
    long: LongPolicy = "reject"
    missing: MissingPolicy = "refuse"
    graph: GraphNames = GraphNames()
    precision: Precision = "fp32"
    from_fp32: float | None = Field(default=None, ge=0)
    width_multiple: int = Field(default=4, ge=1)
    max_batch_rows: int | None = Field(default=None, ge=1)
    host_nodes: tuple[str, ...] = ()
    promises: tuple[Promise, ...] = ()
    digests: dict[str, Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]] = {}
    made: dict[str, str | int | float | None] = {}

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: every label may stand there once")
        return self

    @model_validator(mode="after")
    def _steps_have_the_axes_that_the_graph_wants(self) -> Self:
        if not self.graph.features_axis and self.input.features != 1:
            raise ValueError("graph.features_axis: steps go in without that axis where they have one feature only")
        if self.graph.channels_first and self.input.kind == "tokens":
            raise ValueError("graph.channels_first: token ids have no axis of features")
        return self

    @property
    def classes(self) -> int:
        """Number of classes, which is the number of labels."""
        return len(self.labels)

    @cached_property
    def answer_head(self) -> bytes:
        """What every answer in JSON begins with, `{` and all: who answers, and the labels."""
        return orjson.dumps({"model": self.name, "version": str(self.version), "labels": self.labels})[:-1]

    @property
    def key(self) -> str:
        """`name/version`, for people."""
        return f"{self.name}/{self.version}"

    def promise(self, provider: str) -> Promise | None:
        """What is promised on a provider, or None where nothing was measured there."""
        return next((promise for promise in self.promises if promise.provider == provider), None)

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return self.model_dump_json(indent=2, exclude_defaults=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, source: str = MANIFEST_FILE) -> Manifest:
        """Reads a manifest.

        Raises:
            ManifestError: The text is not a manifest of a known contract version; says every field that is wrong.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            wrong = all_wrong(error.errors(), _known, whole="the whole")
            raise ManifestError(f"{source} is not a manifest of contract version {CONTRACT}: {wrong}") from error

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Reads `manifest.json` of a model directory.

        Raises:
            ManifestError: There is none that can be read, or it is malformed.
        """
        path = directory / MANIFEST_FILE
        try:
            text = files.read(path, MOST_MANIFEST_BYTES)
        except OSError as error:
            raise ManifestError(f"{path} cannot be read: {error.strerror}") from error
        return cls.from_json(text, source=str(path))

    def check_digests(self, directory: Path) -> None:
        """Compares every file that the manifest names with its digest.

        Raises:
            VerificationError: As `checked` says.
        """
        self.checked(directory)

    def checked(self, directory: Path, *, most_bytes: int = MOST_BYTES) -> dict[str, bytes]:
        """Reads what a model is made of, each file once, and compares every file that has a digest with it.

        Args:
            directory: The model's.
            most_bytes: Of all that is read and kept.

        Returns:
            The content of the graph, the verification, the golden sequences (where they have digests) and of the files
            that the graph takes weights from, by name: what was compared is what may be used. A file of weights stands
            under the graph's own name of it.

        Raises:
            VerificationError: A file is missing, changed, too large, no plain file, or outside the directory; the graph
                has no digest, or takes weights from a file that has none.
        """
        if GRAPH_FILE not in self.digests:
            raise VerificationError(f"{self.key}: the manifest has no digest of {GRAPH_FILE}; export the model again")
        contents = {GRAPH_FILE: self._checked(directory, GRAPH_FILE, self.digests[GRAPH_FILE], most_bytes)}
        left = most_bytes - len(contents[GRAPH_FILE])
        locations = {name: os.path.normpath(name) for name in external_data(contents[GRAPH_FILE])}
        known = {os.path.normpath(name) for name in self.digests}
        for location, name in locations.items():
            if name not in known:
                raise VerificationError(
                    f"{self.key}: the graph takes weights from {location!r}, of which the manifest has no digest"
                )
        kept = {VERIFICATION_FILE, GOLDEN_FILE, *locations.values()}
        found: dict[str, bytes] = {}
        for name, expected in self.digests.items():
            if name == GRAPH_FILE:
                continue
            keep = os.path.normpath(name) in kept
            content = self._checked(directory, name, expected, left if keep else most_bytes, keep=keep)
            if keep:
                found[os.path.normpath(name)] = content
                left -= len(content)
        contents |= {name: found.get(name, b"") for name in (VERIFICATION_FILE, GOLDEN_FILE) if name in self.digests}
        return contents | {location: found.get(name, b"") for location, name in locations.items()}

    def _checked(self, directory: Path, name: str, expected: str, most_bytes: int, *, keep: bool = True) -> bytes:
        """A file that has its digest: its content, or nothing where that is not to be kept."""
        try:
            root = directory.resolve()
            path = (root / name).resolve()
            if not path.is_relative_to(root):
                raise VerificationError(f"{self.key}: {name} lies outside the model directory")
            content = files.read(path, most_bytes) if keep else b""
            found = files.digest_of(content) if keep else files.digest(path, most_bytes)
        except FileNotFoundError as error:
            raise VerificationError(f"{self.key}: {name} is missing from {directory}") from error
        except OSError as error:
            raise VerificationError(f"{self.key}: {name!r} cannot be read: {error.strerror}") from error
        except (ValueError, RuntimeError) as error:  # a name that no file can have, a loop of links
            raise VerificationError(f"{self.key}: {name!r} cannot be read: {error}") from error
        if found != expected:
            raise VerificationError(f"{self.key}: {name} is not the file that was published (its digest differs)")
        return content


def is_name(text: str) -> bool:
    """Whether a model can have that name."""
    try:
        _NAME.validate_python(text)
    except ValidationError:
        return False
    return True


def _known(place: tuple[int | str, ...]) -> Iterable[str]:
    """The keys of the table at a place."""
    tables: dict[object, type[BaseModel]] = {"input": StepInput, "graph": GraphNames, "promises": Promise}
    return tables.get(place[0], Manifest).model_fields if place else Manifest.model_fields


def external_data(graph: bytes) -> list[str]:
    """The files that a graph takes weights from, as it names them; none of what is no graph."""
    try:
        return sorted(onnx_graph.read(graph).locations)
    except ValueError:  # onnxruntime says what is wrong with it, and is given no file
        return []
