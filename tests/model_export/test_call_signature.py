from collections.abc import Callable

import pytest
import torch
from torch import nn

from lengthwise.errors import ConfigurationError
from lengthwise_export import check
from lengthwise_export.errors import UncheckableError
from lengthwise_export.masks import step_mask
from lengthwise_export.tracing.call_signature import CallSignature, Second, read_signature


def taking(signature: str) -> nn.Module:
    """A module whose forward has that signature, and gives its arguments back."""
    names = [part.split("=")[0].strip(" *:") for part in signature.split(",") if part.strip(" *")]
    scope: dict[str, object] = {}
    exec(f"def forward(self, {signature}): return ({', '.join(names)},)", scope)  # the signatures are written below
    return type("Taking", (nn.Module,), {"forward": scope["forward"]})()


@pytest.mark.parametrize(
    ("signature", "second", "arguments"),
    [
        ("x, lengths", "lengths", {}),
        ("seq, seq_lens", "lengths", {}),
        ("x, mask=None", "mask", {}),
        ("x, attention_mask", "mask", {}),
        ("x, state=None, lengths=None", "lengths", {"steps": None, "lengths": "lengths"}),
        ("x, *, mask", "mask", {"steps": None, "mask": "mask"}),
        ("mask, x", "mask", {"mask": None, "steps": None}),
        ("seq_lens, values", "lengths", {"lengths": None, "steps": None}),
        ("masked_values, lengths", "lengths", {}),
        ("x, lengths, mask", "both", {}),
        ("x, mask, lengths", "both", {"steps": None, "mask": None, "lengths": None}),
        ("x, lengths, mask=None", "lengths", {}),
        ("x, lengths=None, mask=None", "lengths", {}),
        ("x, *, lengths, mask", "both", {"steps": None, "lengths": "lengths", "mask": "mask"}),
        ("input_ids=None, attention_mask=None, head_mask=None, labels=None", "mask", {}),
    ],
)
def test_the_arguments_are_read_by_their_names(signature: str, second: Second, arguments: dict) -> None:
    assert read_signature(taking(signature)) == CallSignature(second, tuple(arguments.items()))


@pytest.mark.parametrize(
    ("signature", "second", "arguments"),
    [
        ("x, n", "lengths", {}),
        ("x, rel_lens", "lengths", {}),
        ("x, length_ratio", "lengths", {}),
        ("x, len_fraction", "lengths", {}),
        ("*inputs", "mask", {}),
        ("x, padding_mask", "mask", {}),
        ("x, src_key_padding_mask", "padding-mask", {}),
        (
            "src, src_mask=None, src_key_padding_mask=None",
            "padding-mask",
            {"steps": None, "padding-mask": "src_key_padding_mask"},
        ),
        ("x, lengths=None, mask=None", "both", {}),
        ("x, mask=None, *, lengths", "both", {"steps": None, "mask": None, "lengths": "lengths"}),
        ("x, lengths=None, mask=None", "mask", {"steps": None, "mask": "mask"}),
    ],
)
def test_what_the_caller_says_goes_before_the_names(signature: str, second: Second, arguments: dict) -> None:
    assert read_signature(taking(signature), second=second) == CallSignature(second, tuple(arguments.items()))


@pytest.mark.parametrize(
    ("signature", "options", "error"),
    [
        ("x, src_key_padding_mask", {}, ConfigurationError),
        ("x, n", {}, ConfigurationError),
        ("x, pad", {}, ConfigurationError),
        ("src, src_mask=None, src_key_padding_mask=None", {}, ConfigurationError),
        ("x, rel_lens", {}, ConfigurationError),
        ("x, length_ratio", {}, ConfigurationError),
        ("x, len_fraction", {}, ConfigurationError),
        ("x, lengths, padding_mask", {"second": "both"}, ConfigurationError),
        ("x, lengths, mask", {"second": "lengths"}, UncheckableError),
        ("x, mask", {"time_first": True, "channels_first": True}, ConfigurationError),
        ("x", {}, UncheckableError),
        ("x, y, lengths", {}, UncheckableError),
        ("*inputs", {}, UncheckableError),
    ],
)
def test_what_leaves_it_open_or_takes_too_little_or_too_much_is_refused(
    signature: str, options: dict, error: type[Exception]
) -> None:
    with pytest.raises(error):
        read_signature(taking(signature), **options)


