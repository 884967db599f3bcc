import pytest
import torch
from torch import nn

from model_export.calling import Calling, calling_of, plain_path
from model_export.errors import UncheckableError
from service.errors import ConfigurationError


def taking(signature: str) -> nn.Module:
    """A module whose forward has that signature, and gives its arguments back."""
    names = [part.split("=")[0].strip(" *:") for part in signature.split(",") if part.strip(" *")]
    scope: dict[str, object] = {}
    exec(f"def forward(self, {signature}): return ({', '.join(names)},)", scope)  # the signatures are written below
    return type("Taking", (nn.Module,), {"forward": scope["forward"]})()


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("x, lengths", Calling("lengths")),
        ("seq, seq_lens", Calling("lengths")),
        ("x, mask=None", Calling("mask")),
        ("x, attention_mask", Calling("mask")),
        ("x, state=None, lengths=None", Calling("lengths", keyword="lengths")),
        ("x, *, mask", Calling("mask", keyword="mask")),
    ],
)
def test_the_second_argument_is_read_by_its_name(signature: str, expected: Calling) -> None:
    assert calling_of(taking(signature)) == expected


def test_what_the_caller_says_goes_before_the_name() -> None:
    assert calling_of(taking("x, n"), second="lengths") == Calling("lengths")
    assert calling_of(taking("x, padding_mask"), second="mask", time_first=True) == Calling("mask", time_first=True)


@pytest.mark.parametrize("signature", ["x, src_key_padding_mask", "x, n", "x, pad"])
def test_a_name_that_leaves_it_open_is_asked_about(signature: str) -> None:
    with pytest.raises(ConfigurationError, match="say --second"):
        calling_of(taking(signature))


def test_a_module_that_takes_too_little_or_too_much_is_refused() -> None:
    with pytest.raises(UncheckableError, match="neither lengths nor a mask"):
        calling_of(taking("x"))
    with pytest.raises(UncheckableError, match="also wants y"):
        calling_of(taking("x, y, lengths"))


def test_a_module_is_called_as_it_wants() -> None:
    steps, lengths = torch.zeros(2, 5, 3), torch.tensor([5, 1])
    given, ends = Calling("lengths", time_first=True)(taking("x, lengths"), steps, lengths)
    assert given.shape == (5, 2, 3)
    assert ends is lengths
    given, state, ends = Calling(keyword="lengths")(taking("x, state=None, lengths=None"), steps, lengths)
    assert (given is steps, state, ends is lengths) == (True, None, True)


def test_answers_a_step_come_rows_first() -> None:
    logits = torch.zeros(5, 2, 4)
    assert Calling(time_first=True).rows_first(logits).shape == (2, 5, 4)
    assert Calling().rows_first(logits) is logits
    assert Calling(time_first=True).rows_first(torch.zeros(2, 4)).shape == (2, 4)


def test_the_fast_path_is_off_inside_and_as_it_was_outside() -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    with plain_path():
        assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled() == before
