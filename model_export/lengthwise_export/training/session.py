"""One training, for the command and for Python: the plan, one run or several, scores, and the report.

```
records -> plan ─┬─> fixed kernels ────────────────────────┐
                 └─> one run for each seed ─> the best one ─┴─> scores of each split -> metrics.json, report.html
```
Every record was checked when it was read.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import torch
from rich.console import Console
from threadpoolctl import threadpool_limits

from lengthwise import files
from lengthwise.commands.progress import progress_bar, status
from lengthwise.datasets.dataset import Record
from lengthwise.errors import ConfigurationError
from lengthwise.reports import notebook
from lengthwise_export.architecture import checkpoint
from lengthwise_export.architecture.spec import Spec, as_toml
from lengthwise_export.architecture.trained import STATE_FILE, WEIGHTS_FILE
from lengthwise_export.training import recipe, rocket
from lengthwise_export.training.batches import check, examples, lenient
from lengthwise_export.training.options import TrainOptions
from lengthwise_export.training.recipe import Plan
from lengthwise_export.training.report import METRICS_FILE, RunReport, origin, page
from lengthwise_export.training.run import Epoch
from lengthwise_export.training.scores import evaluate
from lengthwise_export.training.train import MEMBERS, TrainingResult, train

ProgressTarget: TypeAlias = Callable[[str], None] | Literal["auto"] | None
"""A function that takes lines; `auto` for a bar in a notebook or on a terminal; None for nothing."""
Show: TypeAlias = Callable[[int, str], None]
"""Takes the number of finished parts, and a note."""

SPEC_FILE: Final = "spec.toml"
PAGE_FILE: Final = "report.html"
SEEDS: Final = "seeds"
"""The folder with one folder for each run of `--seeds`."""


def check_all(name: str, records: Sequence[Record], spec: Spec) -> None:
    """Makes sure that the records of a split fit a spec.

    Raises:
        ConfigurationError: One does not fit.
    """
    for record in records:
        check(record, spec)


@dataclass(frozen=True)
class TrainingSession:
    """What is trained on, and how.

    Attributes:
        spec: The user's spec.
        records: The training records.
        options: The user's options.
        test: Records that are scored once, at the end.
        validation: Records that become the validation split, in the place of a share of `records`.
        reasons: Why what was chosen while the records were read was chosen.
        warnings: What the user should know about the records.
        resume: Whether to continue from the states in the folder of the run.
        recheck: Called with the name, the records and the chosen spec of another split, where the policy for missing
            values was open when they were read.
        progress: What shows how far it is.
        tell: Called with each reason and warning as soon as it is known, with `chosen: ` or `warning: ` before it.
    """

    spec: Spec
    records: Sequence[Record]
    options: TrainOptions
    test: Sequence[Record] = ()
    validation: Sequence[Record] = ()
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    resume: bool = False
    recheck: Callable[[str, Sequence[Record], Spec], None] = check_all
    progress: ProgressTarget = None
    tell: Callable[[str], None] = lambda _line: None

    def run(self, out: Path) -> RunReport:
        """Chooses what is open, trains, and writes the weights and the report.

        Raises:
            ConfigurationError: The options contradict the spec or the records, or the folder cannot be written.
            CheckpointError: There is no state to resume from, or it belongs to another training.
        """
        with _threads(self.options.threads):
            plan = self.plan(out)
            if plan.spec.input.missing == "refuse" and lenient(self.spec) is not self.spec:
                self.recheck("validation", self.validation, plan.spec)
                self.recheck("test", self.test, plan.spec)
            for line in plan.reasons:
                self.tell(f"chosen: {line}")
            for line in plan.warnings:
                self.tell(f"warning: {line}")
            with made_folder(out):
                if not self.resume:
                    for path in (out / WEIGHTS_FILE, *_state_files(out)):
                        path.unlink(missing_ok=True)
                report, endings = (self._rocket if plan.spec.model.kind == "rocket" else self._layers)(plan, out)
        for line in endings:
            self.tell(f"warning: {line}")
        report |= {"warnings": [*plan.warnings, *endings]}
        files.write(
            out / SPEC_FILE, as_toml(plan.spec, ["What `lengthwise train` trained.", *map("- {}".format, plan.reasons)])
        )
        files.write(out / METRICS_FILE, json.dumps(report, indent=2) + "\n")
        files.write(out / PAGE_FILE, page(report, str(out)))
        return report

    def plan(self, out: Path) -> Plan:
        """What is trained; a resumed training within a budget keeps its number of epochs."""
        options = self.options
        if self.resume and options.budget_minutes and options.epochs is None:
            planned = [checkpoint.state(path)["options"]["epochs"] for path in _state_files(out)]
            options = options.model_copy(update={"epochs": planned[0] if planned else None})
        if self.resume and self.spec.model.kind == "rocket":
            raise ConfigurationError(
                "--resume has no meaning with kind = 'rocket': it takes seconds, and keeps no state"
            )
        if self.validation and self.spec.model.kind != "rocket":
            options = options.model_copy(update={"validation": 0.0})
        with _choosing(self.progress):
            plan = recipe.plan(self.spec, self.records, options)
        return replace(plan, reasons=(*self.reasons, *plan.reasons), warnings=(*self.warnings, *plan.warnings))

    def _rocket(self, plan: Plan, out: Path) -> tuple[RunReport, list[str]]:
        """Fits fixed kernels. Nothing is chosen by the validation split, which is only scored."""
        with _shown(self.progress, "sequences", len(self.records)) as show:
            result = rocket.train(
                plan.spec,
                self.records,
                plan.options,
                out,
                fitted=plan.model.fitted,
                on_examples=lambda done, _: show(done, "features are computed"),
            )
        others = {"validation": self.validation, "test": self.test}
        scores = {
            name: rocket.evaluate(result.model, examples(records, plan.spec), plan.spec)
            for name, records in others.items()
            if records
        }
        return RunReport.of(plan, result, result.splits | scores, origin(plan, self.records, self.test)), []

    def _layers(self, plan: Plan, out: Path) -> tuple[RunReport, list[str]]:
        """Trains layers by gradient descent, with one seed or several."""
        epochs = plan.options.epochs * plan.runs * plan.spec.model.members
        with _shown(self.progress, "epoch", epochs) as show:
            on_epoch = _on_epoch(show)
            results = [self._one(plan, number, out, on_epoch) for number in range(plan.runs)]
        best = min(results, key=lambda one: _loss(one[1]))
        if plan.runs > 1:
            shutil.copyfile(best[0] / WEIGHTS_FILE, out / WEIGHTS_FILE)
        held_out = examples(self.test, plan.spec)
        tested = [{"test": evaluate(one.model, held_out, plan.spec)} if held_out else {} for _, one in results]
        splits = best[1].splits | tested[results.index(best)]
        report = RunReport.of(plan, best[1], splits, origin(plan, self.records, self.test))
        report |= {"seconds": sum(one.seconds for _, one in results)}
        if plan.runs > 1:
            runs = [
                {"seed": plan.options.seed + number, "seconds": one.seconds}
                | {name: scores.accuracy for name, scores in (one.splits | more).items()}
                for number, ((_, one), more) in enumerate(zip(results, tested, strict=True))
            ]
            report |= {"runs": runs, "spread": spread(runs)}
        return report, _endings(best[1], plan)

    def _one(
        self, plan: Plan, number: int, out: Path, on_epoch: Callable[[Epoch], None]
    ) -> tuple[Path, TrainingResult]:
        """The run with one of the seeds, and its folder."""
        seed, several = plan.options.seed + number, plan.runs > 1
        folder = out / SEEDS / str(seed) if several else out
        folder.mkdir(parents=True, exist_ok=True)
        result = train(
            plan.spec,
            self.records,
            replace(plan.options, seed=seed),
            folder,
            resume=self.resume and (not several or (folder / STATE_FILE).is_file()),
            on_epoch=on_epoch,
            split_seed=plan.options.seed,
            validation=self.validation,
            known_temperature=None if plan.model.folds is None else plan.model.folds.temperature,
        )
        return folder, result


def refuse_to_overwrite(out: Path, instead: str) -> None:
    """Makes sure that a folder holds no run.

    Raises:
        ConfigurationError: It holds one; the message ends with `instead`.
    """
    for path in (out / WEIGHTS_FILE, *_state_files(out)):
        if path.exists():
            raise ConfigurationError(f"{out} holds a run ({path.relative_to(out)}): {instead}")


def finished_epochs(out: Path) -> int:
    """The number of epochs that the states in a folder hold."""
    return sum(len(checkpoint.state(path)["epochs"]) for path in _state_files(out))


@contextmanager
def made_folder(out: Path) -> Iterator[None]:
    """Creates a folder for the block. If the block raises, new folders that are still empty are removed.

    Raises:
        ConfigurationError: It cannot be created.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"--out {out} cannot be written: {error.strerror}") from error
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):  # not empty, or never created
                folder.rmdir()
        raise


