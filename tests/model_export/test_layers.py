import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lengthwise_export.architecture import layers
from lengthwise_export.architecture.normalization import Normalize, SequenceFeatures, by_scale, by_sequence

LENGTHS = torch.tensor([5, 1, 3, 7])
WIDTH, FEATURES = 9, 4


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(3)


def batch() -> tuple[Tensor, Tensor]:
    """Steps with junk at padding, and the mask; none fills the width."""
    return torch.randn(len(LENGTHS), WIDTH, FEATURES), layers.step_mask(LENGTHS, WIDTH)


def test_the_mask_comes_from_the_width_of_the_tensor_and_removes_nan() -> None:
    mask = layers.step_mask(torch.tensor([1, 2]), 3)
    assert mask.tolist() == [[True, False, False], [True, True, False]]
    steps = torch.where(mask.unsqueeze(2), 1.0, torch.nan)  # a product would keep it
    assert layers.masked(steps, mask).squeeze(2).tolist() == [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("layer", "reads"),
    [
        (Normalize(FEATURES), "mask"),
        (Normalize(FEATURES, "indicator"), "mask"),
        (layers.MaskedBatchNorm(FEATURES), "mask"),
        (layers.MaskedLayerNorm(FEATURES), "mask"),
        (layers.MaskedConv(FEATURES, 6, kernel=3), "mask"),
        (layers.MaskedConv(FEATURES, 6, kernel=4, dilation=2), "mask"),
        (layers.MaskedSelfAttention(FEATURES, 2, dropout=0.0), "mask"),
        (layers.MaskedRecurrent("lstm", FEATURES, 6, layers=2, bidirectional=True, dropout=0.0), "lengths"),
        (layers.MaskedRecurrent("gru", FEATURES, 6, layers=2, bidirectional=True, dropout=0.0), "lengths"),
        (layers.StepwiseLayers(FEATURES, 12, layers=2, dropout=0.0), "lengths"),
    ],
)
def test_a_padded_row_answers_as_it_does_alone_and_zeros_at_padding(layer: nn.Module, reads: str) -> None:
    layer.eval()
    steps, mask = batch()
    padded = layer(steps, mask if reads == "mask" else LENGTHS)
    assert padded.shape[:2] == (len(LENGTHS), WIDTH)
    assert not padded[~mask].any()  # in spite of biases
    for row, alone, length in zip(padded, steps, LENGTHS.tolist(), strict=True):
        whole = torch.ones(1, length, dtype=torch.bool) if reads == "mask" else torch.tensor([length])
        torch.testing.assert_close(row[:length], layer(alone[None, :length], whole)[0])


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (2, 1), (3, 1), (5, 1), (4, 3), (3, 4)])
def test_a_masked_convolution_is_torchs_on_the_unpadded_sequence(kernel: int, dilation: int) -> None:
    layer = layers.MaskedConv(FEATURES, 6, kernel, dilation).eval()
    # Linear weights [channels, kernel * features] as convolution weights [channels, features, kernel]
    weight = layer.project.weight.view(6, kernel, FEATURES).transpose(1, 2)
    steps, mask = batch()
    padded = layer(steps, mask)
    for row, alone, length in zip(padded, steps, LENGTHS.tolist(), strict=True):
        before = (kernel - 1) * dilation // 2  # as torch's padding="same"
        around = functional.pad(alone[:length].T, (before, (kernel - 1) * dilation - before))
        expected = functional.conv1d(around[None], weight, layer.project.bias, dilation=dilation)[0].T
        torch.testing.assert_close(row[:length], expected)


def test_batch_statistics_are_those_of_the_valid_steps() -> None:
    steps, mask = batch()
    reference = nn.BatchNorm1d(FEATURES)
    expected = reference(steps[mask])
    layer = layers.MaskedBatchNorm(FEATURES)
    torch.testing.assert_close(layer(steps, mask)[mask], expected)
    torch.testing.assert_close(layer.running_mean, reference.running_mean)
    torch.testing.assert_close(layer.running_variance, reference.running_var)


def test_batch_statistics_stay_finite_with_a_single_valid_step_and_are_kept_in_use() -> None:
    layer = layers.MaskedBatchNorm(FEATURES)
    layer(torch.randn(1, 4, FEATURES), torch.tensor([[True, False, False, False]]))
    assert layer.running_variance.isfinite().all()
    before = layer.running_mean.clone()
    layer.eval()(*batch())
    assert layer.running_mean.equal(before)


def test_attention_weights_are_nothing_at_padding_and_one_in_all() -> None:
    steps, mask = batch()
    pooled, weights = layers.AttentionPooling(FEATURES)(steps, mask)
    assert pooled.shape == (len(LENGTHS), FEATURES)
    assert not weights[~mask].any()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(LENGTHS)))


