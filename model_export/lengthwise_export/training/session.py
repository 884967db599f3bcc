"""A whole training as the command does it: the plan, one run or several, scores, and the report.

```
records -> plan ─┬─> fixed kernels ────────────────────────┐
                 └─> one run for each seed ─> the best one ─┴─> scores of each split -> metrics.json, report.html
```
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from lengthwise import files
from lengthwise.decoding.dataset import Record
from lengthwise.errors import ConfigurationError
from lengthwise_export.architecture import checkpoint
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.architecture.toml_text import as_toml
from lengthwise_export.architecture.trained import STATE_FILE, WEIGHTS_FILE
from lengthwise_export.training import report_page, rocket
from lengthwise_export.training.batches import Example, examples
from lengthwise_export.training.metrics import METRICS_FILE, TrainingReport
from lengthwise_export.training.quality import AnyClassifier, quality
from lengthwise_export.training.recipe import Plan
from lengthwise_export.training.rocket_report import RocketReport
from lengthwise_export.training.run import Epoch
from lengthwise_export.training.train import MEMBERS, TrainingResult, evaluate, train

SPEC_FILE: Final = "spec.toml"
PAGE_FILE: Final = "report.html"
SEEDS: Final = "seeds"
"""The folder with one folder for each run of `--seeds`."""


@dataclass(frozen=True, slots=True)
class FinishedTraining:
    """A finished training.

    Attributes:
        content: What `metrics.json` holds.
        report: The report of the best run, with its table for the terminal.
        warnings: What the user should know about the training.
    """

    content: dict[str, Any]
    report: TrainingReport | RocketReport
    warnings: tuple[str, ...]


def train_layers(
    plan: Plan,
    records: Sequence[Record],
    test: Sequence[Record],
    out: Path,
    *,
    resume: bool,
    on_epoch: Callable[[Epoch], None],
    validation: Sequence[Record] = (),
    pictures: bool = True,
) -> FinishedTraining:
    """Trains what a plan says with gradient descent, once or with several seeds, and writes the report.

    Args:
        plan: The plan.
        records: The training records.
        test: Records to score at the end; may be empty.
        out: An existing folder.
        resume: Whether to continue from the states in this folder.
        on_epoch: Called after each epoch of each run.
        validation: Records that become the validation split, in the place of a share of `records`.
        pictures: Whether the learning curve and the confusion matrix are drawn as files, too.
    """
    held_out = examples(test, plan.spec)
    results: list[tuple[int, Path, TrainingResult]] = []
    for number in range(plan.runs):
        seed = plan.options.seed + number
        folder = out if plan.runs == 1 else out / SEEDS / str(seed)
        folder.mkdir(parents=True, exist_ok=True)
        again = resume and (plan.runs == 1 or (folder / STATE_FILE).is_file())
        result = train(
            plan.spec,
            records,
            replace(plan.options, seed=seed),
            folder,
            resume=again,
            on_epoch=on_epoch,
            split_seed=None if plan.runs == 1 else plan.options.seed,
            validation=validation,
            known_temperature=plan.temperature,
        )
        results.append((seed, folder, result))
    _, folder, best = min(results, key=lambda one: _loss(one[2]))
    if plan.runs > 1:
        shutil.copyfile(folder / WEIGHTS_FILE, out / WEIGHTS_FILE)
    tested = [evaluate(result.model, held_out, plan.spec) if held_out else None for _, _, result in results]
    chosen = [result for _, _, result in results].index(best)
    report = TrainingReport(plan.spec, plan.options, best, tested[chosen], plan.held_back)
    warnings = [*plan.warnings, *_endings(best, plan)]
    content = report.as_json() | {"seconds": sum(result.seconds for _, _, result in results)}
    if plan.runs > 1:
        runs = [
            {
                "seed": seed,
                "training": result.training.accuracy,
                "validation": None if result.validation is None else result.validation.accuracy,
                "test": None if scores is None else scores.accuracy,
                "seconds": result.seconds,
            }
            for (seed, _, result), scores in zip(results, tested, strict=True)
        ]
        content |= {"runs": runs, "spread": spread(runs)}
    first, second = best.split
    splits = {"training": first, "validation": second, "test": held_out}
    made = origin(plan, records, test)
    return _finished(plan, content, report, tuple(warnings), best.model, splits, out, pictures, made)


def train_rocket(
    plan: Plan,
    records: Sequence[Record],
    test: Sequence[Record],
    out: Path,
    *,
    on_examples: Callable[[int, int], None] = lambda _done, _all: None,
    validation: Sequence[Record] = (),
    pictures: bool = True,
) -> FinishedTraining:
    """Fits what a plan says with fixed kernels, and writes the report; see `train_layers`.

    Nothing is chosen by `validation`, which is only scored.
    """
    held_out, second = examples(test, plan.spec), examples(validation, plan.spec)
    result = rocket.train(plan.spec, records, plan.options, out, test=held_out, on_examples=on_examples)
    report = RocketReport(plan.spec, plan.options, result)
    splits = {"training": examples(records, plan.spec), "validation": second, "test": held_out}
    content = report.as_json()
    if second:
        content["validation"] = rocket.evaluate(result.model, second, plan.spec).as_json()
    made = origin(plan, records, test)
    return _finished(plan, content, report, plan.warnings, result.model, splits, out, pictures, made)


def origin(plan: Plan, records: Sequence[Record], test: Sequence[Record]) -> dict[str, Any]:
    """When and from what a model is trained, for `metrics.json` and below the pictures."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "version": metadata.version("lengthwise"),
        "seed": plan.options.seed,
        "data": _source(records),
        "records": len(records),
        "test_data": _source(test) if test else None,
        "test_records": len(test),
    }


