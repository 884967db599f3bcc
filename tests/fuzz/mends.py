"""Fuzzes the mend: random chains of operators, mended, against the original alone: `python -m tests.fuzz.mends`.

Each chain is mended or refused. The mended graph answers sequences in batches, padded with zeros, with a number and
with NaN; each answer has to be that of the original for the sequence alone. Exit code 1 if one is not: the chain is
then made as short as it can be and shown, with the command that repeats it.
"""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final, Literal

import click
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from lengthwise.runtime.manifest import GraphNames, StepInput
from lengthwise_export.errors import UnmendableError
from lengthwise_export.mending.mend import mend
from tests.fuzz.chains import CLASSES, FEATURES, Recipe, draw

LENGTHS: Final = (*range(1, 26), 33, 47, 64)
LONGEST: Final = 128
_ROUNDING_AT_MOST: Final = 4.0
TOLERANCE: Final = 1e-4
"""Allowed difference, in units of max(1, largest value): chains may amplify rounding."""
_PADDING: Final = (0.0, np.nan, 3.0)
_FEWEST: Final = 8
"""A chain that the original answers at fewer of the lengths is left out."""

Result = Literal["equal", "refused", "left out", "wrong", "does not run", "internal error"]
BAD: Final = ("wrong", "does not run", "internal error")
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of a chain that was tried."""

    result: Result
    why: str = ""  # if it was refused or is bad


def tried(recipe: Recipe, seed: int, answered: Callable[[], None] = lambda: None) -> Tried:
    """Mends a chain and compares it with the original; `answered` is called between both."""
    graph = recipe.build()
    alone = _answers_alone(graph, seed)
    answered()
    if len(alone) < _FEWEST:
        return Tried("left out", "the original answers too few lengths")
    names, where = GraphNames(sequences="x", logits="y", channels_first=True), ""
    stage: Result = "internal error"
    try:
        mended = mend(graph, names, StepInput(features=FEATURES), max_length=LONGEST)
        stage = "does not run"
        session = _session(mended.graph)
        accepted = [pair for pair in alone if len(pair[0]) >= mended.min_length]
        scale = max(1.0, *(float(np.abs(answer).max()) for _, answer in alone))
        for batch, members in _batches(accepted, np.random.default_rng(seed)):
            lengths = np.array([len(steps) for steps, _ in members], np.int32)
            where = f"lengths {lengths.tolist()}, width {batch.shape[2]}: "
            (answers,) = session.run(None, {"x": batch, "lengths": lengths})
            for (steps, right), answer in zip(members, answers, strict=True):
                gap = float(np.abs(answer - right).max()) / scale
                if not (gap <= TOLERANCE or gap <= _ROUNDING_AT_MOST * _moved_by_rounding(graph, steps) / scale):
                    return Tried("wrong", f"by {gap:.3g} at {len(steps)} steps in a width of {batch.shape[2]}")
    except UnmendableError as error:
        return Tried("refused", error.reason)
    except Exception as error:  # whatever it is, it is a finding
        return Tried(stage, f"{where}{error!r}")
    return Tried("equal")


def _session(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _answers_alone(graph: onnx.ModelProto, seed: int) -> list[tuple[Array, Array]]:
    """Sequences `[length, features]` that the original answers, and its answers."""
    try:
        session = _session(graph)
    except Exception:  # a chain that is no graph
        return []
    random, found = np.random.default_rng(seed), []
    for length in LENGTHS:
        steps = random.normal(size=(length, FEATURES)).astype(np.float32)
        try:
            (answer,) = session.run(None, {"x": steps.T[None]})
        except Exception:  # too short for it
            continue
        if answer.shape == (1, CLASSES) and np.isfinite(answer).all():
            found.append((steps, answer[0]))
    return found


def _moved_by_rounding(graph: onnx.ModelProto, steps: Array) -> float:
    """How far the original's answer moves with the last bits of its input: ArgMax and tests are no smooth functions."""
    session, random = _session(graph), np.random.default_rng(0)
    near = [steps, *(steps * (1 + random.choice([-1, 1], size=steps.shape) * 2.0**-23) for _ in range(8))]
    answers = [session.run(None, {"x": each.astype(np.float32).T[None]})[0] for each in near]
    return max(float(np.abs(answer - answers[0]).max()) for answer in answers)


def _batches(
    pairs: Sequence[tuple[Array, Array]], random: np.random.Generator
) -> Iterator[tuple[Array, list[tuple[Array, Array]]]]:
    """All sequences in batches of several sizes, padded in several ways: `[rows, features, width]`."""
    left, turn = [pairs[place] for place in random.permutation(len(pairs))], 0
    while left:
        count = int(random.choice([1, 2, 5, 9]))
        members, left = left[:count], left[count:]
        width = max(len(steps) for steps, _ in members) + int(random.choice([0, 1, 2, 5, 20]))
        batch = np.full((len(members), FEATURES, width), _PADDING[turn % len(_PADDING)], np.float32)
        for row, (steps, _) in zip(batch, members, strict=True):
            row[:, : len(steps)] = steps.T
        yield batch, members
        turn += 1


class Worker:
    """A process that tries chains, because onnxruntime ends the process at some empty tensors."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._start()

    def _start(self) -> None:
        self._pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def tried(self, recipe: Recipe, seed: int) -> Tried:
        """What `tried` gives for a chain."""
        self._pipe.send((recipe, seed))
        answered = False
        try:
            while not isinstance(said := self._pipe.recv(), Tried):
                answered = True
            return said
        except EOFError:
            self._process.join()
            self._start()
            if answered:
                return Tried("does not run", "the mended graph ends the process")
            return Tried("left out", "the original ends the process")

    def shortest(self, recipe: Recipe, seed: int, found: Tried) -> tuple[Recipe, Tried]:
        """The shortest chain that is as bad, without links that it is bad without."""
        for each in recipe.shorter():
            again = self.tried(each, seed)
            if again.result == found.result:
                return self.shortest(each, seed, again)
        return recipe, found

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join()


def _work(pipe: Connection) -> None:
    """Tries what comes through the pipe until it is closed."""
    onnxruntime.set_default_logger_severity(4)
    warnings.simplefilter("ignore")
    with contextlib.suppress(EOFError):
        while True:
            recipe, seed = pipe.recv()
            pipe.send(tried(recipe, seed, lambda: pipe.send("the original has answered")))


@click.command()
@click.option("--chains", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the first chain; then upwards.")
@click.option("--links", type=click.IntRange(1), default=5, show_default=True, help="At most, in one chain.")
def main(chains: int, seed: int, links: int) -> None:
    """Fuzzes the mend."""
    console, worker, bad = Console(stderr=True), Worker(), 0
    counts: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    with console.status("") as status:
        for number in range(seed, seed + chains):
            status.update(f"chain {number - seed} of {chains}: {bad} bad")
            recipe = draw(number, links)
            found = worker.tried(recipe, number)
            counts[found.result] += 1
            if found.result in ("refused", "left out"):
                reasons[f"{found.result}: {found.why[:100]}"] += 1
            if found.result in BAD:
                bad += 1
                recipe, found = worker.shortest(recipe, number, found)
                console.print(f"{found.result}: {recipe}\n  {found.why[:400]}", markup=False, style="red")
                console.print(f"  python -m tests.fuzz.mends --chains 1 --links {links} --seed {number}", markup=False)
    worker.close()
    table = Table("result", "chains")
    for result, count in counts.most_common():
        table.add_row(result, f"{count:,}")
    Console().print(table)
    for reason, count in reasons.most_common(12):
        Console().print(f"{count:5} {reason}", markup=False)
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