def test_pooling_sees_valid_steps_only() -> None:
    steps, mask = batch()
    rows = [row[:length] for row, length in zip(steps, LENGTHS.tolist(), strict=True)]
    zeros = layers.masked(steps, mask)
    torch.testing.assert_close(layers.mean_pooling(zeros, mask), torch.stack([row.mean(dim=0) for row in rows]))
    negative = layers.masked(-steps.abs() - 1, mask)  # the zeros of padding are larger
    expected = torch.stack([(-row.abs() - 1).amax(dim=0) for row in rows])
    assert layers.max_pooling(negative, mask).equal(expected)
    last, first = torch.stack([row[-1] for row in rows]), steps[:, 0]
    assert layers.last_pooling(steps, LENGTHS, bidirectional=False).equal(last)
    both = layers.last_pooling(steps, LENGTHS, bidirectional=True)  # the second half was read backwards
    assert both.equal(torch.cat([last[:, :2], first[:, 2:]], dim=1))


def test_a_padding_id_is_embedded_as_zeros_and_any_id_may_stand_at_padding() -> None:
    embedded = layers.TokenEmbedding(5, 3, padding_id=2)(
        torch.tensor([[2, 1, 999]]), torch.tensor([[True, True, False]])
    )
    assert embedded[0].any(dim=1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("missing", "normalize", "expected"),
    [
        ("zero", "training", [0.0, -8.0]),
        ("mean", "training", [0.0, 0.0]),
        ("indicator", "training", [0.0, 0.0, 0.0, 1.0]),
        ("zero", "none", [3.0, 0.0]),
        ("mean", "none", [3.0, 8.0]),
        ("indicator", "none", [3.0, 8.0, 0.0, 1.0]),
    ],
)
def test_a_missing_value_becomes_what_its_policy_says(missing: str, normalize: str, expected: list[float]) -> None:
    layer = Normalize(2, missing, normalize)
    layer.fit([torch.tensor([[1.0, torch.nan], [3.0, 7.0]]), torch.tensor([[5.0, 9.0]])])
    if normalize == "training":  # the statistics are those of the present values
        assert layer.mean.tolist() == [3.0, 8.0]
        torch.testing.assert_close(layer.std, torch.tensor([(8 / 3) ** 0.5, 1.0]))
    answer = layer(torch.tensor([[[3.0, torch.nan]]]), torch.tensor([[True]]))
    torch.testing.assert_close(answer[0, 0], torch.tensor(expected))


@pytest.mark.parametrize("value", [0.1, torch.nan])
def test_a_feature_that_is_constant_or_never_present_becomes_zero(value: float) -> None:
    layer = Normalize(1, "mean")
    layer.fit([torch.full((4, 1), value)])
    assert layer.std.tolist() == [1.0]
    assert abs(layer(torch.full((1, 1, 1), value), torch.tensor([[True]])).item()) < 1e-6


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


def test_a_missing_value_becomes_the_mean_of_its_sequence_without_overflow() -> None:
    assert alone([1.0, torch.nan, 3.0, torch.nan]).tolist() == [-1.0, 0.0, 1.0, 0.0]
    assert alone([torch.nan, torch.nan]).tolist() == alone([torch.nan, 5.0]).tolist() == [0.0, 0.0]
    assert alone([3.4e38, -3.4e38]).tolist() == [1.0, -1.0]


def test_padding_counts_in_no_statistic() -> None:
    steps = torch.tensor([[[1.0], [3.0], [1e30], [torch.nan]]])
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
    steps = torch.tensor([[[1.0, torch.nan], [2.0, torch.nan], [torch.nan, torch.nan]]])
    out = layer(steps, torch.tensor([[True, True, False]]))
    assert out.shape == (1, 3, layer.out_features)
    assert out.isfinite().all()
    assert not out[0, 2].any()


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e18, 3.4e37])
def test_a_sequence_is_divided_by_its_root_mean_square_and_keeps_signs(size: float) -> None:
    steps, mask = torch.tensor([[[3.0, -4.0], [0.0, torch.nan]]]) * size, torch.ones(1, 2, dtype=torch.bool)
    together = by_scale(steps, mask, shared=True)[0]
    torch.testing.assert_close(together[0], torch.tensor([3.0, -4.0]) / (25 / 3) ** 0.5)
    assert together[1, 0] == 0
    assert together[1, 1].isnan()
    each = by_scale(steps, mask, shared=False)[0]
    torch.testing.assert_close(each[0], torch.tensor([2.0**0.5, -1.0]))


@pytest.mark.parametrize("together", [True, False])
def test_zeros_stay_zeros_and_padding_has_no_part_in_a_scale(together: bool) -> None:
    zeros = by_scale(torch.zeros(1, 3, 2), torch.ones(1, 3, dtype=torch.bool), shared=together)
    assert not zeros.any()
    steps = torch.randn(1, 4, 2)
    padded = torch.cat([steps, torch.tensor([[[1e30, torch.nan], [float("inf"), -1e30]]])], dim=1)
    mask = torch.arange(6)[None] < 4
    assert torch.equal(by_scale(padded, mask, shared=together)[:, :4], by_scale(steps, mask[:, :4], shared=together))


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
