"""Every operator that the exporter takes, held against torch on raw values, in the graph and in the mended graph."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn
from torch.nn import functional

from lengthwise.runtime.manifest import GraphNames, StepInput
from lengthwise.verification.random_sequences import KINDS, raw
from lengthwise_export.errors import ExportError
from lengthwise_export.mending.mend import mend
from lengthwise_export.tracing.call_signature import CallSignature
from lengthwise_export.tracing.graph import build
from tests.support.integer_graphs import opened
from tests.support.long import long_but

RTOL = 2e-5
ATOL = 3e-6

SIZES = (0.0, 1e-40, 1e-38, 1e-30, 1e-20, 1e-12, 1e-8, 1e-3, 0.1, 1 / 3, 0.5, 0.9999999, 1.0, 1.5, 2.0, 2.5, 3.0, 7.0)
SIZES += (10.0, 17.0, 20.5, 30.0, 50.0, 65.0, 80.0, 87.0, 88.0, 89.0, 103.0, 104.0, 150.0, 1000.0, 4321.25, 1e5)
SIZES += (16777217.0, 2.0**31, 1e10, 1e15, 1e19)
NUMBERS = np.array([*SIZES, *(-size for size in SIZES)], dtype=np.float32)
"""Zeros of both signs, denormal, tiny, ordinary, large and huge numbers."""

Operator = Callable[..., Tensor]


_entropy_of_logits = functional.binary_cross_entropy_with_logits


def _capped(x: Tensor, most: float = 1e6) -> Tensor:
    return x.clamp(-most, most)


def _whole(x: Tensor) -> Tensor:
    return _capped(x).long()


def _named(module: Any, names: str) -> dict[str, Operator]:
    return {name: getattr(module, name) for name in names.split()}


OF_ONE: Mapping[str, Operator] = {
    **_named(
        torch,
        "abs acos acosh asin asinh atan atanh ceil cos cosh deg2rad erf erfc exp exp2 expm1 floor frac isfinite isinf "
        "isnan log log10 log1p log2 logical_not logit nan_to_num neg positive rad2deg reciprocal relu round rsqrt sgn "
        "sigmoid sign signbit sin sinc sinh sqrt square tanh trunc selu celu isneginf isposinf",
    ),
    **_named(
        functional,
        "elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish relu6 silu softplus softshrink "
        "softsign tanhshrink",
    ),
    **_named(torch.special, "entr erfcx log_ndtr ndtr"),
    "log of sigmoid": lambda x: x.sigmoid().log(),
    "log of sigmoid and little": lambda x: (x.sigmoid() + 1e-8).log(),
    "one over sigmoid": lambda x: 1 / x.sigmoid(),
    "logit of sigmoid": lambda x: x.sigmoid().logit(),
    "log of a little more": lambda x: (x.abs() + 1e-12).log(),
    "quotient of a little more": lambda x: x / (x.abs() + 1e-8),
    "nearly itself": lambda x: x * (1 + 1e-6) - x,
    "symmetric log": lambda x: x.sign() * x.abs().log1p(),
    "inverse softplus": lambda x: x.abs().clamp(1e-20, 80.0).expm1().log(),
    "power of 3": lambda x: x**3,
    "power of -1": lambda x: x**-1,
    "power of a half": lambda x: x.abs() ** 0.5,
    "powers of 2": lambda x: 2.0 ** x.clamp(-120, 120),
    "remainder of 3": lambda x: x % 3.0,
    "remainder of -0.1": lambda x: _capped(x, 1e3) % -0.1,
    "remainder of 5": lambda x: 5.0 % x,
    "fmod of 3": lambda x: x.fmod(3.0),
    "floor divided by 0.1": lambda x: _capped(x, 1e3) // 0.1,
    "5 floor divided": lambda x: 5.0 // x.clamp(min=1e-3),
    "truncated quotient": lambda x: torch.div(x, 3.0, rounding_mode="trunc"),
    "floor of integers": lambda x: _whole(x) // 3,
    "floor of integers by -3": lambda x: _whole(x) // -3,
    "remainder of integers": lambda x: _whole(x) % -3,
    "truncated integers": lambda x: torch.div(_whole(x), 3, rounding_mode="trunc"),
    "rounded to one decimal": lambda x: _capped(x).round(decimals=1),
    "logit with eps": lambda x: x.logit(1e-6),
    "softplus with beta": lambda x: functional.softplus(x, beta=0.1, threshold=5),
    "gelu by tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "threshold": lambda x: functional.threshold(x, 0.1, 20.0),
    "clamped": lambda x: x.clamp(min=1e-9),
    "as integers": _whole,
    "as doubles": lambda x: (x.double() ** 2).sqrt(),
    "as bools": lambda x: x.bool(),
    "buckets": lambda x: torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0, 100.0])),
    "logaddexp of 0": lambda x: torch.logaddexp(x, torch.zeros(())),
    "binary cross entropy of logits": lambda x: _entropy_of_logits(x, (x > 0).float(), reduction="none"),
    "weighted cross entropy of logits": lambda x: _entropy_of_logits(
        x, (x > 0).float(), pos_weight=torch.tensor(2.0), reduction="none"
    ),
    "binary cross entropy": lambda x: functional.binary_cross_entropy(x.sigmoid(), (x > 0).float(), reduction="none"),
}

OF_TWO: Mapping[str, Operator] = {
    **_named(
        torch,
        "add atan2 div eq float_power floor_divide fmod ge gt heaviside isclose ldexp le logaddexp logaddexp2 "
        "logical_and logical_or logical_xor lt maximum minimum mul ne remainder sub xlogy",
    ),
    "xlog1py": torch.special.xlog1py,
    "power": lambda x, y: x.abs() ** y,
    "angle from the sides": lambda x, y: torch.atan2(x.sin(), y.cos()),
    "lerp": lambda x, y: torch.lerp(x, y, 0.3),
    "where": lambda x, y: torch.where(x > y, x, 2 * y),
    "huber": lambda x, y: functional.huber_loss(x, y, reduction="none"),
    "smooth l1": lambda x, y: functional.smooth_l1_loss(x, y, reduction="none"),
}
_BEYOND = {"float_power", "power", "cosh", "sinh", "remainder of 5"}
"""Operators for which torch overflows, or has no number, where the graph still has one."""

OVER_STEPS: Mapping[str, Operator] = {
    "sum": lambda x: x.sum(1),
    "mean": lambda x: x.mean(1),
    "deviation": lambda x: x.std(1),
    "variance": lambda x: x.var(1, correction=0),
    "largest": lambda x: x.amax(1),
    "smallest": lambda x: x.amin(1),
    "place of the largest": lambda x: x.argmax(1).float(),
    "place of the smallest": lambda x: x.argmin(1).float(),
    "step of the largest": lambda x: x.gather(1, x.argmax(1, keepdim=True))[:, 0],
    "norm": lambda x: x.norm(dim=1),
    "norm of order 1": lambda x: x.norm(p=1, dim=1),
    "norm of order 3": lambda x: x.norm(p=3, dim=1),
    "norm of order inf": lambda x: x.norm(p=math.inf, dim=1),
    "logsumexp": lambda x: x.logsumexp(1),
    "last of logcumsumexp": lambda x: x.logcumsumexp(1)[:, -1],
    "mean of logcumsumexp": lambda x: x.logcumsumexp(1).mean(1),
    "logcumsumexp of the others": lambda x: x.masked_fill(x < 0, -math.inf).logcumsumexp(1).clamp(min=-1e4).mean(1),
    "softmax": lambda x: (x.softmax(1) * x).sum(1),
    "log softmax": lambda x: x.log_softmax(1).amax(1),
    "entropy": lambda x: torch.special.entr(x.softmax(1)).sum(1),
    "normalised": lambda x: functional.normalize(x, dim=1).amax(1),
    "last of the sums": lambda x: x.cumsum(1)[:, -1],
    "median": lambda x: x.median(1).values,
    "second smallest": lambda x: x.kthvalue(2, 1).values,
    "quantile": lambda x: x.quantile(0.3, 1),
    "second largest": lambda x: x.topk(2, 1).values[:, 1],
    "sorted": lambda x: x.sort(1).values[:, 1],
    "how many": lambda x: x.count_nonzero(1).float(),
    "any": lambda x: x.any(1).float(),
    "all": lambda x: x.all(1).float(),
    "differences": lambda x: x.diff(dim=1).abs().mean(1),
    "sign changes": lambda x: (x[:, 1:].sign() != x[:, :-1].sign()).float().sum(1),
    "turned": lambda x: x.flip(1)[:, 0],
    "rolled": lambda x: x.roll(1, 1)[:, 0],
    "trapezoid": lambda x: torch.trapezoid(x, dim=1),
    "angles": lambda x: torch.atan2(x, x.flip(2)).mean(1),
    "log sigmoid": lambda x: functional.logsigmoid(x).mean(1),
    "remainders": lambda x: (x % 3.0).amin(1),
    "log of a little more": lambda x: (x.abs() + 1e-12).log().mean(1),
    "layer norm": lambda x: functional.layer_norm(x, (3,)).mean(1),
    "rms norm": lambda x: functional.rms_norm(x, (3,)).mean(1),
    "attention": lambda x: functional.scaled_dot_product_attention(x, x, x).mean(1),
}


class Operators(nn.Module):
    """The answers of operators, one behind the other."""

    def __init__(self, operators: Mapping[str, Operator], arguments: int) -> None:
        super().__init__()
        self.operators, self.arguments = operators, arguments

    def forward(self, x: Tensor) -> Tensor:
        """`[rows, width, operators]`, or `[rows, operators * features]` of those over the steps."""
        if self.arguments == 0:
            return torch.cat([operator(x) for operator in self.operators.values()], dim=1)
        given = [x[..., place] for place in range(self.arguments)]
        return torch.stack([operator(*given).float() for operator in self.operators.values()], dim=-1)


PARTS = 4
"""Operators in as many graphs: a graph of all takes ten seconds, and every run tries one part."""


@cache
def _graph(arguments: int, part: int = 0, parts: int = 1) -> tuple[Operators, ModelProto]:
    chosen = dict(itertools.islice((OVER_STEPS, OF_ONE, OF_TWO)[arguments].items(), part, None, parts))
    module = Operators(chosen, arguments).eval()
    steps = StepInput(kind="values", features=arguments or 3)
    return module, build(module, steps, name="m", labels=["a"], signature=CallSignature(second="none"))


def _answers(graph: ModelProto, **given: NDArray[np.generic]) -> NDArray[np.float32]:
    session = opened(graph)
    return session.run(["logits"], given)[0]


@cache
def _pointwise(arguments: int, part: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Arguments `[cases, arguments]`, torch's answers and the graph's `[cases, operators]`."""
    values = np.array(list(itertools.product(NUMBERS, repeat=arguments)), dtype=np.float32)
    module, graph = _graph(arguments, part, PARTS)
    with torch.no_grad():
        expected = module(torch.from_numpy(values[None])).numpy()[0]
    return values, expected, _answers(graph, values=values[None])[0]