@pytest.mark.parametrize("name", ["hidden", "h", "h0", "hx", "state", "labels", "y"])
def test_an_argument_that_is_something_else_is_told_what_to_do_with_it(name: str) -> None:
    for default, words in (("=None", "it keeps its default value"), ("", f"give it a default value ({name}=None)")):
        with pytest.raises(ConfigurationError) as refused:
            read_signature(taking(f"x, {name}{default}"))
        assert f"{words}, and --second none --mend" in str(refused.value)
        assert "--second padding-mask" in str(refused.value)


def test_embeddings_are_the_steps_where_steps_are_numbers() -> None:
    signature = "input_ids=None, attention_mask=None, inputs_embeds=None"
    expected = (("mask", "attention_mask"), ("steps", "inputs_embeds"))
    assert read_signature(taking(signature), numbers=True) == CallSignature("mask", expected)


def called(signature: CallSignature, parameters: str, features: int = 3) -> tuple:
    steps, lengths = torch.zeros(2, 5, features), torch.tensor([5, 1])
    return signature.call(taking(parameters), signature.arguments_of(steps, lengths, step_mask(lengths, 5)))


def test_a_module_is_called_as_it_wants() -> None:
    given, ends = called(CallSignature("lengths", time_first=True), "x, lengths")
    assert given.shape == (5, 2, 3)
    assert ends.tolist() == [5, 1]
    given, state, ends = called(read_signature(taking("x, state=None, lengths=None")), "x, state=None, lengths=None")
    assert (given.shape, state, ends.tolist()) == ((2, 5, 3), None, [5, 1])
    assert called(CallSignature("mask", channels_first=True), "x, mask")[0].shape == (2, 3, 5)
    assert called(CallSignature("mask", features_axis=False), "x, mask", features=1)[0].shape == (2, 5)


def test_a_mask_is_true_where_it_is_said_to_be() -> None:
    assert called(CallSignature("mask"), "x, mask")[1].tolist() == [[True] * 5, [True] + [False] * 4]
    assert called(CallSignature("padding-mask"), "x, mask")[1].tolist() == [[False] * 5, [False] + [True] * 4]
    mask, x = called(read_signature(taking("mask, x")), "mask, x")
    assert (mask.shape, x.shape) == ((2, 5), (2, 5, 3))
    _, lengths, mask = called(CallSignature("both"), "x, lengths, mask")
    assert lengths.tolist() == mask.sum(1).tolist() == [5, 1]


def test_answers_a_step_come_rows_first() -> None:
    logits = torch.zeros(5, 2, 4)
    assert CallSignature(time_first=True).rows_first(logits).shape == (2, 5, 4)
    assert CallSignature(channels_first=True, classes_first=True).rows_first(logits).shape == (5, 4, 2)
    assert CallSignature().rows_first(logits) is logits
    assert CallSignature(time_first=True).rows_first(torch.zeros(2, 4)).shape == (2, 4)


class Attends(nn.Module):
    """Attention pooling whose mask has another form than a check passes."""

    def __init__(self, scores_of: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head, self.scores_of = nn.Embedding(50, 8), nn.Linear(8, 3), scores_of

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(input_ids)
        weights = (hidden.sum(2) + self.scores_of(attention_mask)).softmax(1)
        return self.head((weights[..., None] * hidden).sum(1))


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("scores_of", "line"),
    [
        (lambda mask: (1 - mask) * -1e9, "mask = mask.to(x.dtype)"),
        (lambda mask: nn.functional.one_hot(mask)[..., 0] * -1e9, "mask = mask.long()"),
        (lambda mask: mask.log().transpose(1, 2)[..., 0], "mask = mask[:, None]"),
        (lambda mask: ((1 - mask) * -1e9)[:, 0, 0], "mask = mask[:, None, None].to(x.dtype)"),
        (lambda mask: torch.where(mask, 0.0, -1e9)[:, 0, 0], "mask = mask[:, None, None]"),
    ],
)
def test_a_model_that_raises_with_a_bool_mask_is_told_the_line_that_makes_its_own(scores_of, line: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        check(Attends(scores_of), max_length=24)
    assert str(error.value).endswith(f"begin forward with {line}")


def test_a_model_that_adds_its_mask_leaks_and_a_note_has_the_line_that_makes_it() -> None:
    report = check(Attends(lambda mask: mask), max_length=24)
    assert report.verdict == "leak"
    assert any(note.endswith("begin forward with mask = torch.where(mask, 0.0, -torch.inf)") for note in report.notes)
