"""One training, for the command and for Python: the plan, the run, scores, and the report.

```
records -> plan ─┬─> fixed kernels, trees ─┐
                 └─> gradient descent ─────┴─> scores of each split -> metrics.json, report.html
```
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from rich.console import Console
from threadpoolctl import threadpool_limits

from lengthwise.commands.progress import progress_bar, status
from lengthwise.exporter_api.contract import files
from lengthwise_export.architecture import checkpoint, temperature
from lengthwise_export.architecture.spec import Spec, as_toml
from lengthwise_export.architecture.trained import STATE_FILE, WEIGHTS_FILE, refuse_to_overwrite, run_files
from lengthwise_export.errors import ConfigurationError
from lengthwise_export.options import Tell, tell_each
from lengthwise_export.tracing.process_wide import torch_threads
from lengthwise_export.training import recipe, rocket
from lengthwise_export.training.arrays import LabelledSequences
from lengthwise_export.training.batches import make_examples
from lengthwise_export.training.choice import Plan
from lengthwise_export.training.options import TrainOptions, options_of_layers
from lengthwise_export.training.record_checks import Record, fitting_records, missing_is_open
from lengthwise_export.training.report import METRICS_FILE, RunReport, notebook, page
from lengthwise_export.training.scores import EvaluationScores, evaluate
from lengthwise_export.training.streamable import earliness, learned_stop
from lengthwise_export.training.train import Epoch, TrainingResult, train, write

ProgressTarget: TypeAlias = Callable[[str], None] | Literal["auto"] | None  # takes lines; `auto`: a bar; None: nothing
SPEC_FILE: Final = "spec.toml"
PAGE_FILE: Final = "report.html"


def run_training(
    data: LabelledSequences,
    options: TrainOptions,
    out: Path,
    *,
    test: Sequence[Record] = (),
    validation: Sequence[Record] = (),
    resume: bool = False,
    overwrite: bool = False,
    recheck: Callable[[str, Sequence[Record], Spec], object] = lambda _name, records, spec: [
        *fitting_records(records, spec)
    ],
    progress: ProgressTarget = None,
    tell: Tell = lambda _notice: None,
) -> RunReport:
    """Chooses what is open, trains, and writes the weights, the chosen spec and the report into the folder `out`.

    The folder is locked until the weights are written.

    Args:
        data: The training records, and the user's spec with what they say.
        options: The user's options.
        out: The folder of the run.
        test: The records of the test split, which is scored once, at the end.
        validation: The records of the validation split; without them, it is a share of the training records.
        resume: Whether to continue from the state in `out`.
        overwrite: Whether the files of an earlier run in `out` are deleted.
        recheck: Called with the name, the records and the chosen spec of the test and the validation split, to raise
            if some records do not fit: while the policy for missing values was open, missing values were allowed.
        progress: Where progress is shown.
        tell: Called with each reason and warning as soon as it is known.
    """
    other_splits = {"validation": validation, "test": test}
    with torch_threads(options.threads), threadpool_limits(options.threads, user_api="blas"):
        # Choose, and tell the reasons before the training, which may take long
        plan = _plan(data, options, has_validation=bool(validation), resume=resume, progress=progress)
        if plan.spec.input.missing == "refuse" and missing_is_open(data.spec):
            for name, records in other_splits.items():
                recheck(name, records, plan.spec)
        tell_each(tell, plan.reasons, "chosen")
        tell_each(tell, plan.warnings, "warning")
        # Train, and score the splits
        with _claimed(out, resume=resume, overwrite=overwrite):
            if plan.spec.model.kind == "layers":
                result = _fit_layers(data, plan, out, progress, validation=validation, resume=resume)
            else:
                result = _fit_at_once(data, plan, out, progress)
            splits = dict(result.splits)
            for name, records in other_splits.items():
                if name not in splits and any(record.has_label for record in records):
                    splits[name] = evaluate(result.model, make_examples(records, plan.spec), plan.spec)
            plan, early = _early_answers(plan, result, splits, out) if options.streaming else (plan, {})
    closing_warnings = _closing_warnings(result, plan)
    tell_each(tell, closing_warnings, "warning")
    report = RunReport.of(plan, result, splits, data.records, test)
    report |= {"warnings": [*plan.warnings, *closing_warnings], **early}
    _write_report(out, plan, report)
    return report


def _early_answers(
    plan: Plan, result: TrainingResult, splits: Mapping[str, EvaluationScores], out: Path
) -> tuple[Plan, dict[str, Any]]:
    """The plan with `stop_at`, learned on the validation split, and what the report says of early answers.

    It is written into the record beside the weights, too. A user's own stays, and without a validation split there is
    none.
    """
    early, output = earliness(result.model, splits, plan.spec), plan.spec.output
    if output.stop_at is not None or output.task != "single-label" or "validation" not in splits:
        return plan, early
    learned = learned_stop(result.model, splits["validation"], plan.spec)
    if learned is None:
        return plan, early
    stop_at, comes_of_it = learned
    keys = {f"stop_{name}": value for name, value in stop_at.model_dump().items()}
    spec = plan.spec.with_keys(output=keys)
    tensors, state = checkpoint.read(out / WEIGHTS_FILE)
    checkpoint.write(out / WEIGHTS_FILE, tensors, state | {"spec": spec.resolved()})
    return replace(plan, spec=spec), early | {"stop_at": {**stop_at.model_dump(), **comes_of_it}}


def _write_report(out: Path, plan: Plan, report: RunReport) -> None:
    """Writes the chosen spec, the metrics and the page into the folder of a run."""
    notes = ["What `lengthwise train` trained.", *map("- {}".format, plan.reasons)]
    files.write(out / SPEC_FILE, as_toml(plan.spec, notes))
    files.write(out / METRICS_FILE, json.dumps(report, indent=2) + "\n")
    files.write(out / PAGE_FILE, page(report, str(out)))


def _plan(
    data: LabelledSequences, options: TrainOptions, *, has_validation: bool, resume: bool, progress: ProgressTarget
) -> Plan:
    """Chooses what the spec and the options leave open, with `recipe.plan`; shows a status meanwhile.

    If the user has passed a validation split (`has_validation`), no share of the records is held out besides.
    """
    options_of_layers(options, data.spec.model.kind, resume=resume)
    if has_validation and data.spec.model.kind == "layers":
        options = options.model_copy(update={"validation": 0.0})
    choosing = "choosing what is left open"  # which may take minutes
    with status(Console(stderr=True), choosing) if progress is not None else nullcontext():
        plan = recipe.plan(data.spec, data.records, options)
    return replace(plan, reasons=(*data.reasons, *plan.reasons), warnings=(*data.warnings, *plan.warnings))


def _fit_at_once(data: LabelledSequences, plan: Plan, out: Path, progress: ProgressTarget) -> TrainingResult:
    """Fits fixed kernels or trees, or takes the model that the plan has fitted, and writes the weights into `out`.

    Nothing is chosen by the validation split, which is only scored.
    """
    with _progress(progress, "sequences", len(data.records)) as show:
        result = plan.fitted or _fitted(plan, data.records, lambda done: show(done, "features are computed"))
    write(out, plan.spec, result, seed=plan.options.seed, columns=data.columns)
    return result


def _fitted(plan: Plan, records: Sequence[Record], on_examples: Callable[[int], None]) -> TrainingResult:
    """Fits fixed kernels, or trees on summaries."""
    if plan.spec.model.kind == "rocket":
        return rocket.fit(plan.spec, records, plan.options, on_examples=on_examples)
    from lengthwise_export.training import summaries  # brings scikit-learn's trees along

    return summaries.fit(plan.spec, records, plan.options, on_examples=on_examples).result()


def _fit_layers(
    data: LabelledSequences,
    plan: Plan,
    out: Path,
    progress: ProgressTarget,
    *,
    validation: Sequence[Record],
    resume: bool,
) -> TrainingResult:
    """Trains layers by gradient descent; writes the weights, and the state for a resume, into `out`."""
    with _progress(progress, "epoch", plan.options.epochs) as show:

        def on_epoch(epoch: Epoch) -> None:
            accuracy = epoch.validation_accuracy
            measured = "" if accuracy is None else f", validation accuracy {accuracy:.4f}"
            show(epoch.number + 1, f"loss {epoch.training_loss:.4f}{measured}")

        return train(
            plan.spec,
            data.records,
            plan.options,
            out,
            resume=resume,
            on_epoch=on_epoch,
            validation=validation,
            columns=data.columns,
        )


def finished_epochs(out: Path) -> int:
    """The number of finished epochs in the saved state of a run's folder; 0 without a state."""
    path = out / STATE_FILE
    return len(checkpoint.state(path)["epochs"]) if path.is_file() else 0


