"""The flow of an export, for the command and for Python: read -> candidate -> verify -> publish. Read this file first.

`export` reads a target, makes a candidate of it (a manifest, and a function that builds the graph), verifies the graph,
and publishes a version of a model that a service can load. If a case of the verification fails, nothing is published.
`check` reads a target and runs trials on it. A `source` is what the user gives: a text or an object.
"""

from __future__ import annotations

import contextlib
import functools
import linecache
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lengthwise.exporter_api.contract import EXAMPLES_FILE, Manifest, listed
from lengthwise.exporter_api.data import Record, dataset, doubts, unknown_labels
from lengthwise_export.checking.check import check_subject
from lengthwise_export.checking.report import Report
from lengthwise_export.checking.selection import select_leaks
from lengthwise_export.checking.states import check_states
from lengthwise_export.errors import ConfigurationError, LengthwiseError, UncheckableError, counted
from lengthwise_export.exporting import staging
from lengthwise_export.options import CheckOptions, ExportOptions, Notice, Tell, reading_of, tell_each
from lengthwise_export.targets import padding_side, targets
from lengthwise_export.targets.target import GraphTarget, Target, one_torch_thread, threads_of_check

if TYPE_CHECKING:  # what is imported here and below when it is needed brings torch and onnxruntime along
    from lengthwise.exporter_api.verification import Case
    from lengthwise_export.exporting.accuracy import DataAccuracy, LabelChanges
    from lengthwise_export.exporting.candidate import Candidate
    from lengthwise_export.mending.fix import FixProposal
    from lengthwise_export.mending.mended_accuracy import MendAccuracy


@dataclass(frozen=True, slots=True, repr=False)
class PublishedModel:
    """A published model directory and its verification.

    Attributes:
        directory: The model directory.
        manifest: Its manifest.
        cases: The cases of the verification.
        nodes: The number of nodes of the graph.
        labels: How many labels of `data` the precision changed; None without data, or at fp32.
        sample: The accuracy on `data`; None without labels.
        notices: Messages to show to the user.
        mend: What a mend changed; None if the model was not mended.
        mend_accuracy: The accuracy on `data` before and after the mend; None without a mend or without labels.
    """

    directory: Path
    manifest: Manifest
    cases: Sequence[Case]
    nodes: int
    labels: LabelChanges | None = None
    sample: DataAccuracy | None = None
    notices: tuple[str, ...] = ()
    mend: FixProposal | None = None
    mend_accuracy: MendAccuracy | None = None

    @property
    def version(self) -> int:
        """The version of the model, from 1."""
        return self.manifest.version

    def __repr__(self) -> str:
        """`<lengthwise_export.PublishedModel vowels/1: models/vowels/1, 212 cases hold>`."""
        return f"<lengthwise_export.PublishedModel {self.manifest.key}: {self.directory}, {len(self.cases)} cases hold>"


def export(source: targets.TargetSource, out: Path, options: ExportOptions, tell: Tell) -> PublishedModel:
    """Loads a target, builds its graph, verifies it and publishes it as a new version; `tell` gets each notice.

    Raises:
        ConfigurationError: `must_keep_accuracy` is set without `data`.
    """
    if options.must_keep_accuracy is not None and options.data is None:
        raise ConfigurationError("--must-keep-accuracy: the accuracy is measured on labelled sequences: pass --data")
    _require_streaming_options(options)
    staging.require_writable(out)
    source, options = targets.described(source, options)
    _require_known_labels(options)
    target = targets.read(source, options, blind=options.mend)
    with one_torch_thread():
        # Read the data
        tell_each(tell, target.notices, "warning")
        names = _feature_names(options, target)
        records = _read_data(options, target, names, tell)
        # Make the candidate, with the user's threshold and feature names
        from lengthwise_export.exporting.candidate import candidate_of, with_threshold  # brings torch and onnx along

        candidate = candidate_of(target, options, tell)
        if options.threshold is not None:
            candidate = with_threshold(candidate, options.threshold)
        if "weights" in candidate.manifest.made:
            tell(
                Notice(
                    f"no --checkpoint: the weights are {candidate.manifest.made['weights']}; pass --checkpoint FILE if "
                    "trained ones are in a file",
                    "warning",
                )
            )
        step_input = candidate.manifest.input.model_copy(update={"names": names})
        candidate = replace(candidate, manifest=candidate.manifest.model_copy(update={"input": step_input}))
        tell_each(tell, candidate.notices, "notice")
        # Verify and publish
        published = publish(candidate, out, options, records)
    tell_each(tell, published.notices, "notice")
    tell_each(tell, _warnings_of_published(target, candidate, published), "warning")
    return published


