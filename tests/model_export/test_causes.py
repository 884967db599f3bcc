import pytest

from lengthwise_export.checking.causes import ArgumentNames, explain
from lengthwise_export.checking.trials import CHANGES


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("lstm", "padding", "does not know the lengths"),
        ("GRU", "width", "does not know the lengths"),
        ("lstm", "neighbours", "rows of the batch instead of the steps"),
        ("Conv", "padding", "reads the padding"),
        ("conv1d", "width", "changes the zeros"),
        ("Softmax", "padding", "before the mask"),
        ("softmax", "neighbours", "over the rows of the batch"),
        ("batch_norm", "padding", "statistics"),
        ("InstanceNormalization", "padding", "padding included"),
        ("layer_norm", "width", "along the steps"),
        ("mean", "width", "divides by the width"),
        ("ReduceMean", "padding", "divides by the width"),
        ("mean", "neighbours", "over the rows of the batch"),
        ("sum", "padding", "inferred from zeros"),
        ("max", "padding", "compete"),
        ("max", "lengths", "over all rows"),
        ("__getitem__", "width", "fixed position of the width"),
        ("flip", "padding", "reversed over the whole width"),
        ("CumSum", "padding", "cumulative sum"),
        ("linspace", "width", "relative to the width"),
        ("multi_head_attention_forward", "padding", "reads padded steps"),
        ("DynamicQuantizeLinear", "neighbours", "one scale|One scale"),
        ("sort", "order", "never put back"),
        ("sum", "poison", "0 * NaN"),
        ("adaptive_avg_pool1d", "padding", "equal parts"),
        ("reshape", "neighbours", "Axes are mixed up"),
        ("fft_fft", "padding", "carries padding|Fourier"),
        ("something_new", "neighbours", "depends on the other rows"),
        ("something_new", "width", "on the width of the batch"),
        ("something_new", "padding", "carries padding"),
    ],
)
def test_a_leak_is_explained_by_what_the_operator_computes(kind: str, change, words: str) -> None:
    cause = explain(kind, change)
    assert any(word in cause.why for word in words.split("|")), cause.why


LENGTHS = ArgumentNames("seq.size(1)", "seq_len", "lengths")
MASK = ArgumentNames("seq.size(1)", "attention_mask", "mask")
PADDING = ArgumentNames("seq.size(0)", "pad", "padding-mask")


@pytest.mark.parametrize(
    ("kind", "operator", "source", "names", "lines"),
    [
        (
            "lstm",
            "encoder.rnns.0: lstm",
            "out, _ = self.rnns[0](h)",
            LENGTHS,
            [
                "packed = pack_padded_sequence(h, seq_len.cpu(), batch_first=True, enforce_sorted=False)",
                "packed, state = self.rnns[0](packed)",
                "outputs, _ = pad_packed_sequence(packed, batch_first=True, total_length=seq.size(1))  # ONNX: "
                "sequence_lens",
            ],
        ),
        (
            "gru",
            "gru: gru",
            "return self.head(self.gru(self.embed(seq))[0])",
            MASK,
            [
                "# inputs: the input of self.gru",
                "lengths = attention_mask.sum(1)",
                "packed = pack_padded_sequence(inputs, lengths.cpu(), batch_first=True, enforce_sorted=False)",
                "packed, state = self.gru(packed)",
                "outputs, _ = pad_packed_sequence(packed, batch_first=True, total_length=seq.size(1))  # ONNX: "
                "sequence_lens",
            ],
        ),
        (
            "mean",
            "mean",
            "return self.head(h.mean(1))",
            LENGTHS,
            [
                "valid = torch.arange(seq.size(1), device=seq_len.device) < seq_len[:, None]  # [rows, width], true at "
                "valid steps",
                "mean = h.masked_fill(~valid[..., None], 0.0).sum(1) / seq_len[:, None]",
            ],
        ),
        (
            "mean",
            "mean",
            "return torch.mean(h, 0)",
            PADDING,
            [
                "lengths = (~pad.bool()).sum(1)",
                "valid = ~pad.bool()  # [rows, width], true at valid steps",
                "mean = h.masked_fill(~valid[..., None], 0.0).sum(1) / lengths[:, None]",
            ],
        ),
        (
            "__getitem__",
            "__getitem__",
            "return h[:, -1]",
            LENGTHS,
            ["last = h[torch.arange(len(seq_len), device=seq_len.device), seq_len - 1]  # [rows, features]"],
        ),
        (
            "sum",
            "sum",
            "return self.head((h * m).sum(1) / m.sum(1))",
            MASK,
            [
                "# inputs: the input of the operator",
                "valid = attention_mask.bool()  # [rows, width], true at valid steps",
                "total = inputs.masked_fill(~valid[..., None], 0.0).sum(1)",
            ],
        ),
    ],
)
def test_a_mend_is_written_in_the_modules_own_names(
    kind: str, operator: str, source: str, names: ArgumentNames, lines: list[str]
) -> None:
    assert explain(kind, "padding", names, operator, source).fix.splitlines() == lines


@pytest.mark.parametrize("names", [LENGTHS, MASK, PADDING, ArgumentNames()])
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_has_a_cause_and_a_mend_without_a_place_left_to_fill_in(change, names: ArgumentNames) -> None:
    kinds = "lstm gru conv1d batch_norm group_norm layer_norm softmax flip cumsum fft_fft arange mean max sum matmul "
    kinds += "__getitem__ reshape sort adaptive_avg_pool1d max_pool1d attention an_operator_of_next_year"
    for kind in kinds.split():
        cause = explain(kind, change, names)
        assert cause.why.endswith(".")
        assert cause.fix
        assert "$" not in cause.fix
        told = any(words in cause.fix for words in ("all lengths", "lengths of", "lengths = "))
        assert names.role == "lengths" or "lengths" not in cause.fix or told, cause.fix