@contextmanager
def _claimed(out: Path, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Creates and locks the folder of a run for the block; `resume` and `overwrite` as in `run_training`.

    Raises:
        ConfigurationError: Another training writes into it, or has done so since the caller looked.
    """
    with _new_folder(out), files.locked(out, wait=False) as is_free:
        if not is_free:
            raise ConfigurationError(f"{out}: another training is writing into it; use another folder")
        if not (resume or overwrite):
            refuse_to_overwrite(out, "another training wrote it meanwhile; use another folder")
        for path in () if resume else run_files(out):
            path.unlink()
        yield


@contextmanager
def _new_folder(out: Path) -> Iterator[None]:
    """Creates a folder and its parents before the block; if the block raises, removes those that are still empty.

    Raises:
        ConfigurationError: The folder cannot be written.
    """
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"--out {out} cannot be written: {error.strerror}") from error
        yield
    except BaseException:  # an interrupt, too
        for folder in new:
            with suppress(OSError):  # not empty, or never created
                folder.rmdir()
        raise


def _closing_warnings(result: TrainingResult, plan: Plan) -> list[str]:
    """Warnings about how the training ended: too early, without calibration, or less accurate than the probe."""
    options, progress, probe = plan.options, result.progress, plan.probe or 0.0
    why = "there is no validation split. Set --validation"
    if {"validation", "left_out"} & result.splits.keys():
        why = f"fewer than {temperature.FEWEST} answers were held out, which say too little"
    validated = result.splits.get("validation")
    # Without validation nothing is compared with the probe: an accuracy of 1 gives no warning
    accuracy, error = (1.0, 0.0) if validated is None else (validated.accuracy, validated.answers**-0.5)
    possible_warnings = (
        (
            progress is not None and progress.still_improves(options),
            f"the loss was still falling when training ended after {options.epochs} epochs: "
            f"--epochs {2 * options.epochs} would probably be better",
        ),
        (
            options.calibration and result.temperature is None,
            f"the probabilities are not calibrated: {why}",
        ),
        (
            probe > accuracy + 2 * error,
            f"a quick MiniRocket was correct on {probe:.1%}, this model on {accuracy:.1%}: "
            'try kind = "rocket" in [model]',
        ),
    )
    return [text for is_true, text in possible_warnings if is_true]


@contextmanager
def _progress(progress: ProgressTarget, parts: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Yields a function that shows progress: it takes the number of finished parts, and a note.

    Args:
        progress: Where it is shown: a function that takes lines, "auto" for a bar, None for nothing.
        parts: What the parts are, such as "epoch", for lines.
        total: The number of parts.
    """
    if callable(progress):
        tell = progress
        yield lambda done, note: tell(f"{parts} {done} of {total}: {note}")
    elif progress is None:
        yield lambda _done, _note: None
    elif notebook.in_notebook():
        with notebook.notebook_bar("training", total) as bar:
            yield bar
    else:
        with progress_bar(Console(stderr=True)) as bars:
            task = bars.add_task("training", total=total, note="")
            yield lambda done, note: bars.update(task, completed=done, note=f"{done} of {total}, {note}", refresh=True)
