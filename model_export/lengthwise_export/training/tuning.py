"""A search over layers for some data: successive halving with cross-validation.

```
candidates -> few steps each -> the better half -> twice the steps -> ... -> the best spec
```
Every accuracy is of answers to records that the answering model was not trained on: fold by fold for layers, one by one
for fixed kernels (`training.ridge`). Each finished trial is written down, so a search can be interrupted and resumed.
https://arxiv.org/abs/1502.07943 describes the method.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from lengthwise import files
from lengthwise.decoding.dataset import Record
from lengthwise.errors import ConfigurationError
from lengthwise_export.architecture import presets
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.architecture.toml_text import as_toml
from lengthwise_export.errors import CheckpointError, SpecError
from lengthwise_export.training import choice, objective, recipe, rocket, schedule
from lengthwise_export.training.batches import Example, examples, stratum
from lengthwise_export.training.options import RecipeOptions, TrainingOptions
from lengthwise_export.training.run import TrainingRun, answers

TRIALS_FILE: Final = "trials.json"
SPEC_FILE: Final = "spec.toml"
STEPS: Final = (75, 150, 300, 600)
"""Optimiser steps of each round."""
ROCKET: Final = "rocket"


@dataclass(frozen=True, slots=True)
class TuningOptions:
    """Options of a search.

    Attributes:
        budget_minutes: No trial begins after this time.
        folds: Parts of the cross-validation.
        seed: Seed of the folds and of the weights.
    """

    budget_minutes: float = 10.0
    folds: int = 3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate after a number of steps.

    Attributes:
        name: The name of the candidate.
        steps: Optimiser steps for each fold; 0 for fixed kernels.
        accuracy: Share of right answers to records that were not trained on.
        loss: Log loss of these answers.
        deviation: Standard deviation of the accuracy that chance alone would give with so many answers.
        seconds: Time of the trial.
    """

    name: str
    steps: int
    accuracy: float
    loss: float
    deviation: float
    seconds: float


@dataclass(frozen=True, slots=True)
class TuningResult:
    """The result of a search.

    Attributes:
        trials: All trials.
        best: The best of the candidates that were trained longest, and of the fixed kernels.
        spec: Its spec.
        complete: Whether the search ended before the budget.
    """

    trials: tuple[Trial, ...]
    best: Trial
    spec: Spec
    complete: bool

    def as_json(self) -> dict[str, Any]:
        """The result for `--json`."""
        return {
            "trials": [asdict(trial) for trial in self.trials],
            "best": asdict(self.best),
            "spec": self.spec.resolved(),
            "complete": self.complete,
        }

    def table(self, title: str) -> Table:
        """The trials for the terminal, the best first."""
        caption = (
            f"best: {self.best.name}, {self.best.accuracy:.4f} ± {self.best.deviation:.4f} on records that it was not "
            "trained on; the best of several is a little too good, so measure it on others"
        )
        if not self.complete:
            caption += "; the budget ended the search: --resume continues it"
        table = Table("candidate", "steps", "accuracy", "log loss", "seconds", title=title, caption=caption)
        for one in sorted(self.trials, key=lambda one: (one.steps, one.accuracy), reverse=True):
            steps = str(one.steps) if one.steps else "–"  # noqa: RUF001 - a dash
            table.add_row(one.name, steps, f"{one.accuracy:.4f}", f"{one.loss:.4f}", f"{one.seconds:.1f}")
        return table


def candidates(spec: Spec) -> dict[str, Spec]:
    """The specs that are tried, by their names; the user's own layers, if the spec has any, are among them."""
    found: dict[str, Spec] = {}
    if not spec.model.is_auto:
        found["as given"] = spec
    tables: dict[str, dict[str, Any]] = {ROCKET: recipe.ROCKET_MODEL}
    tables |= {f"rnn {hidden}": {"preset": "rnn", "hidden": hidden} for hidden in (32, 64, 128)}
    tables |= {"conv 32": {"preset": "conv"} | presets.narrow_conv(), "conv 64": {"preset": "conv"}}
    tables |= {name: {"preset": name} for name in ("conv-rnn", "transformer")}
    for name, table in tables.items():
        whole = spec.model_dump(mode="json", exclude_unset=True) | {"model": table}
        try:
            found[name] = Spec.from_table(whole)
        except SpecError:  # such as fixed kernels for tokens
            continue
    return found