def spread(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of the accuracies of several runs, by split."""
    figures = {}
    for name in ("training", "validation", "test"):
        values = [run[name] for run in runs if name in run]
        if values:
            figures[name] = {"mean": statistics.mean(values), "deviation": statistics.stdev(values)}
    return figures


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Makes torch, and the linear algebra of NumPy, compute in so many threads during the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


def _state_files(out: Path) -> list[Path]:
    """The states of all runs in a folder."""
    patterns = (STATE_FILE, f"{MEMBERS}/*/{STATE_FILE}", f"{SEEDS}/*/{STATE_FILE}")
    return [path for pattern in patterns for path in sorted(out.glob(pattern))]


def _on_epoch(show: Show) -> Callable[[Epoch], None]:
    """What shows each finished epoch, of all runs together."""
    done = count(1)

    def on_epoch(epoch: Epoch) -> None:
        accuracy = epoch.validation_accuracy
        measured = "" if accuracy is None else f", validation accuracy {accuracy:.4f}"
        show(next(done), f"loss {epoch.training_loss:.4f}{measured}")

    return on_epoch


def _loss(result: TrainingResult) -> float:
    """By which the best of several runs is chosen; without validation nothing can be, and the first is taken."""
    return 0.0 if result.validation is None else result.validation.loss


def _endings(result: TrainingResult, plan: Plan) -> list[str]:
    """What the user should know about how training ended."""
    said = []
    ended = [one.progress for one in (result.members or (result,))]
    if any(progress.still_improves(plan.options) for progress in ended):
        said.append(
            f"the loss was still falling when training ended after {plan.options.epochs} epochs: "
            f"--epochs {2 * plan.options.epochs} would probably be better"
        )
    if plan.options.calibration and result.temperature is None:
        said.append("the probabilities are not calibrated: there is no validation split. Set --validation")
    measured, probe = result.validation, plan.model.probe
    if probe is not None and measured is not None and probe > measured.accuracy + 2 / measured.answers**0.5:
        said.append(
            f"a quick MiniRocket was correct on {probe:.1%}, this model on {measured.accuracy:.1%}: "
            'try kind = "rocket" in [model]'
        )
    return said


def require_progress(progress: object) -> None:
    """Makes sure that a caller's argument `progress` is one.

    Raises:
        ConfigurationError: It is not.
    """
    if not (progress is None or progress == "auto" or callable(progress)):
        raise ConfigurationError(f"progress must be a function, 'auto' or None, got {progress!r}")


def _choosing(progress: ProgressTarget) -> AbstractContextManager[Any]:
    """Shows during the block that something is chosen, which may take minutes."""
    doing = "choosing what is left open"
    return status(Console(stderr=True), doing) if progress is not None else nullcontext()


@contextmanager
def _shown(progress: ProgressTarget, parts: str, total: int) -> Iterator[Show]:
    """Yields what shows the progress of a training with so many parts, such as epochs."""
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