CASES = [(arguments, *each) for arguments, table in ((1, OF_ONE), (2, OF_TWO)) for each in enumerate(table)]


@pytest.mark.sampled(108)
@pytest.mark.parametrize(
    "case", long_but(CASES, lambda case: case[1] % PARTS == 0), ids=lambda case: f"{case[0]}-{case[2]}"
)
def test_an_operator_answers_as_torch_does(case: tuple[int, int, str]) -> None:
    arguments, place, name = case
    values, expected, actual = _pointwise(arguments, place % PARTS)
    mine, its = actual[:, place // PARTS], expected[:, place // PARTS]
    kept = np.isfinite(its) if name in _BEYOND else np.ones(len(its), dtype=bool)
    close = np.isclose(mine, its, rtol=RTOL, atol=ATOL, equal_nan=True) | ~kept
    assert close.all(), f"{values[~close][0]} gives {mine[~close][0]}, in torch {its[~close][0]}"


def _sequences() -> list[NDArray[np.float32]]:
    random = np.random.default_rng(0)
    drawn = [raw(kind, (length, 3), random) for kind in KINDS for length in (3, 8, 29) if kind != "a constant"]
    return [*drawn, np.linspace(0, 200, 90, dtype=np.float32).reshape(30, 3)]


@cache
def _over_steps() -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """Torch's answer to each sequence alone, the graph's, and the mended graph's in one padded batch."""
    module, graph = _graph(0)
    mended = mend(graph, GraphNames(lengths="lengths"), StepInput(kind="values", features=3), max_length=64)
    sequences = _sequences()
    padded = np.random.default_rng(1).normal(scale=300, size=(len(sequences), 64, 3)).astype(np.float32)
    for row, steps in zip(padded, sequences, strict=True):
        row[: len(steps)] = steps
    lengths = np.array([len(steps) for steps in sequences], dtype=np.int32)
    together = [*_answers(mended.graph, values=padded, lengths=lengths)]
    with torch.no_grad():
        expected = [module(torch.from_numpy(steps[None])).numpy()[0] for steps in sequences]
    return expected, [_answers(graph, values=steps[None])[0] for steps in sequences], together


@pytest.mark.sampled(85)
@pytest.mark.parametrize("mended", [False, True], ids=["graph", "mended graph"])
@pytest.mark.parametrize("name", OVER_STEPS)
def test_an_operator_over_the_steps_answers_as_torch_does_alone(name: str, mended: bool) -> None:
    expected, alone, together = _over_steps()
    place = 3 * [*OVER_STEPS].index(name)
    for mine, its, steps in zip(together if mended else alone, expected, _sequences(), strict=True):
        size = max(1.0, float(np.abs(steps).max()) * 1e-2)
        part = slice(place, place + 3)
        np.testing.assert_allclose(mine[part], its[part], rtol=RTOL, atol=ATOL * size)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["erfinv", "lgamma", "digamma", "i0"])
def test_an_operator_without_a_true_form_is_refused(name: str) -> None:
    module = Operators({name: getattr(torch, name)}, 1).eval()
    steps = StepInput(kind="values", features=1)
    with pytest.raises(ExportError):
        build(module, steps, name="m", labels=["a"], signature=CallSignature(second="none"))
