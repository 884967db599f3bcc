"""Raw values: `check`, mends and promises hold for values of size 1,000, for flat sequences and for outliers."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lengthwise
import lengthwise_export
from lengthwise_export import PublishedModel
from tests.gallery.torch_models import network


class Filled(nn.Module):
    """Hides padding by a number in front of a maximum (`amax`) or a softmax (`softmax`)."""

    def __init__(self, fill: float, pooling: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fill, self.pooling = fill, pooling
        self.score, self.head = nn.Linear(3, 1), nn.Linear(3, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        padding = (torch.arange(x.shape[1]) >= lengths[:, None])[..., None]
        steps = x.masked_fill(padding, 0.0)
        if self.pooling == "amax":
            return self.head(x.masked_fill(padding, self.fill).amax(1) / 100).tanh()
        weights = self.score(x).masked_fill(padding, self.fill).softmax(1)
        return self.head((weights * steps).sum(1) / 100).tanh()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("pooling", ["amax", "softmax"])
@pytest.mark.parametrize(("fill", "leaks"), [(-10.0, True), (-100.0, True), (-3e38, False)])
def test_a_fill_that_hides_only_from_small_values_leaks(fill: float, pooling: str, leaks: bool) -> None:
    report = lengthwise_export.check(Filled(fill, pooling).eval(), features=3)
    assert (report.verdict == "leak") == leaks, report.reason
    if leaks:
        assert report.leaks[0].operator == pooling


class Additive(Filled):
    """Hides padding by a number that is added to the scores of torch's attention, of any size or `bounded`."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        padding = torch.arange(x.shape[1]) >= lengths[:, None]
        mask = (padding[:, None].float() * self.fill).expand(-1, x.shape[1], -1)
        steps = x.masked_fill(padding[..., None], 0.0)
        keys = nn.functional.layer_norm(steps, (3,)) if self.pooling == "bounded" else steps
        attended = nn.functional.scaled_dot_product_attention(-keys, keys, steps, attn_mask=mask)
        return self.head(attended[:, 0].tanh())


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("module", "number"),
    [
        (Filled(-1e4, "softmax"), "-10000"),
        (Filled(-65504.0, "softmax"), "-65504"),
        (Filled(-1e5, "amax"), "-100000"),
        (Additive(-1e7, "unbounded"), "-1e+07"),
    ],
)
def test_a_fill_that_large_values_get_past_is_a_warning_that_names_it(module: Filled, number: str) -> None:
    report = lengthwise_export.check(module.eval(), features=3)
    assert report.verdict == "warning", report.reason
    assert number in report.reason
    leak = report.leaks[0]
    assert number in leak.cause.why
    assert leak.location is not None
    assert (report.exit_code(), report.exit_code(strict=True)) == (0, 1)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "module",
    [Filled(-1e9, "softmax"), Filled(float("-inf"), "softmax"), Filled(-3.4e38, "amax"), Additive(-1e4, "bounded")],
)
def test_a_fill_that_no_value_gets_past_is_no_warning(module: Filled) -> None:
    assert lengthwise_export.check(module.eval(), features=3).verdict == "sound"


@pytest.mark.long
def test_the_fill_of_a_graph_is_named_too(tmp_path: Path) -> None:
    published = lengthwise_export.export(Filled(-1e4, "softmax").eval(), tmp_path / "model", features=3)
    assert any("-10000" in str(notice) for notice in published.notices)
    report = lengthwise_export.check(published.directory)
    assert report.verdict == "warning"
    assert "-10000" in report.leaks[0].cause.why


@network(0, lambda: {"norm": nn.InstanceNorm1d(3), "gru": nn.GRU(3, 8, batch_first=True), "head": nn.Linear(8, 2)})
def normalised(self, x: Tensor) -> Tensor:
    """A GRU behind a normalisation over the steps, which is ill-conditioned for a flat sequence."""
    return self.head(self.gru(self.norm(x.transpose(1, 2)).transpose(1, 2))[1][-1])


@network(0, lambda: {"head": nn.Linear(3, 2)})
def standardised(self, x: Tensor, lengths: Tensor) -> Tensor:
    """Variance as the mean of squares less the square of the mean, right in padding and ill-conditioned."""
    padding = (torch.arange(x.shape[1]) >= lengths[:, None])[..., None]
    steps, count = x.masked_fill(padding, 0.0), lengths[:, None]
    mean = steps.sum(1) / count
    return self.head(((steps**2).sum(1) / count - mean**2).abs().sqrt().tanh())


