"""Checks and exports from Python: `check` and `export`, with the options of the commands of the same names.

A target is a text, as on the command line, or an object: a `torch.nn.Module`, a `keras.Model` on the torch backend, or
an `onnx.ModelProto`. A call leaves torch and the caller's module unchanged: training mode, parameters, buffers, threads
and random numbers. Calls in several threads run one after the other, because torch's settings apply to the whole
process.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, cast, overload

from lengthwise.commands.options import keywords
from lengthwise.reports import notebook
from lengthwise_export.checking import report as reports
from lengthwise_export.checking.page import as_page
from lengthwise_export.checking.report import Report
from lengthwise_export.exporting import flow
from lengthwise_export.interface.rich_text import as_text
from lengthwise_export.options import CheckOptions, ExportOptions, StrPath
from lengthwise_export.targets import targets
from lengthwise_export.tracing.process_wide import torch_as_before

if TYPE_CHECKING:
    from lengthwise_export.exporting.flow import PublishedModel
    from lengthwise_export.mending.fix import FixProposal

log = logging.getLogger("lengthwise.export")


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
        mended = () if self.fix is None else (self.fix.on_terminal(),)
        return as_text(reports.on_terminal(self, self.target, served=self.served), *mended)

    def _repr_html_(self) -> str:
        """The page of `lengthwise check --html`, in a frame, so that its styles do not affect the notebook."""
        fix = "" if self.fix is None else self.fix.as_section()
        return notebook.in_frame(as_page(self, self.target, fix=fix))


P = ParamSpec("P")


class Checking(Protocol[P]):
    """`check`: a target, and the keywords of `CheckOptions`."""

    @overload
    def __call__(self, target: targets.Given, *args: P.args, **options: P.kwargs) -> CheckReport: ...
    @overload
    def __call__(self, target: targets.Given, *, options: CheckOptions) -> CheckReport: ...


class Exporting(Protocol[P]):
    """`export`: a target, where to publish it, and the keywords of `ExportOptions`."""

    @overload
    def __call__(self, target: targets.Given, out: StrPath, *args: P.args, **options: P.kwargs) -> PublishedModel: ...
    @overload
    def __call__(self, target: targets.Given, out: StrPath, *, options: ExportOptions) -> PublishedModel: ...


def _check_keywords(options: Callable[P, CheckOptions]) -> Callable[[Callable[..., CheckReport]], Checking[P]]:
    return cast("Callable[[Callable[..., CheckReport]], Checking[P]]", keywords(cast("type[CheckOptions]", options)))


def _export_keywords(options: Callable[P, ExportOptions]) -> Callable[[Callable[..., PublishedModel]], Exporting[P]]:
    return cast(
        "Callable[[Callable[..., PublishedModel]], Exporting[P]]", keywords(cast("type[ExportOptions]", options))
    )


@_check_keywords(CheckOptions)
def check(target: targets.Given, options: CheckOptions) -> CheckReport:  # noqa: D417 - the decorator adds the options
    """Finds where padding or another sequence of the batch changes an answer, with the cause and a fix.

    Options describe what cannot be inferred from the target. Where a message names an option of the command line, such
    as `--features`, use the argument of the same name.

    Args:
        target: A torch module, a Keras model or an ONNX graph; or a text: a spec (.toml), what `train` wrote,
            `package.module:factory` or `file.py:factory` of a torch module or a Keras model, a Keras file, an ONNX
            file, or a model directory.

    Returns:
        The report. Its verdict is `uncheckable` if the target cannot be checked.

    Raises:
        ConfigurationError: The target is unknown or cannot be loaded, or an option contradicts it.

    Example:
        >>> report = lengthwise_export.check("examples/masking.py:attention_after_lstm", max_length=40)
        >>> report.verdict, report.leaks[0].operator
        ('leak', 'softmax')
    """
    with torch_as_before(target):
        checked = flow.check(target, options)
    report, read = checked.report, checked.target
    notices = () if read is None else read.notices
    for notice in notices:
        log.warning("%s", notice)
    found = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
    served = None if read is None or read.manifest is None else reports.promise_text(read.manifest)
    return CheckReport(**found, target=targets.named(target), served=served, fix=checked.fix, notices=tuple(notices))


@_export_keywords(ExportOptions)
def export(  # noqa: D417 - the decorator adds the options
    target: targets.Given, out: StrPath, options: ExportOptions
) -> PublishedModel:
    """Builds the graph of a target, verifies that padding changes no answer, and publishes a model directory.

    Warnings and notices are logged (logger `lengthwise.export`), and are in `notices` of the result.

    Args:
        target: As for `check`, except a model directory.
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
    """
    told: list[str] = []

    def tell(line: str) -> None:
        kind, _, text = line.partition(": ")
        level, text = {"warning": (logging.WARNING, text), "notice": (logging.INFO, text)}.get(
            kind, (logging.INFO, line)
        )
        log.log(level, "%s", text)
        told.append(text)

    with torch_as_before(target):
        published = flow.export(target, Path(out), options, tell)
    return dataclasses.replace(published, notices=tuple(told))