def _source(records: Sequence[Record]) -> str:
    """The name of the file that records were read from; they say `file:line`."""
    return Path(records[0].place.rpartition(":")[0]).name or "a Python program"


def refuse_to_overwrite(out: Path, instead: str) -> None:
    """Makes sure that a folder holds no run.

    Raises:
        ConfigurationError: It holds one; the message ends with `instead`.
    """
    for name in (WEIGHTS_FILE, STATE_FILE):
        if (out / name).exists():
            raise ConfigurationError(f"{out} holds a run ({name}): {instead}")


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


def write_spec(plan: Plan, out: Path) -> None:
    """Writes the spec that was trained, with the reasons of its choices."""
    notes = ["What `lengthwise train` trained.", *(f"- {reason}" for reason in plan.reasons)]
    files.write(out / SPEC_FILE, as_toml(plan.spec, notes))


def planned_epochs(out: Path) -> int | None:
    """The number of epochs of the run in a folder, for a resume within a budget; None if there is no such run."""
    for path in (
        out / STATE_FILE,
        *sorted(out.glob(f"{MEMBERS}/*/{STATE_FILE}")),
        *sorted(out.glob(f"{SEEDS}/*/**/{STATE_FILE}")),
    ):
        if path.is_file():
            epochs = checkpoint.state(path).get("options", {}).get("epochs")
            return epochs if isinstance(epochs, int) else None
    return None


def spread(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of the accuracies of several runs, by split."""
    figures = {}
    for name in ("training", "validation", "test"):
        values = [run[name] for run in runs if run[name] is not None]
        if len(values) > 1:
            figures[name] = {"mean": statistics.mean(values), "deviation": statistics.stdev(values)}
    return figures


def _finished(
    plan: Plan,
    content: dict[str, Any],
    report: TrainingReport | RocketReport,
    warnings: tuple[str, ...],
    model: AnyClassifier,
    splits: Mapping[str, Sequence[Example]],
    out: Path,
    pictures: bool,
    made: Mapping[str, Any],
) -> FinishedTraining:
    for name, members in splits.items():
        if members and isinstance(content.get(name), dict):
            content[name] |= quality(model, members, plan.spec)
    content |= {"made": made, "spec": plan.spec.resolved(), "chosen": list(plan.reasons), "warnings": list(warnings)}
    write_spec(plan, out)
    if pictures:
        report.write(out, report_page.origin(made))
    files.write(out / METRICS_FILE, json.dumps(content, indent=2) + "\n")
    files.write(out / PAGE_FILE, report_page.page(content, str(out)))
    return FinishedTraining(content, report, warnings)


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
    measured = result.validation
    if plan.probe is not None and measured is not None and plan.probe > measured.accuracy + 2 / measured.answers**0.5:
        said.append(
            f"a quick MiniRocket was correct on {plan.probe:.1%}, this model on {measured.accuracy:.1%}: "
            'try kind = "rocket" in [model]'
        )
    return said


def lenient(spec: Spec) -> Spec:
    """The spec by which records are read: where the policy for missing values is chosen later, they are allowed."""
    is_open = spec.model.preset == "auto" and spec.input.kind == "values" and not spec.input.says("missing")
    return spec.with_keys(input={"missing": "indicator"}) if is_open else spec
