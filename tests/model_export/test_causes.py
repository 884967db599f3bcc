import pytest

from lengthwise_export.checking.causes import explain
from lengthwise_export.checking.trials import CHANGES


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("lstm", "padding", "does not know the lengths"),
        ("GRU", "width", "does not know the lengths"),
        ("lstm", "neighbours", "rows of the batch instead of the steps"),
        ("Conv", "padding", "reaches into the padding"),
        ("conv1d", "width", "no longer is"),
        ("Softmax", "padding", "before the mask"),
        ("softmax", "neighbours", "over the rows of the batch"),
        ("batch_norm", "padding", "statistics"),
        ("InstanceNormalization", "padding", "padding included"),
        ("layer_norm", "width", "along the steps"),
        ("mean", "width", "divides by the width"),
        ("ReduceMean", "padding", "divides by the width"),
        ("mean", "neighbours", "over the rows of the batch"),
        ("sum", "padding", "guessed"),
        ("max", "padding", "compete"),
        ("max", "lengths", "from all rows"),
        ("__getitem__", "width", "fixed place of the width"),
        ("flip", "padding", "turned within the width"),
        ("CumSum", "padding", "cumulative sum"),
        ("linspace", "width", "counted by the width"),
        ("multi_head_attention_forward", "padding", "looks at padded steps"),
        ("DynamicQuantizeLinear", "neighbours", "one scale|One scale"),
        ("sort", "order", "never put back"),
        ("sum", "poison", "0 * NaN"),
        ("adaptive_avg_pool1d", "padding", "equal parts"),
        ("reshape", "neighbours", "laid into one another"),
        ("fft_fft", "padding", "carries padding|Fourier"),
        ("something_new", "neighbours", "depends on the other rows"),
        ("something_new", "width", "how wide the batch"),
        ("something_new", "padding", "carries padding"),
    ],
)
def test_a_leak_is_explained_by_what_the_operator_computes(kind: str, change, words: str) -> None:
    cause = explain(kind, change)
    assert any(word in cause.why for word in words.split("|")), cause.why


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_has_a_cause_and_a_mend_for_any_operator(change) -> None:
    cause = explain("an_operator_of_next_year", change)
    assert cause.why.endswith((".", "kind."))
    assert cause.fix