def tune(
    spec: Spec,
    records: Sequence[Record],
    options: TuningOptions,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_trial: Callable[[str], None] = lambda _: None,
) -> TuningResult:
    """Searches the layers, and writes `spec.toml` and `trials.json`.

    Args:
        spec: The user's spec. Its keys of `[input]` and `[output]` hold for all candidates.
        records: Labelled sequences.
        options: The options of the search.
        out: An existing folder.
        resume: Whether to keep the trials that are in the folder.
        overwrite: Whether to delete them.
        on_trial: Called with a line about each trial before it begins.

    Raises:
        ConfigurationError: The folder holds a search, the records are too few, or one does not fit the spec.
        CheckpointError: The search in the folder is of another spec, other records or options.
    """
    path = out / TRIALS_FILE
    key = _identity(spec, records, options)
    done = _earlier(path, key, resume=resume, overwrite=overwrite)
    ends = time.monotonic() + options.budget_minutes * 60
    spec = recipe.settled_input(spec, records)
    members = examples(records, spec)
    if len(members) < 2 * options.folds:
        raise ConfigurationError(f"{len(members)} records are too few for {options.folds} folds")
    dealt = choice.folds([stratum(each, spec.output.task) for each in members], options.folds, seed=options.seed)
    folds = [([members[place] for place in first], [members[place] for place in second]) for first, second in dealt]
    tried = candidates(spec)
    standing = [name for name in tried if tried[name].model.kind != "rocket"]
    order = [(name, 0) for name in tried if tried[name].model.kind == "rocket"]
    complete = True
    for steps in STEPS:
        order += [(name, steps) for name in standing]
        for name, length in order:
            if (name, length) in done:
                continue
            if done and time.monotonic() > ends:
                complete = False
                break
            on_trial(f"{name}{f', {length} steps for each fold' if length else ''}: trial {len(done) + 1}")
            done[name, length] = _trial(name, tried[name], length, records, folds, options)
            _write(path, key, done)
        if not complete:
            break
        order = []
        ranked = sorted(standing, key=lambda name: (-done[name, steps].accuracy, done[name, steps].loss))
        standing = ranked[: max((len(ranked) + 1) // 2, 1)]
    best = _best(done)
    note = f"The best of {len({name for name, _ in done})} candidates of `lengthwise tune`: {best.name}."
    files.replace(out / SPEC_FILE, as_toml(tried[best.name], [note]).encode())
    return TuningResult(tuple(done.values()), best, tried[best.name], complete)


def _best(done: dict[tuple[str, int], Trial]) -> Trial:
    """The best of the trials with the most steps that have a rival, and of the fixed kernels."""
    rounds = sorted({steps for _, steps in done if steps}, reverse=True)
    final = [trial for (_, steps), trial in done.items() if not steps or steps == (rounds[0] if rounds else 0)]
    return min(final, key=lambda trial: (-trial.accuracy, trial.loss))


def _trial(
    name: str,
    spec: Spec,
    steps: int,
    records: Sequence[Record],
    folds: Sequence[tuple[list[Example], list[Example]]],
    options: TuningOptions,
) -> Trial:
    began = time.monotonic()
    if spec.model.kind == "rocket":
        scores = rocket.fit(spec, records, TrainingOptions(seed=options.seed)).left_out
    else:
        pairs = []
        for training, held in folds:
            strata = [stratum(example, spec.output.task) for example in training]
            run_options = schedule.without_validation(spec, strata, RecipeOptions(min_steps=steps), seed=options.seed)
            run = TrainingRun.start(spec, training, [], run_options)
            while not run.progress.stops(run_options):
                run.epoch()
            run.model.load_state_dict(run.best)
            pairs += answers(run.model, held, spec)
        scores = objective.scores(pairs, len(spec.output.labels), spec.output.task)
    deviation = (max(scores.accuracy * (1 - scores.accuracy), 0.25 / scores.answers) / scores.answers) ** 0.5
    return Trial(name, steps, scores.accuracy, scores.loss, deviation, time.monotonic() - began)


def _identity(spec: Spec, records: Sequence[Record], options: TuningOptions) -> str:
    digest = hashlib.sha256(repr((spec.model_dump_json(), options.folds, options.seed)).encode())
    for record in records:
        digest.update(repr((record.steps.shape, record.label)).encode())
        digest.update(record.steps.tobytes())
    return digest.hexdigest()


def _earlier(path: Path, key: str, *, resume: bool, overwrite: bool) -> dict[tuple[str, int], Trial]:
    """The trials that a resumed search keeps."""
    if not path.exists():
        if resume:
            raise CheckpointError(f"{path}: there is no search to resume; leave --resume out to start")
        return {}
    if overwrite:
        path.unlink()
        return {}
    if not resume:
        raise ConfigurationError(
            f"{path.parent} holds a search: use another --out, continue with --resume, or delete it with --overwrite"
        )
    try:
        held = json.loads(path.read_text())
        trials = [Trial(**trial) for trial in held["trials"]]
        begun = held["search"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; delete it with --overwrite") from error
    if begun != key:
        raise CheckpointError(
            f"{path} is a search with another spec, other records, folds or seed: use the same, another --out, or "
            "--overwrite"
        )
    return {(trial.name, trial.steps): trial for trial in trials}


def _write(path: Path, key: str, done: dict[tuple[str, int], Trial]) -> None:
    content = {"search": key, "trials": [asdict(trial) for trial in done.values()]}
    files.replace(path, (json.dumps(content, indent=2) + "\n").encode())
