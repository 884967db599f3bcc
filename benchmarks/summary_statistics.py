"""Missing values that tell the label: `train` beside a linear model of summary statistics.

`python -m benchmarks.summary_statistics` makes sequences of 20 to 60 steps with four features of noise that follows
itself. Three labels differ a little in the level of two features. A fifth of all values is missing at random; and not
at random, large values of one feature are missing more often, and another one's sensor fails for stretches whose number
and length depend on the label. Nothing else tells the labels apart.

The other model is a logistic regression on the mean, deviation, minimum, maximum and share of missing values of each
feature, and the length. Both are trained on 300 sequences and answer 600.
"""

from __future__ import annotations

import statistics

import click
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import lengthwise_export
from benchmarks import machine, output, pages

PAGE = pages.RESULTS / "summary_statistics.md"
Sequences = list[NDArray[np.float32]]


def made(count: int, seed: int) -> tuple[Sequences, list[str]]:
    """Sequences `[length, 4]` with NaN, and their labels."""
    random = np.random.default_rng(seed)
    sequences, labels = [], []
    for index in range(count):
        label, length = index % 3, int(random.integers(20, 61))
        steps = random.normal(size=(length, 4))
        for step in range(1, length):
            steps[step] += 0.7 * steps[step - 1]
        steps[:, :2] += 0.5 * (label - 1)
        missing = random.random(steps.shape) < 0.2
        missing[:, 1] |= (steps[:, 1] > 1) & (random.random(length) < 0.6)
        for _ in range(int(random.poisson(1 + label))):
            start = int(random.integers(length))
            missing[start : start + 2 + 2 * (2 - label), 2] = True
        steps[missing] = np.nan
        sequences.append(steps.astype(np.float32))
        labels.append("abc"[label])
    return sequences, labels


def summary(sequences: Sequences) -> NDArray[np.float64]:
    """`[sequences, 21]`: statistics of what is present, the shares of what is not, and the length."""
    rows = []
    for steps in sequences:
        kinds = (np.nanmean, np.nanstd, np.nanmin, np.nanmax, lambda each, axis: np.isnan(each).mean(axis=axis))
        rows.append(np.concatenate([*(np.nan_to_num(kind(steps, axis=0)) for kind in kinds), [len(steps)]]))
    return np.array(rows, dtype=np.float64)


def accuracies(seed: int) -> tuple[float, float]:
    """The accuracy of what `train` makes, and of the regression."""
    (sequences, labels), (others, truth) = made(300, seed), made(600, seed + 1000)
    spec = {"model": {"preset": "auto"}}
    # one minute: what takes seconds, without neural networks
    run = lengthwise_export.train(spec, sequences, labels, test=(others, truth), progress=None)
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(summary(sequences), labels)
    return run.report["test"]["accuracy"], float(regression.score(summary(others), truth))


@click.command()
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True, help="Data sets.")
def main(seeds: int) -> None:
    """Measures both on several data sets, and writes benchmarks/results/summary_statistics.md."""
    pages.require_clean(PAGE)
    facts = machine.facts()
    found = [accuracies(seed) for seed in range(seeds)]
    lines = [
        (str(seed), f"{own:.3f}", f"{other:.3f}", f"{own - other:+.3f}") for seed, (own, other) in enumerate(found)
    ]
    means = [statistics.mean(column) for column in zip(*found, strict=True)]
    lines.append(("mean", f"{means[0]:.3f}", f"{means[1]:.3f}", f"{means[0] - means[1]:+.3f}"))
    heads = ("data set", "`train`, auto", "logistic regression", "difference")
    how = "`python -m benchmarks.summary_statistics` says how the sequences are made: accuracy on 600 of them."
    text = pages.page(facts, "Missing values that tell the label", how, pages.table(heads, lines))
    output.tell(text, out=PAGE)


if __name__ == "__main__":
    main()