def _require_streaming_options(options: ExportOptions) -> None:
    """Makes sure that the options fit a model that streams, where they ask for one.

    Raises:
        ConfigurationError: `max_steps` is set without `streaming`, or the precision is fp16.
    """
    if options.max_steps is not None and not options.streaming:
        raise ConfigurationError("--max-steps bounds a sequence that is sent in chunks: pass --streaming, too")
    if options.streaming and options.precision == "fp16":
        raise ConfigurationError("--streaming --precision fp16: states are kept in float32: leave one of them out")


def publish(
    candidate: Candidate,
    out: Path,
    options: ExportOptions = ExportOptions(),  # noqa: B008 - it is frozen
    data: Sequence[Record] | None = None,
) -> PublishedModel:
    """Builds, verifies and publishes a candidate as a new version in the model folder `out`, with the user's `data`.

    Errors: `PublishError` (the version exists, or cannot be written), `ExportError` (no graph, or not at that
    precision), `VerificationError` (a case, the order of the labels, or the accuracy; nothing was published),
    `ConfigurationError` (the data does not fit the model), `ModelError` (a service would refuse it otherwise).
    """
    from lengthwise_export.exporting import model_files, verify

    with staging.staging_folder(out) as (destination, stage):
        manifest = candidate.manifest.model_copy(update={"name": destination.name, "version": destination.version})
        verified = verify.verify(candidate, manifest, options, data)
        options.begin("choosing kernels and publishing")
        examples = model_files.select_examples(data, verified.manifest) if data else []
        finished = model_files.write(stage, verified, candidate.mend, examples, seed=options.seed)
        if finished.streaming is not None:
            from lengthwise_export.streaming import elsewhere

            elsewhere.write(stage, finished)
        notices = [*verified.notices, *model_files.load_as_a_service_would(stage, finished)]
        if examples:
            stored = f"{len(examples)} recordings of the data stand in {EXAMPLES_FILE}, for the console"
            notices.append(f"{stored}; remove the file if others must not see them")
    return PublishedModel(
        destination.directory,
        manifest=finished,
        cases=verified.cases,
        nodes=len(verified.graph.graph.node),
        labels=verified.labels,
        sample=verified.sample,
        notices=tuple(notices),
        mend=candidate.mend,
        mend_accuracy=verified.mend_accuracy,
    )


def check(source: targets.TargetSource, options: CheckOptions) -> Report:
    """Loads a target and checks it; a ConfigurationError if it cannot be loaded, or an option or a comment is wrong.

    The report says "uncheckable" of a target that was read but cannot be checked.
    """
    linecache.checkcache()  # a report shows lines, and in a notebook a file may have changed since
    name = targets.name_of(source)
    if targets.begins_with(source, "FunctionTransformer"):
        from lengthwise_export.summaries import padded_arrays

        return select_leaks(padded_arrays.check(source, options), options.select, options.ignore)
    try:
        stated_layout = padding_side.stated_layout(options)
        source, options = targets.described(source, options)
        target = targets.read(source, options, blind=options.suggest, layout=stated_layout)
        target = padding_side.with_layout(target, stated_layout, options)
    except UncheckableError as error:
        report = Report("uncheckable", str(error), target=name)
        return replace(report, fix=_suggestion(None, report, options))
    with threads_of_check(target.subject):
        report = _trial_report(target, options)
        fix = _suggestion(target, report, options)
    # A model that takes no lengths cannot be checked as it is served, whatever its trials say
    if target.blind and report.verdict != "uncheckable":
        unknown_ends = "it takes neither lengths nor a mask, so it cannot know where a sequence ends; run padded"
        report = replace(report, verdict="uncheckable", reason=f"{unknown_ends}, {report.reason}")
    report = replace(report, target=name, served=target.promise, fix=fix, notices=target.notices)
    return select_leaks(report, options.select, options.ignore)


def _suggestion(target: Target | None, report: Report, options: CheckOptions) -> FixProposal | None:
    """For `--suggest`, tries a mend of the target: what it would change, and whether it is proved to be right.

    None without `--suggest`. `target` is None if it could not be read.
    """
    if not options.suggest:
        return None
    from lengthwise_export.exporting.candidate import NOTHING_TO_MEND
    from lengthwise_export.mending.fix import FixProposal
    from lengthwise_export.mending.mend_target import mend_target

    if target is None or (report.verdict == "uncheckable" and not target.blind):
        return FixProposal(False, report.reason)
    if not target.blind and report.verdict != "leak":
        return FixProposal(True, NOTHING_TO_MEND)
    settings = options.model_dump(include={"max_length", "tolerance", "seed", "progress"})
    return mend_target(target.unmended, **settings).fix


