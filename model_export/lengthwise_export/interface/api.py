"""Checks and exports from Python: `check` and `export`, with the options of the commands of the same names.

A target is a text, as on the command line, or an object: a `torch.nn.Module`, a `keras.Model` on the torch backend, or
an `onnx.ModelProto`. A call leaves
torch and the caller's module unchanged: training mode, parameters, buffers, threads and random numbers. Calls in
several threads run one after the other, because torch's settings apply to the whole process.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lengthwise.errors import ConfigurationError
from lengthwise.reports import notebook
from lengthwise.runtime.manifest import Precision
from lengthwise_export.checking import report as reports
from lengthwise_export.checking.page import as_page
from lengthwise_export.checking.verdict import Report
from lengthwise_export.exporting import flow
from lengthwise_export.interface.rich_text import as_text
from lengthwise_export.mending import fix_page, fix_report
from lengthwise_export.mending.fix import FixProposal
from lengthwise_export.options import HIGHEST_OPSET, OPSET, Second, TargetOptions
from lengthwise_export.targets import targets
from lengthwise_export.tracing.torch_state import torch_as_before

if TYPE_CHECKING:
    from lengthwise_export.exporting.pipeline import PublishedModel

log = logging.getLogger("lengthwise.export")

StrPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True, repr=False)
class CheckReport(Report):
    """The result of a check. `str()` gives the report of the command line; a notebook shows it as a page.

    Attributes:
        target: The name of what was checked.
        served: For a model directory, the promise of its manifest as a sentence; None for other targets.
        fix: What a mend would change; None if that was not asked.
        notices: What a user should know of how the model was read.
    """

    target: str = ""
    served: str | None = None
    fix: FixProposal | None = None
    notices: tuple[str, ...] = ()

    def to_sarif(self, file: str | None = None) -> dict[str, Any]:
        """The report as a log in SARIF 2.1.0, as `lengthwise check --sarif` writes it.

        Args:
            file: The file that is shown for a leak without a line of code, as in a graph, and for a model that could
                not be checked: a path from the root of the repository. None for that of the target; an object has none.
        """
        from lengthwise_export import __version__
        from lengthwise_export.checking.sarif import as_sarif

        return as_sarif(self, self.target, version=__version__, exit_code=self.exit_code(), file=file)

    def to_dict(self) -> dict[str, Any]:
        """The report as a dictionary of JSON values, as `lengthwise check --json` prints it."""
        fix = {} if self.fix is None else {"fix": self.fix.as_json()}
        return reports.as_json(self) | {"notices": list(self.notices)} | fix

    def __repr__(self) -> str:
        """`<lengthwise_export.CheckReport Tagger: leak, the answer to a sequence changes with: ...>`."""
        return f"<lengthwise_export.CheckReport {self.target}: {self.verdict}, {self.reason}>"

    def __str__(self) -> str:
        """The report as text: the verdict, each leak with its line and a fix, the trials, and what a mend changes."""
        mended = () if self.fix is None else (fix_report.on_terminal(self.fix),)
        return as_text(reports.on_terminal(self, self.target, served=self.served), *mended)

    def _repr_html_(self) -> str:
        """The page of `lengthwise check --html`, in a frame, so that its styles do not affect the notebook."""
        section = "" if self.fix is None else fix_page.as_section(self.fix)
        return notebook.in_frame(as_page(self, self.target, fix=section))


def check(
    target: targets.Given,
    *,
    checkpoint: StrPath | None = None,
    features: int | None = None,
    vocabulary: int | None = None,
    classes: int | None = None,
    labels: Sequence[str] | None = None,
    values: str | None = None,
    lengths: str | None = None,
    mask: str | None = None,
    time_first: bool = False,
    channels_first: bool = False,
    second: Second | None = None,
    output: str | int | None = None,
    missing: Literal["refuse", "handled"] | None = None,
    max_length: int = 1024,
    tolerance: float = 0.0,
    seed: int = 0,
    fix: bool = False,
    progress: Callable[[str], None] | None = None,
) -> CheckReport:
    """Finds where padding or another sequence of the batch changes an answer, with the cause and a fix.

    Options describe what cannot be inferred from the target. Where a message names an option of the command line, such
    as `--features`, use the argument of the same name.

    Args:
        target: A torch module, a Keras model or an ONNX graph; or a text: a spec (.toml), what `train` wrote,
            `package.module:factory` or `file.py:factory` of a torch module or a Keras model, a Keras file, an ONNX
            file, or a model directory.
        checkpoint: Weights for a module or a spec: .safetensors, a folder of `train`, or a state_dict.
        features: Number of values of a step.
        vocabulary: Number of token ids, if a step is a token id.
        classes: Number of classes.
        labels: The classes' names, in order.
        values: ONNX: the name of the input that holds the steps.
        lengths: ONNX: the name of the input that holds the lengths.
        mask: ONNX: the name of the input that holds the mask.
        time_first: Whether steps come before rows: `[width, rows, features]`.
        channels_first: Whether features come before steps: `[rows, features, width]`.
        second: What the model takes besides the steps: `lengths`, `mask` (true at valid steps), `padding-mask` (true at
            padding) or `both` (lengths and a mask).
        output: Which of several outputs, by name or by index.
        missing: `handled` if the model itself accepts NaN at valid steps; this is then verified.
        max_length: The longest sequence to try, in steps.
        tolerance: Allowed difference of an answer, beyond rounding.
        seed: Seed of the random sequences.
        fix: Whether `fix` of the report says what `export(..., mend=True)` would change, and whether that is proved.
            The verdict is about the target as it is.
        progress: Called with the name of each trial before it runs.

    Returns:
        The report. Its verdict is `uncheckable` if the target cannot be checked.

    Raises:
        ConfigurationError: The target is unknown or cannot be loaded, or an option contradicts it.

    Example:
        >>> report = lengthwise_export.check("examples/masking.py:attention_after_lstm", max_length=40)
        >>> report.verdict, report.leaks[0].operator
        ('leak', 'softmax')
    """
    options = _options(
        checkpoint=checkpoint,
        features=features,
        vocabulary=vocabulary,
        classes=classes,
        labels=labels,
        values=values,
        lengths=lengths,
        mask=mask,
        time_first=time_first,
        channels_first=channels_first,
        second=second,
        output=output,
        missing=missing,
    )
    _require_whole("max_length", max_length)
    _require_whole("seed", seed, least=None)
    _require(tolerance >= 0, "tolerance", tolerance, "a number >= 0")
    with torch_as_before(target):
        checked = flow.check(
            target,
            options,
            max_length=max_length,
            tolerance=tolerance,
            seed=seed,
            progress=progress or (lambda _: None),
            fix=fix,
        )
    report, read = checked.report, checked.target
    notices = () if read is None else read.notices
    for notice in notices:
        log.warning("%s", notice)
    found = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
    served = None if read is None or read.manifest is None else reports.promise_text(read.manifest)
    return CheckReport(**found, target=targets.named(target), served=served, fix=checked.fix, notices=tuple(notices))


def export(
    target: targets.Given,
    out: StrPath,
    *,
    checkpoint: StrPath | None = None,
    features: int | None = None,
    vocabulary: int | None = None,
    classes: int | None = None,
    labels: Sequence[str] | None = None,
    values: str | None = None,
    lengths: str | None = None,
    mask: str | None = None,
    time_first: bool = False,
    channels_first: bool = False,
    second: Second | None = None,
    output: str | int | None = None,
    missing: Literal["refuse", "handled"] | None = None,
    multi_label: bool = False,
    threshold: float | None = None,
    scores: Literal["logits", "probabilities"] | None = None,
    max_length: int | None = None,
    opset: int = OPSET,
    precision: Precision = "fp32",
    data: StrPath | None = None,
    tolerance: float | None = None,
    rewrite: bool = False,
    mend: bool = False,
    must_keep_accuracy: float | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> PublishedModel:
    """Builds the graph of a target, verifies that padding changes no answer, and publishes a model directory.

    Warnings and notices are logged (logger `lengthwise.export`), and are in `notices` of the result.

    Args:
        target: As for `check`, except a model directory.
        out: `MODELS/NAME/VERSION`, or `MODELS/NAME` for the next free version.
        checkpoint: See `check`.
        features: See `check`.
        vocabulary: See `check`.
        classes: See `check`.
        labels: See `check`.
        values: See `check`.
        lengths: See `check`.
        mask: See `check`.
        time_first: See `check`.
        channels_first: See `check`.
        second: See `check`.
        output: See `check`.
        missing: See `check`; by default missing values are refused.
        multi_label: Whether each class is assigned separately, so that a sequence may have any number of classes.
        threshold: Probability from which a multi-label model's class is assigned; default 0.5.
        scores: What the output is, `logits` or `probabilities`; inferred by default.
        max_length: Longest accepted sequence, in steps. Default: that of the spec, otherwise 1024 or what the model
            accepts.
        opset: The opset of the graph.
        precision: The precision of weights and products: `fp32`, `fp16` or `int8`.
        data: A file of labelled sequences, to measure the accuracy.
        tolerance: Allowed difference of batched and unbatched answers, beyond rounding; default: the same bits.
        rewrite: Whether operators whose bits depend on the batch are rewritten, if answers then have the same bits.
        mend: Whether the graph is mended if padding reaches an answer, or the model takes no lengths, so that each
            sequence gets the answer that the model gives it alone. Published only if that is proved.
        must_keep_accuracy: Publish nothing if the accuracy on `data` is below this share of right answers.
        seed: Seed of the sequences of the verification.
        progress: Called with what runs next.

    Returns:
        The published model: its `directory`, `version`, `manifest` and the cases of its verification.

    Raises:
        ConfigurationError: The target or an option is wrong, or the version exists already (PublishError).
        ExportError: No graph without leaks can be built from it.
        UnmendableError: With `mend`: an operator cannot be mended.
        VerificationError: Padding or another sequence changes an answer, or the verification fails; nothing was
            published.

    Example:
        >>> published = lengthwise_export.export("examples/masking.py:lengths_given", folder / "mine", max_length=40)
        >>> published.version, published.manifest.input.features
        (1, 4)
    """
    options = _options(
        checkpoint=checkpoint,
        features=features,
        vocabulary=vocabulary,
        classes=classes,
        labels=labels,
        values=values,
        lengths=lengths,
        mask=mask,
        time_first=time_first,
        channels_first=channels_first,
        second=second,
        output=output,
        missing=missing,
    )
    _require(threshold is None or 0 < threshold < 1, "threshold", threshold, "a number between 0 and 1")
    _require_among("scores", scores, (None, "logits", "probabilities"))
    _require_whole("max_length", max_length)
    _require_whole("seed", seed, least=None)
    _require(OPSET <= opset <= HIGHEST_OPSET, "opset", opset, f"one of {OPSET} to {HIGHEST_OPSET}")
    _require_among("precision", precision, get_args(Precision))
    _require(tolerance is None or tolerance >= 0, "tolerance", tolerance, "a number >= 0")
    _require(
        must_keep_accuracy is None or 0 <= must_keep_accuracy <= 1,
        "must_keep_accuracy",
        must_keep_accuracy,
        "a number from 0 to 1",
    )
    chosen = flow.ExportOptions(
        multi_label=multi_label,
        threshold=threshold,
        scores=scores,
        max_length=max_length,
        opset=opset,
        precision=precision,
        data=None if data is None else os.fspath(data),
        tolerance=tolerance,
        rewrite=rewrite,
        mend=mend,
        must_keep_accuracy=must_keep_accuracy,
        seed=seed,
    )
    told: list[str] = []

    def tell(line: str) -> None:
        kind, _, text = line.partition(": ")
        level, text = {"warning": (logging.WARNING, text), "notice": (logging.INFO, text)}.get(
            kind, (logging.INFO, line)
        )
        log.log(level, "%s", text)
        told.append(text)

    with torch_as_before(target):
        published = flow.export(target, Path(out), options, chosen, tell, progress)
    return dataclasses.replace(published, notices=tuple(told))


def _options(**given: Any) -> TargetOptions:
    """The options about the target, checked.

    Raises:
        ConfigurationError: An option is of a wrong type or out of bounds.
    """
    for name in ("features", "vocabulary", "classes"):
        _require_whole(name, given[name])
    _require_among("second", given["second"], (None, *get_args(Second)))
    _require_among("missing", given["missing"], (None, "refuse", "handled"))
    if given["checkpoint"] is not None:
        path = given["checkpoint"] = Path(given["checkpoint"])
        _require(path.exists(), "checkpoint", str(path), "a file or folder that exists")
    if given["labels"] is not None:
        are_texts = not isinstance(given["labels"], str) and all(isinstance(label, str) for label in given["labels"])
        _require(are_texts, "labels", given["labels"], "a list of strings")
        given["labels"] = tuple(given["labels"])
    if isinstance(given["output"], int):
        given["output"] = str(given["output"])
    return TargetOptions(**given)


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise ConfigurationError(f"{name} must be {wanted}, got {value!r}")


def _require_whole(name: str, value: object, *, least: int | None = 1) -> None:
    is_whole = isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)
    _require(value is None or is_whole, name, value, "an integer" if least is None else f"an integer >= {least}")


def _require_among(name: str, value: object, choices: Sequence[object]) -> None:
    _require(value in choices, name, value, f"one of {', '.join(map(repr, choices))}")
