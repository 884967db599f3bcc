"""The coefficients of the recurrent kernels' tanh: `python -m benchmarks.tanh`.

tanh(x) is taken as x P(x^2) / Q(x^2) with two polynomials of degree 4 and Q(0) = 1, of least largest relative error on
[0, 9]: past 9 the nearest float32 to tanh is 1. They are found by Lawson's method (Lawson, 1961): least squares, again
and again, with weights that grow where the error is largest; the equation is made linear by the last Q.
"""

from __future__ import annotations

import re
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

HEADER = Path(__file__).parent.parent / "service" / "lengthwise" / "runtime" / "_recurrent_cells.h"
BOUND = 9.0
_DEGREE = 4
_POINTS = 4000
_ROUNDS = 4000
_ROUNDED = 1e-6  # float32 has 24 bits, and the last of them is the method's, not the coefficient's


def fitted() -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """The coefficients of P and of Q, by rising power of x^2, and the largest relative error."""
    x = BOUND * (1 - np.cos(np.linspace(0, np.pi, _POINTS + 1)[1:])) / 2
    square = (x / BOUND) ** 2  # in 0..1, for the sake of the equations' condition
    wanted = np.tanh(x) / x
    powers = np.vander(square, _DEGREE + 1, increasing=True)
    equations = np.hstack([powers, -wanted[:, None] * powers[:, 1:]])
    weights, last_q = np.ones_like(x), np.ones_like(x)
    least, best = np.inf, np.zeros(2 * _DEGREE + 1)
    for _ in range(_ROUNDS):
        scale = np.sqrt(weights) / (wanted * last_q)
        found = np.linalg.lstsq(equations * scale[:, None], wanted * scale, rcond=None)[0]
        last_q = 1 + powers[:, 1:] @ found[_DEGREE + 1 :]
        errors = np.abs(powers @ found[: _DEGREE + 1] / last_q / wanted - 1)
        if errors.max() < least:
            least, best = float(errors.max()), found
        weights = weights * (errors / errors.max() + 1e-3)
        weights /= weights.sum()
    units = BOUND ** (2.0 * np.arange(_DEGREE + 1))
    return best[: _DEGREE + 1] / units, np.concatenate([[1.0], best[_DEGREE + 1 :]]) / units, least


def in_header() -> tuple[list[float], list[float]]:
    """The coefficients of P and of Q that the kernels have, by rising power."""
    text = HEADER.read_text(encoding="utf-8")
    body = text[text.index("(tanh)(Vector x, Vector *divisor)") :]
    found = {}
    for name, begins, ends in (("p", "Vector p =", "Vector q ="), ("q", "Vector q =", "return")):
        part = body[body.index(begins) : body.index(ends)]
        found[name] = [float(number) for number in re.findall(r"([0-9.]+(?:e-?\d+)?)f", part)][::-1]
    return found["p"], found["q"]


@click.command()
def main() -> None:
    """Computes the coefficients, and compares those of the kernels with them."""
    for name, computed, used in zip(("P", "Q"), fitted()[:2], in_header(), strict=True):
        for power, (one, other) in enumerate(zip(computed, used, strict=True)):
            click.echo(f"{name}[{power}] {one: .9e}  in the kernels {other: .9e}")
    click.echo(f"largest relative error before rounding: {fitted()[2]:.2g}")


if __name__ == "__main__":
    main()
