"""Checks and exports from Python: `check` and `export`, with the options of the commands of the same names.

A target is a text, as on the command line, or an object: a `torch.nn.Module`, a `keras.Model` on the torch backend, an
`onnx.ModelProto`, or a fitted `Pipeline` of scikit-learn that begins with `SequenceSummaries`. A call leaves torch and
the caller's module unchanged: training mode, parameters, buffers, threads and random numbers. Calls in several threads
run one after the other, because torch's settings apply to the whole process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ParamSpec, Protocol, cast, overload

from lengthwise_export.checking.page import as_page, notebook
from lengthwise_export.checking.report import Report, on_terminal
from lengthwise_export.exporting import flow
from lengthwise_export.exporting.flow import PublishedModel
from lengthwise_export.options import CheckOptions, ExportOptions, Notice, StrPath, keywords
from lengthwise_export.targets import targets
from lengthwise_export.tracing.process_wide import torch_as_before

log = logging.getLogger("lengthwise.export")


@dataclass(frozen=True, slots=True, repr=False)
class CheckReport(Report):
    """The result of a check. `str()` gives the report of the command line; a notebook shows it as a page."""

    def to_sarif(self, file: str | None = None) -> dict[str, Any]:
        """The report as a log in SARIF 2.1.0, as `lengthwise check --sarif` writes it.

        Args:
            file: The file that is shown for a leak without a line of code, as in a graph, and for a model that could
                not be checked: a path from the root of the repository. None for the file of the target; an object has
                none.
        """
        from lengthwise_export.checking.code_scanning import as_sarif

        return as_sarif([self], file=file, exit_code=self.exit_code())

    def __repr__(self) -> str:
        """`<lengthwise_export.CheckReport Tagger: leak, the answer to a sequence changes with: ...>`."""
        return f"<lengthwise_export.CheckReport {self.target}: {self.verdict}, {self.reason}>"

    def __str__(self) -> str:
        """The report as text: the verdict, each leak with its line and a fix, the trials, and what a mend changes."""
        return notebook.as_text(on_terminal(self))

    def _repr_html_(self) -> str:
        """The page of `lengthwise check --html`, in a frame, so that its styles do not affect the notebook."""
        return notebook.in_frame(as_page(self))


P = ParamSpec("P")


class Checking(Protocol[P]):
    """`check`: a target, and the keywords of `CheckOptions`."""

    @overload
    def __call__(self, target: targets.TargetSource, *args: P.args, **options: P.kwargs) -> CheckReport: ...
    @overload
    def __call__(self, target: targets.TargetSource, *, options: CheckOptions) -> CheckReport: ...


class Exporting(Protocol[P]):
    """`export`: a target, where to publish it, and the keywords of `ExportOptions`."""

    @overload
    def __call__(
        self, target: targets.TargetSource, out: StrPath, *args: P.args, **options: P.kwargs
    ) -> PublishedModel: ...
    @overload
    def __call__(self, target: targets.TargetSource, out: StrPath, *, options: ExportOptions) -> PublishedModel: ...


def _check_keywords(options: Callable[P, CheckOptions]) -> Callable[[Callable[..., CheckReport]], Checking[P]]:
    """`commands.options.keywords`, typed for `check`: a decorator that gives a function keywords for its options."""
    return cast("Callable[[Callable[..., CheckReport]], Checking[P]]", keywords(cast("type[CheckOptions]", options)))


def _export_keywords(options: Callable[P, ExportOptions]) -> Callable[[Callable[..., PublishedModel]], Exporting[P]]:
    """A decorator for `export`, with its types: each field of `ExportOptions` becomes a keyword argument.

    The decorated function gets them as one `options`, as `lengthwise.commands.options.keywords` makes it.
    """
    return cast(
        "Callable[[Callable[..., PublishedModel]], Exporting[P]]", keywords(cast("type[ExportOptions]", options))
    )


@_check_keywords(CheckOptions)
def check(target: targets.TargetSource, options: CheckOptions) -> CheckReport:  # noqa: D417 - the decorator adds the options
    """Finds where padding or another sequence of the batch changes an answer, with the cause and a fix.

    Options describe what cannot be inferred from the target. Where a message names an option of the command line, such
    as `--features`, use the argument of the same name.

    Args:
        target: A torch module, a Keras model, an ONNX graph or a pipeline on `SequenceSummaries`; or a text: a spec
            (.toml), what `train` wrote, `package.module:factory` or `file.py:factory` of a torch module or a Keras
            model, a Keras file, an ONNX file, or a model directory.

    Returns:
        The report. Its verdict is `uncheckable` if the target cannot be checked.

    Raises:
        ConfigurationError: The target is unknown or cannot be loaded, or an option contradicts it.

    Example:
        >>> report = lengthwise_export.check("examples/masking.py:attention_after_lstm", max_length=40)
        >>> report.verdict, report.leaks[0].operator
        ('leak', 'softmax')
    """  # noqa: DOC502 - what it calls raises them
    with torch_as_before(target):
        report = flow.check(target, options)
    for notice in report.notices:
        log.warning("%s", notice)
    return CheckReport(**{field.name: getattr(report, field.name) for field in fields(report)})


@_export_keywords(ExportOptions)
def export(  # noqa: D417 - the decorator adds the options
    target: targets.TargetSource, out: StrPath, options: ExportOptions
) -> PublishedModel:
    """Builds the graph of a target, verifies that padding changes no answer, and publishes a model directory.

    Warnings and notices are logged (logger `lengthwise.export`), and are in `notices` of the result.

    Args:
        target: A torch module, a Keras model, an ONNX graph or a pipeline on `SequenceSummaries`; or a text: a spec
            (.toml), what `train` wrote, `package.module:factory` or `file.py:factory` of a torch module or a Keras
            model, a Keras file, or an ONNX file.
        out: `MODELS/NAME/VERSION`, or `MODELS/NAME` for the next free version.

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
    """  # noqa: DOC502 - what it calls raises them
    notices: list[str] = []

    def tell(notice: Notice) -> None:
        """Logs a notice, and keeps it for the result."""
        log.log(logging.WARNING if notice.kind == "warning" else logging.INFO, "%s", notice.text)
        notices.append(notice.text)

    with torch_as_before(target):
        published = flow.export(target, Path(out), options, tell)
    return replace(published, notices=tuple(notices))