def _trial_report(target: Target, options: CheckOptions) -> Report:
    """Runs the trials of a check, with those of missing values if `--missing handled` asks for them.

    If the model does not handle missing values, the report is "uncheckable" and has the reason.
    """
    settings = options.model_dump(include={"max_length", "tolerance", "seed", "progress"})
    report = check_subject(target.subject, min_length=target.min_length, **settings)
    if report.verdict == "sound" and isinstance(target, GraphTarget) and target.states is not None:
        report = check_states(target.states, report, min_length=target.min_length, **settings)
    if options.missing == "handled" and not target.blind:
        from lengthwise_export.exporting import missing_values

        longest = report.max_length or options.max_length
        try:
            if not missing_values.is_compared(target.origin()):
                missing_values.require(target, min_length=report.min_length, max_length=longest, seed=options.seed)
        except UncheckableError as error:
            return Report("uncheckable", str(error))
        if report.verdict != "leak":  # the same trials, with missing values
            return check_subject(target.subject, min_length=target.min_length, missing=True, **settings)
    return report


def _warnings_of_published(target: Target, candidate: Candidate, published: PublishedModel) -> Iterator[str]:
    """Yields warnings for the user about the published model: refused missing values, labels and accuracy."""
    if published.manifest.missing != candidate.manifest.missing:
        yield f"missing values are refused at {published.manifest.precision}: a quantised layer cannot take NaN"
    if published.sample is not None:
        training = target.training
        yield from published.sample.notices(training.expected, training.expected_answers)


def _require_known_labels(options: ExportOptions) -> None:
    """Compares the labels of `--data` with those of `--labels`, before the target is read, which takes longer.

    Records that cannot be read yet, as only the target says how, are left to `_read_data`.

    Raises:
        ConfigurationError: There is no such data, or it has a label that `--labels` does not name.
    """
    if options.data is None:
        return
    dataset.locate(os.fspath(options.data))
    if options.labels is None:
        return
    reading = replace(
        reading_of(options.columns, padding=options.padding, inputs=options.feature_names or ()),
        say=lambda _line: None,  # all lines are said when the data is read for the export
        warn=lambda _line: None,
    )
    records: list[Record] = []
    with contextlib.suppress(LengthwiseError):
        records = dataset.read_all(
            os.fspath(options.data), "values" if options.vocabulary is None else "tokens", reading=reading
        )
    for record in records:
        if (unknown := unknown_labels(record.label, options.labels, "--labels")) is not None:
            raise ConfigurationError(f"{record.source_line}: {unknown}")


def _feature_names(options: ExportOptions, target: Target) -> tuple[str, ...] | None:
    """The names of the features, from the option or the target; None if neither has names.

    Raises:
        ConfigurationError: The option and the target differ in the names, or in their number.
    """
    names, target_names = options.feature_names, target.steps.names
    if names is not None and (len(names) != target.steps.features or target_names not in (None, names)):
        has = "token ids" if target.steps.features is None else counted(target.steps.features, "feature")
        raise ConfigurationError(
            f"--feature-names {listed(names)} contradicts {target.text}, which has {listed(target_names or [has])}"
        )
    return names or target_names


def _read_data(
    options: ExportOptions, target: Target, names: tuple[str, ...] | None, tell: Tell
) -> list[Record] | None:
    """Reads the records of the option --data; None without it.

    Raises:
        ConfigurationError: No record has a label, and the precision is fp32, so there is nothing to compare.
    """
    if options.data is None:
        return None
    # Columns have the roles that they had in training, unless the options say otherwise. What a row of the table is, a
    # step or a sequence, is no role of a column: it is passed as an option
    trained_columns, padding = target.training.columns, options.padding or target.padding
    row = {key: word for key, word in trained_columns.items() if key == "row"}
    static = () if target.steps.static is None else target.steps.static.names or ()
    more: dict[str, Any] = {"inputs": names or (), "static": static, "defaults": trained_columns}
    reading = reading_of(row | options.columns, padding=padding, **more)
    reading = replace(
        reading,
        per_step=target.per_step,
        say=lambda line: tell(Notice(line, "notice")),
        warn=functools.cache(lambda line: tell(Notice(line, "warning"))),
    )
    records = dataset.read_all(os.fspath(options.data), target.steps.kind, reading=reading)
    for doubt in doubts([record.steps for record in records]):
        tell(Notice(f"{options.data}: {doubt}", "warning"))
    if options.precision == "fp32" and not any(record.has_label for record in records):
        raise ConfigurationError(
            f"{options.data}: no record has a label, so there is nothing to compare answers with; without labels, "
            "--data compares --precision fp16 or int8 with fp32"
        )
    return records
