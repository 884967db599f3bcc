import pytest
import torch

from lengthwise_export.architecture.model import SequenceClassifier
from tests.support.specs import spec

CONV = 'conv = [{channels = 5, kernel = 3}, {channels = 4, kernel = 2, norm = "none"}]'


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(1)


@pytest.mark.parametrize("rnn", ["lstm", "gru", "none"])
@pytest.mark.parametrize("pooling", ["attention", "mean", "max", "last"])
@pytest.mark.parametrize("more", ["", CONV, "self_attention_heads = 2"])
def test_neither_padding_nor_width_reaches_an_answer(rnn: str, pooling: str, more: str) -> None:
    model = SequenceClassifier(spec(f'rnn = "{rnn}"\npooling = "{pooling}"\n{more}')).eval()
    steps = torch.randn(1, 4, 3)
    filled = torch.full((2, 11, 3), torch.nan)
    filled[0, :4] = steps
    filled[1, :7] = 1e3
    alone = model(steps, torch.tensor([4])).logits[0]
    torch.testing.assert_close(model(filled, torch.tensor([4, 7])).logits[0], alone)


def test_a_last_step_of_zeros_is_data() -> None:
    model = SequenceClassifier(spec()).eval()
    steps = torch.randn(1, 4, 3)
    steps[0, 3] = 0
    assert not model(steps, torch.tensor([4])).logits.equal(model(steps, torch.tensor([3])).logits)


def test_a_per_step_model_answers_each_step_and_nothing_at_padding() -> None:
    model = SequenceClassifier(spec(task="per-step")).eval()
    answer = model(torch.randn(2, 5, 3), torch.tensor([5, 2]))
    assert answer.logits.shape == (2, 5, 2)
    assert answer.attention is None
    assert not answer.logits[1, 2:].any()


def test_attention_is_given_where_the_model_pools_by_it() -> None:
    answer = SequenceClassifier(spec()).eval()(torch.randn(2, 5, 3), torch.tensor([5, 2]))
    assert answer.attention.shape == (2, 5)
    assert (
        SequenceClassifier(spec('pooling = "mean"')).eval()(torch.randn(1, 2, 3), torch.tensor([2])).attention is None
    )


def test_a_token_model_takes_ids() -> None:
    model = SequenceClassifier(spec(step="vocabulary = 6")).eval()
    assert model(torch.tensor([[1, 5, 0], [2, 0, 0]]), torch.tensor([3, 1])).logits.shape == (2, 2)


def test_only_missing_values_are_treated_as_missing() -> None:
    model = SequenceClassifier(spec(step='features = 3\nmissing = "indicator"')).eval()
    zeros, missing = torch.zeros(1, 2, 3), torch.full((1, 2, 3), torch.nan)
    lengths = torch.tensor([2])
    assert not model(zeros, lengths).logits.equal(model(missing, lengths).logits)
    assert model(missing, lengths).logits.isfinite().all()