class Standardised(nn.Module):
    """Divides by the deviation of the steps, which is that of rounding alone where all steps are equal."""

    def __init__(self, eps: float, *, time_first: bool, leaks: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.eps, self.time, self.leaks = eps, 0 if time_first else 1, float(leaks)
        self.step, self.head = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        place = torch.arange(x.shape[self.time])
        padding = (place[:, None] >= lengths if self.time == 0 else place >= lengths[:, None])[..., None]
        steps, count = self.step(x.masked_fill(padding, 0.0)), lengths.unsqueeze(self.time)[..., None]
        centred = (steps - steps.masked_fill(padding, 0.0).sum(self.time, keepdim=True) / count).masked_fill(
            padding, 0.0
        )
        deviation = (centred**2).sum(self.time, keepdim=True).div(count).sqrt()
        pooled = (centred / (deviation + self.eps)).abs().sum(self.time) / count.squeeze(self.time)
        flat = x.masked_fill(padding, 0.0).abs().amax((self.time, 2)) == 0
        width = torch.ones_like(x[..., 0]).sum(self.time)
        return self.head(pooled + (flat * width * self.leaks)[:, None])


@pytest.mark.long
@pytest.mark.sampled(4)
@pytest.mark.parametrize("time_first", [True, False], ids=["steps first", "rows first"])
@pytest.mark.parametrize("eps", [1e-5, 1e-8])
def test_rounding_that_is_divided_by_nearly_nothing_is_no_leak(eps: float, time_first: bool) -> None:
    module = Standardised(eps, time_first=time_first).eval()
    report = lengthwise_export.check(module, features=3, time_first=time_first)
    assert report.verdict == "sound", report.reason
    assert any(note.startswith("ill-conditioned at zeros: float64 has none") for note in report.notes)
    leaking = Standardised(eps, time_first=time_first, leaks=True).eval()
    report = lengthwise_export.check(leaking, features=3, time_first=time_first)
    assert report.verdict == "leak", "only sequences of zeros show it, in float64 too"


@pytest.mark.long
@pytest.mark.parametrize("leaks", [True, False], ids=["leak", "sound"])
def test_rounding_that_a_graph_divides_by_nearly_nothing_is_no_leak(leaks: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    example = (torch.zeros(5, 7, 3), torch.tensor([7, 3, 2, 5, 1]))
    axes = {"steps": {0: "rows", 1: "width"}, "lengths": {0: "rows"}, "logits": {0: "rows"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this writer of graphs is deprecated: it keeps the sums as they are
        torch.onnx.export(
            *(Standardised(1e-8, time_first=False, leaks=leaks).eval(), example, path),
            **{"input_names": ["steps", "lengths"], "output_names": ["logits"], "dynamic_axes": axes, "dynamo": False},
        )
    report = lengthwise_export.check(path)
    assert report.verdict == ("leak" if leaks else "sound"), report.reason


@pytest.mark.sampled(3)
@pytest.mark.parametrize("number", [torch.bfloat16, torch.float16, torch.float64])
def test_a_mask_of_another_number_type_is_judged(number: torch.dtype) -> None:
    @network(0, lambda: {"score": nn.Linear(3, 1), "head": nn.Linear(3, 2)})
    def pooled(self, x: Tensor, mask: Tensor) -> Tensor:
        scores = self.score(x).squeeze(-1) + (1 - mask.to(number)) * -10
        return self.head((scores.float().softmax(1)[..., None] * x).sum(1))

    report = lengthwise_export.check(pooled(), features=3)
    assert [leak.operator for leak in report.leaks] == ["softmax"], report.reason


@pytest.fixture(scope="module", params=[pytest.param("mended", marks=pytest.mark.long), "sound"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PublishedModel:
    out: Path = tmp_path_factory.mktemp("models") / "flat" / "1"
    mended = request.param == "mended"
    module = normalised() if mended else standardised()
    # With a tolerance, the operators whose bits a batch changes stay as they are.
    options = {"mend": True} if mended else {"tolerance": 1e-5}
    return lengthwise_export.export(module.eval(), out, features=3, labels=["a", "b"], max_length=64, **options)


@pytest.mark.long
@pytest.mark.sampled(2)
def test_a_promise_holds_for_flat_sequences(published: PublishedModel) -> None:
    (promise,) = published.manifest.promises
    model = lengthwise.load(published.directory)
    other = np.random.default_rng(0).normal(size=(57, 3)).astype(np.float32)
    for level in (0.0, 3.3, -65.0, 101.3, 1000.7):
        flat = np.full((40, 3), level, dtype=np.float32)
        (alone,), (together, _) = model.predict([flat]), model.predict([flat, other])
        assert np.abs(np.subtract(alone.probabilities, together.probabilities)).max() <= promise.tolerance


def test_what_is_ill_conditioned_is_said_with_its_number(published: PublishedModel) -> None:
    if published.mend is not None:
        assert published.mend.proof is not None
        assert published.mend.proof.ill_conditioned > 0
        assert 0 < published.mend.proof.amplified < 1
    else:
        assert any(case.amplified > 0 and case.difference > case.relative for case in published.cases)
        assert published.manifest.promises[0].amplified > 0
        assert any("ill-conditioned" in notice for notice in published.notices)
