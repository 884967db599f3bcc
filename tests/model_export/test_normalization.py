import numpy as np
import pytest
import torch
from torch import Tensor

from lengthwise_export.architecture.normalization import Normalize, SequenceFeatures, by_scale, by_sequence

NAN = float("nan")


def alone(values: list[float]) -> Tensor:
    """One sequence of one feature by itself, normalised by itself: its values."""
    steps = torch.tensor([[[value] for value in values]])
    return by_sequence(steps, torch.ones(1, len(values), dtype=torch.bool)).normal[0, :, 0]


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 1e3, 1e30])
def test_a_sequence_has_mean_0_and_deviation_1_whatever_its_scale(scale: float) -> None:
    steps = np.random.default_rng(0).standard_normal(50) * scale
    normal = alone(steps.tolist()).double()
    torch.testing.assert_close(normal, torch.from_numpy((steps - steps.mean()) / steps.std()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("values", [[3.7], [0.1] * 7, [-1e30] * 3, [0.0, 0.0], [100.1, 100.10001], [3.4e38] * 4])
def test_one_step_and_a_constant_sequence_become_exactly_zero(values: list[float]) -> None:
    assert alone(values).tolist() == [0.0] * len(values)


def test_a_missing_value_becomes_the_mean_of_its_sequence_and_the_largest_numbers_do_not_overflow() -> None:
    assert alone([1.0, NAN, 3.0, NAN]).tolist() == [-1.0, 0.0, 1.0, 0.0]
    assert alone([NAN, NAN]).tolist() == alone([NAN, 5.0]).tolist() == [0.0, 0.0]
    assert alone([3.4e38, -3.4e38]).tolist() == [1.0, -1.0]


def test_padding_counts_in_no_statistic() -> None:
    steps = torch.tensor([[[1.0], [3.0], [1e30], [NAN]]])
    found = by_sequence(steps, torch.tensor([[True, True, False, False]]))
    assert found.normal[0, :, 0].tolist() == [-1.0, 1.0, 0.0, 0.0]
    assert (found.level.item(), found.scale.item()) == (2.0, 1.0)


def test_both_has_the_values_by_the_training_split_and_by_the_sequence() -> None:
    layer = Normalize(1, normalize="both")
    layer.fit([torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [6.0]])])
    out = layer(torch.tensor([[[4.0], [6.0]]]), torch.tensor([[True, True]]))
    assert out.shape == (1, 2, layer.out_features)
    torch.testing.assert_close(out[0, :, 0] * 5**0.5, torch.tensor([1.0, 3.0]))
    assert out[0, :, 1].tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("normalize", ["training", "sequence", "both", "sequence-scale", "feature-scale", "none"])
@pytest.mark.parametrize("missing", ["zero", "mean", "indicator"])
def test_every_choice_gives_the_features_that_it_says_without_nan(normalize: str, missing: str) -> None:
    layer = Normalize(2, missing, normalize)
    layer.fit([torch.randn(5, 2)])
    steps = torch.tensor([[[1.0, NAN], [2.0, NAN], [NAN, NAN]]])
    out = layer(steps, torch.tensor([[True, True, False]]))
    assert out.shape == (1, 3, layer.out_features)
    assert out.isfinite().all()
    assert not out[0, 2].any()


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e18, 3.4e37])
def test_a_sequence_is_divided_by_its_root_mean_square_and_keeps_signs(size: float) -> None:
    steps, mask = torch.tensor([[[3.0, -4.0], [0.0, NAN]]]) * size, torch.ones(1, 2, dtype=torch.bool)
    together = by_scale(steps, mask, together=True)[0]
    torch.testing.assert_close(together[0], torch.tensor([3.0, -4.0]) / (25 / 3) ** 0.5)
    assert together[1, 0] == 0
    assert together[1, 1].isnan()
    each = by_scale(steps, mask, together=False)[0]
    torch.testing.assert_close(each[0], torch.tensor([2.0**0.5, -1.0]))


@pytest.mark.parametrize("together", [True, False])
def test_zeros_stay_zeros_and_padding_has_no_part_in_a_scale(together: bool) -> None:
    zeros = by_scale(torch.zeros(1, 3, 2), torch.ones(1, 3, dtype=torch.bool), together=together)
    assert not zeros.any()
    steps = torch.randn(1, 4, 2)
    padded = torch.cat([steps, torch.tensor([[[1e30, NAN], [float("inf"), -1e30]]])], dim=1)
    mask = torch.arange(6)[None] < 4
    assert torch.equal(
        by_scale(padded, mask, together=together)[:, :4], by_scale(steps, mask[:, :4], together=together)
    )


def test_features_of_a_sequence_tell_scales_apart_that_differ_by_orders_of_magnitude() -> None:
    layer = SequenceFeatures(("length", "level", "scale"), 1)
    random = np.random.default_rng(0)
    sequences = [
        torch.from_numpy((random.standard_normal((20, 1)) * 10.0**power).astype(np.float32)) for power in range(-6, 7)
    ]
    layer.fit(sequences)
    rows = torch.cat([layer(steps[None], torch.tensor([20])) for steps in sequences])
    assert rows.shape == (13, layer.out_features)
    scales = rows[:, 2]
    assert (scales.diff() > 0.01).all()
    assert rows.abs().max() < 5
    padded = torch.cat([sequences[0], torch.full((4, 1), 1e30)])
    torch.testing.assert_close(layer(padded[None], torch.tensor([20])), rows[:1])
