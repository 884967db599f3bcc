"""By which length rows with two sequences are sorted into batches with least padding. `python -m benchmarks.pairs`.

Both sequences have lognormal lengths of median 50 and sigma 0.7, and their logarithms a correlation. A batch is padded
to the longest of its first sequences, and to the longest of its second ones. What is shown is padded steps over valid
ones, for the orders that one number of a row gives: `padding.longest_of` is the service's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import click
import numpy as np
from numpy.typing import NDArray

Lengths = NDArray[np.int64]  # `[2, rows]`

ORDERS: Final[Mapping[str, Callable[[Lengths], NDArray[np.int64]]]] = {
    "the longest": lambda lengths: lengths.max(axis=0),
    "the sum": lambda lengths: lengths.sum(axis=0),
    "the first": lambda lengths: lengths[0],
    "arrival": lambda lengths: np.zeros(lengths.shape[1], dtype=np.int64),
}
_TURNS: Final = 50


def drawn(rows: int, correlation: float, random: np.random.Generator) -> Lengths:
    """The lengths of two sequences of each row, `[2, rows]`."""
    normal = random.standard_normal((2, rows))
    normal[1] = correlation * normal[0] + np.sqrt(1 - correlation**2) * normal[1]
    return np.maximum(1, np.round(50 * np.exp(0.7 * normal))).astype(np.int64)


def padded_over_valid(lengths: Lengths, order: Callable[[Lengths], NDArray[np.int64]], batch_rows: int) -> float:
    """Padded steps over valid steps, where rows are sorted by an order and cut into batches."""
    by_order = lengths[:, np.argsort(order(lengths), kind="stable")]
    parts = np.split(by_order, range(batch_rows, lengths.shape[1], batch_rows), axis=1)
    padded = sum(int(part.shape[1] * part.max(axis=1).sum()) for part in parts)
    return padded / int(lengths.sum())


@click.command()
def main() -> None:
    """Prints the padding of each order, for some queues and batches."""
    random = np.random.default_rng(0)
    click.echo(f"{'correlation':>12}{'waiting':>9}{'rows':>6}" + "".join(f"{name:>13}" for name in ORDERS))
    for correlation in (0.0, 0.5, 0.9):
        for waiting, rows in ((64, 16), (256, 32), (1024, 64)):
            queues = [drawn(waiting, correlation, random) for _ in range(_TURNS)]
            figures = [
                np.mean([padded_over_valid(lengths, order, rows) for lengths in queues]) for order in ORDERS.values()
            ]
            click.echo(f"{correlation:>12}{waiting:>9}{rows:>6}" + "".join(f"{figure:>13.2f}" for figure in figures))


if __name__ == "__main__":
    main()
