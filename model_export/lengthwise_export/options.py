"""The options of `check` and `export`: each is declared once, for the command and for Python; and their notices."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from lengthwise.exporter_api.commands import (
    ABOUT_COLUMNS,
    ABOUT_PADDING,
    PYTHON_ONLY,
    Columns,
    Flag,
    Options,
    PaddingCut,
    keywords,
    reading_of,
)
from lengthwise.exporter_api.contract import FeatureNames, Fit, Precision
from lengthwise_export.errors import nearest

__all__ = [
    "BESIDE_HINT",
    "DECODED_HINT",
    "HIGHEST_OPSET",
    "ONE_VALUE_HINT",
    "OPSET",
    "PYTHON_ONLY",
    "RULES",
    "CheckOptions",
    "ExportOptions",
    "ListedOptions",
    "Notice",
    "NoticeKind",
    "Options",
    "Packing",
    "PaddingCut",
    "PaddingSide",
    "Progress",
    "ProgressCallback",
    "RuleCodes",
    "Second",
    "StrPath",
    "TargetOptions",
    "Tell",
    "keywords",
    "reading_of",
    "selects_rules",
    "tell_each",
]

Second = Literal["lengths", "mask", "padding-mask", "both", "none"]  # what a model takes beside the steps

PaddingSide = Literal["right", "left", "both"]  # where the padding of a row is

Packing = Literal["cu_seqlens", "position_ids", "segment_ids"]  # what tells a model the borders in a packed row

ProgressCallback = Callable[[str], None]  # is called with texts that say what is done

HIGHEST_OPSET: Final = 20  # Above, onnxruntime's CUDA provider runs LSTM and GRU on the CPU

OPSET: Final = 18  # the opset that torch's exporter writes without conversion

ONE_VALUE_HINT: Final = (
    "one value for each row, [rows], needs an axis for the classes: return [rows, 1] (output.unsqueeze(-1)) and export "
    "with --multi-label, or return one value for each of the two classes"
)
"""What to do with a model that gives one number for each sequence, as for a yes/no label."""

DECODED_HINT: Final = (
    "what is decoded already (labels, lists of them) cannot be compared or served: return the scores as float32, and "
    "decode them in the caller, as for a CRF"
)
"""What to do with a model that gives labels in the place of scores."""

BESIDE_HINT: Final = (
    "a model may take up to four sequences, each with lengths or a mask of its own, and values beside them (an age, a "
    "machine's type) as numbers [rows, count]: name the argument or the input of these with --static NAME, and call "
    "the lengths of a further sequence as it is called, such as title and title_lengths"
)
"""What a model may take beside a sequence, for one that takes something else."""

StrPath = str | os.PathLike[str]


NoticeKind = Literal["plain", "notice", "warning", "chosen"]


@dataclass(frozen=True, slots=True)
class Notice:
    """A message of an export or a training to the user: the command prints it after its kind, Python logs it."""

    text: str
    kind: NoticeKind = "plain"

    def __str__(self) -> str:
        """`warning: the probabilities are not calibrated`; a plain notice is its text alone."""
        return self.text if self.kind == "plain" else f"{self.kind}: {self.text}"


Tell = Callable[[Notice], object]


def tell_each(tell: Tell, texts: Iterable[str], kind: NoticeKind) -> None:
    """Tells each text as a notice of this kind."""
    for text in texts:
        tell(Notice(text, kind))


def _existing_path(path: StrPath) -> StrPath:
    """The path unchanged, if there is such a file or folder: a validator for pydantic.

    Raises:
        ValueError: There is no such file or folder.
    """
    if not Path(path).exists():
        raise ValueError("must be a file or folder that exists")
    return path


def _texts(value: Any) -> Any:
    """The items of an iterable, such as a NumPy array, as a tuple; a text, or no iterable, is returned unchanged."""
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else value


def _labels(text: str) -> tuple[str, ...]:
    """The labels in a text with commas between them, as in CSV: a label with a comma is in double quotes."""
    return tuple(label.strip() for label in next(csv.reader([text], skipinitialspace=True), []))


def _categories(value: Any) -> Any:
    """The values of each category from a text such as `sex=f|m,site=a|b`, for pydantic; others are left as they are.

    Raises:
        ValueError: A part of the text has no `=`.
    """
    if not isinstance(value, str):
        return value
    parts = [part.partition("=") for part in _labels(value)]
    if any(not sign for _, sign, _ in parts):
        raise ValueError("must name values and what they may be, such as sex=f|m")
    return {name.strip(): tuple(values.split("|")) for name, _, values in parts}


RULES: Final = Path(__file__).parent / "checking" / "rules"
"""The files of the rules of `check`, each under its code."""


def selects_rules(code: str) -> bool:
    """Whether a text is the code of a rule, or the beginning of a code: `LW204`, `LW2`, `LW`."""
    return code.startswith("LW") and any(path.stem.startswith(code) for path in RULES.glob("LW*.toml"))


def _rules(value: Any) -> tuple[str, ...]:
    """Codes of rules, or beginnings of codes, from a text with commas or from several texts, for pydantic.

    Raises:
        ValueError: The value is neither, names no rule, or an unknown one.
    """
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, Iterable) or not all(isinstance(text, str) for text in texts):
        raise ValueError("must name rules, such as LW201")
    codes = tuple(code.strip() for text in texts for code in text.split(",") if code.strip())
    for code in codes:
        if not selects_rules(code):
            near = nearest(code, sorted(path.stem for path in RULES.glob("LW*.toml")))
            raise ValueError(f"must name rules such as LW201, or their beginning such as LW2; {code!r} is none{near}")
    if not codes:
        raise ValueError("must name at least one rule, such as LW201")
    return codes


RuleCodes = Annotated[Sequence[str] | None, BeforeValidator(_rules), Flag(metavar="LWnnn,...")]
Progress = Annotated[Callable[[str], None] | None, PYTHON_ONLY]


class TargetOptions(Options):
    """The description of a target; None for everything that should be inferred."""

    checkpoint: Annotated[StrPath | None, AfterValidator(_existing_path)] = Field(
        default=None,
        description="Weights: .safetensors, a folder of `train`, or a state_dict, which is loaded without running "
        "code.",
    )
    features: int | None = Field(default=None, ge=1, description="Number of values of a step.")
    vocabulary: int | None = Field(default=None, ge=1, description="Number of token ids, if a step is a token id.")
    classes: int | None = Field(default=None, ge=1, description="Number of classes.")
    labels: Annotated[Sequence[str] | None, BeforeValidator(_texts), Flag(metavar="NAME,...", read=_labels)] = Field(
        default=None,
        description="Names of the classes in the order of the outputs; on the command line with commas between, and "
        "one that has a comma in quotes.",
    )
    values: str | None = Field(default=None, description="ONNX: the name of the input that holds the steps.")
    lengths: str | None = Field(default=None, description="ONNX: the name of the input that holds the lengths.")
    mask: str | None = Field(default=None, description="ONNX: the name of the input that holds the mask.")
    time_first: bool = Field(default=False, description="Steps come before rows: [width, rows, features].")
    channels_first: bool = Field(default=False, description="Features come before steps: [rows, features, width].")
    second: Second | None = Field(
        default=None,
        description="The model's inputs besides the steps: a mask is true at valid steps, a padding-mask at padding; "
        "both means lengths and a mask; none means the steps alone, for a model that is to be mended.",
    )
    static: Annotated[Sequence[str] | None, BeforeValidator(_texts), Flag(metavar="NAME,...", read=_labels)] = Field(
        default=None,
        description="The arguments or inputs that hold values beside the sequence, the same for all its steps. By "
        "default those whose names say it, or that can be nothing else.",
    )
    static_names: Annotated[FeatureNames | None, BeforeValidator(_texts), Flag(metavar="NAME,...", read=_labels)] = (
        Field(default=None, description="Names of the values beside the sequence, in their order.")
    )
    static_categories: Annotated[
        Mapping[str, Sequence[str]] | None,
        BeforeValidator(_categories),
        Flag(metavar="NAME=VALUE|...,...", read=_categories),
    ] = Field(
        default=None,
        description="Which of the values beside the sequence are categories, and of which values, such as "
        "'sex=f|m'; the model gets the index.",
    )
    output: str | int | None = Field(default=None, description="Which of several outputs, by name or by index.")
    min_length: int | None = Field(
        default=None,
        ge=1,
        description="Shortest sequence, in steps; a shorter one is neither tried nor served. By default that of the "
        "spec, or the shortest that the model answers.",
    )
    width: int | None = Field(
        default=None,
        ge=1,
        description="The only number of steps that a torch module takes: with --fit every sequence is brought to it "
        "inside the graph.",
    )
    fit: Fit | None = Field(
        default=None,
        description="With --width, how the training brought sequences to it: pad (zeros behind; longer ones are "
        "refused) or resample (linear interpolation).",
    )
    missing: Literal["refuse", "handled"] | None = Field(
        default=None,
        description="What the model does with a missing value (NaN at a valid step); by default it is refused. "
        "handled: the model accepts NaN; this is verified.",
    )


class CheckOptions(TargetOptions):
    """The options of a check."""

    max_length: int = Field(default=1024, ge=1, description="Longest sequence tried, in steps.")
    tolerance: float = Field(default=0.0, ge=0, description="Allowed difference of an answer, beyond rounding.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of the random sequences.")
    padding: PaddingSide | None = Field(
        default=None,
        description="Where rows are padded: right, left, or on both sides. By default where the model's configuration "
        "or tokenizer says (padding_side), else right.",
    )
    packed: Packing | None = Field(
        default=None,
        description="Try sequences packed in one row, [1, steps] or [steps], instead of padded ones, and what tells "
        "the model their borders: cu_seqlens (ends, from 0), position_ids (0 begins a sequence) or segment_ids "
        "(numbered from 1, 0 is padding).",
    )
    packed_input: str | None = Field(
        default=None, description="With --packed: the name of the argument or input that tells the borders."
    )
    select: RuleCodes = Field(
        default=None,
        description="Report these rules only: codes or their beginnings, with commas between, such as LW1,LW204.",
    )
    ignore: RuleCodes = Field(
        default=None,
        description="Leave out these rules, as a comment `# lengthwise: ignore[LW204]` does at one statement.",
    )
    pad_id: int | None = Field(
        default=None,
        ge=0,
        description="The token id that callers always write into padding: no other is tried there. Without "
        "--vocabulary, valid steps have other ids.",
    )
    train: bool = Field(
        default=False,
        description="Check a torch module in training mode, without dropout: does padding reach batch statistics? "
        "Other rows do by design, so they are not tried.",
    )
    suggest: bool = Field(
        default=False,
        description="If padding reaches an answer, or the model takes no lengths, show what `export --mend` would "
        "change in its graph, and the proof. The verdict is still about the target as it is.",
    )
    progress: Progress = Field(default=None, description="Called with the name of each trial before it runs.")


class ListedOptions(CheckOptions):
    """The options that a target may have in `[tool.lengthwise.check]` of a pyproject.toml."""

    strict: bool = Field(
        default=False, description="Exit 1 for a warning too (a leak that only NaN, Inf or 1e30 in the padding shows)."
    )


class ExportOptions(TargetOptions):
    """The options of an export."""

    multi_label: bool = Field(
        default=False,
        description="For your own model: assign each class separately, so a sequence may have any number of classes.",
    )
    embedding: bool = Field(
        default=False,
        description="For your own model: its output is a vector that stands for the sequence, not scores of classes.",
    )
    threshold: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Probability from which a multi-label model's class is assigned; by default 0.5.",
    )
    scores: Literal["logits", "probabilities"] | None = Field(
        default=None, description="What the output is; inferred by default. Probabilities are not normalised again."
    )
    max_length: int | None = Field(
        default=None,
        ge=1,
        description="Longest accepted sequence, in steps; by default that of the spec, or else 1024 or what the model "
        "accepts.",
    )
    opset: int = Field(
        default=OPSET,
        ge=OPSET,
        le=HIGHEST_OPSET,
        description=f"Opset of the graph, {OPSET} to {HIGHEST_OPSET}; above, onnxruntime's CUDA provider runs "
        "recurrent layers on the CPU.",
    )
    precision: Precision = Field(
        default="fp32", description="Precision of weights and products: fp16 for GPUs; int8 for the CPU."
    )
    data: StrPath | None = Field(
        default=None,
        description="Labelled sequences in the formats of train: reports the accuracy, and for fp16 and int8 how many "
        "labels change.",
    )
    columns: Columns = Field(default={}, description=ABOUT_COLUMNS + " Default: the columns of the training.")
    padding: PaddingCut = Field(default=None, description=ABOUT_PADDING + " Default: that of the training.")
    feature_names: Annotated[FeatureNames | None, BeforeValidator(_texts), Flag(metavar="NAME,...", read=_labels)] = (
        Field(
            default=None,
            description="Names of the features of a step, in their order, by which callers and tables may give them. "
            "Default: those of the spec.",
        )
    )
    tolerance: float | None = Field(
        default=None,
        ge=0,
        description="Allowed difference of batched and unbatched answers, beyond rounding (1e-5); by default the same "
        "bits.",
    )
    mend: bool = Field(
        default=False,
        description="If padding reaches an answer of your model, or it takes no lengths, rewrite its graph so that "
        "each sequence gets the answer that the model gives it alone. Published only if that is proved.",
    )
    streaming: bool = Field(
        default=False,
        description="Publish a graph that answers a sequence chunk by chunk: a state goes in with the next steps, and "
        "out with the answer to the sequence so far. Published only if that is proved.",
    )
    max_steps: int | None = Field(
        default=None,
        ge=1,
        description="With --streaming: the most steps of a sequence that is sent in chunks; by default 10,000,000. "
        "max_length then bounds a chunk.",
    )
    must_keep_accuracy: float | None = Field(
        default=None, ge=0, le=1, description="Publish nothing if the accuracy on the data is below this, such as 0.95."
    )
    seed: Annotated[int, PYTHON_ONLY] = Field(
        default=0, ge=0, lt=2**32, description="Seed of the sequences of the verification."
    )
    progress: Progress = Field(default=None, description="Called with what runs next.")

    def begin(self, phase: str) -> None:
        """Tells the name of the phase that runs next, where it is shown."""
        if self.progress is not None:
            self.progress(phase)
