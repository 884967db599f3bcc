"""The coefficients of the recurrent kernels' tanh: `python -m benchmarks.tanh`.

tanh(x) is taken as x P(x^2) / Q(x^2) with two polynomials of one degree and Q(0) = 1, of least largest relative error
on [0, bound]. In float32 the degree is 4 and the bound 9: past 9 the nearest float32 to tanh is 1. At int8 they are 3
and 8: a state is rounded to 1/127 anyway. The polynomials are found by Lawson's method (Lawson, 1961): least squares,
again and again, with weights that grow where the error is largest; the equation is made linear by the last Q.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

_RUNTIME = Path(__file__).parent.parent / "service" / "lengthwise" / "runtime"


@dataclass(frozen=True, slots=True)
class TanhForm:
    """One set of kernels.

    Attributes:
        header: Their source, with the coefficients.
        degree: Of both polynomials.
        bound: The largest x.
    """

    header: Path
    degree: int
    bound: float


FLOAT32 = TanhForm(_RUNTIME / "_recurrent_cells.h", 4, 9.0)
INT8 = TanhForm(_RUNTIME / "_integer_cells.h", 3, 8.0)
_POINTS = 4000
_ROUNDS = 4000
_ROUNDED = 1e-6  # float32 has 24 bits, and the last of them is the method's, not the coefficient's


def fitted(form: TanhForm) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """The coefficients of P and of Q, by rising power of x^2, and the largest relative error."""
    x = form.bound * (1 - np.cos(np.linspace(0, np.pi, _POINTS + 1)[1:])) / 2
    square = (x / form.bound) ** 2  # in 0..1, for the sake of the equations' condition
    wanted = np.tanh(x) / x
    powers = np.vander(square, form.degree + 1, increasing=True)
    equations = np.hstack([powers, -wanted[:, None] * powers[:, 1:]])
    weights, last_q = np.ones_like(x), np.ones_like(x)
    least, best = np.inf, np.zeros(2 * form.degree + 1)
    for _ in range(_ROUNDS):
        scale = np.sqrt(weights) / (wanted * last_q)
        found = np.linalg.lstsq(equations * scale[:, None], wanted * scale, rcond=None)[0]
        last_q = 1 + powers[:, 1:] @ found[form.degree + 1 :]
        errors = np.abs(powers @ found[: form.degree + 1] / last_q / wanted - 1)
        if errors.max() < least:
            least, best = float(errors.max()), found
        weights = weights * (errors / errors.max() + 1e-3)
        weights /= weights.sum()
    units = form.bound ** (2.0 * np.arange(form.degree + 1))
    return best[: form.degree + 1] / units, np.concatenate([[1.0], best[form.degree + 1 :]]) / units, least


def in_header(form: TanhForm) -> tuple[list[float], list[float]]:
    """The coefficients of P and of Q that the kernels have, by rising power."""
    text = form.header.read_text(encoding="utf-8")
    body = text[text.index("(tanh)(Vector x, Vector *divisor)\n{") :]
    found = {}
    for name, begins, ends in (("p", "Vector p =", "Vector q ="), ("q", "Vector q =", "return")):
        part = body[body.index(begins) : body.index(ends)]
        found[name] = [float(number) for number in re.findall(r"([0-9.]+(?:e-?\d+)?)f", part)][::-1]
    return found["p"], found["q"]


@click.command()
def main() -> None:
    """Computes the coefficients, and compares those of the kernels with them."""
    for form in (FLOAT32, INT8):
        *computed, error = fitted(form)
        click.echo(f"{form.header.name}: largest relative error before rounding {error:.2g}")
        for name, ours, used in zip(("P", "Q"), computed, in_header(form), strict=True):
            for power, (one, other) in enumerate(zip(ours, used, strict=True)):
                click.echo(f"{name}[{power}] {one: .9e}  in the kernels {other: .9e}")


if __name__ == "__main__":
    main()
