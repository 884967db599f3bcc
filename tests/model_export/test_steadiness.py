"""A model whose answers depend on the calls before is refused by check, export and mend, with what changes and where.

What changes and reaches no answer does no harm.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lengthwise_export
from lengthwise_export.errors import ExportError, UncheckableError
from tests.support.changing_modules import CHANGING, LOOK_ALIKES, Lazy, alone, marked_line, with_lengths

SHORT = 40
changing = pytest.mark.parametrize("kind", CHANGING, ids=lambda kind: kind.__name__)


@pytest.mark.sampled(7)
@changing
def test_a_module_that_changes_itself_is_not_checkable(kind: type) -> None:
    report = lengthwise_export.check(with_lengths(kind), max_length=SHORT)
    assert report.verdict == "uncheckable"
    assert_names(report.reason, kind)


@pytest.mark.sampled(26)
@changing
@pytest.mark.parametrize("make", [with_lengths, alone], ids=["with lengths", "alone"])
def test_a_module_that_changes_itself_is_not_published(kind: type, make: object, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as error:
        lengthwise_export.export(make(kind), tmp_path / "changing", max_length=SHORT, mend=make is alone)  # type: ignore[operator]
    assert_names(str(error.value), kind)
    assert not [*tmp_path.iterdir()]


@pytest.mark.long
@pytest.mark.sampled(8)
@pytest.mark.parametrize("kind", LOOK_ALIKES, ids=lambda kind: kind.__name__)
def test_what_changes_and_reaches_no_answer_does_no_harm(kind: type, tmp_path: Path) -> None:
    module = with_lengths(kind)
    before = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    report = lengthwise_export.check(module, max_length=SHORT)
    assert report.verdict in ("sound", "warning")
    assert vars(module).items() >= before.items()
    published = lengthwise_export.export(module, tmp_path / "steady", max_length=SHORT)
    assert published.manifest.max_length == SHORT


def test_a_lazy_layer_without_weights_is_refused_and_with_a_checkpoint_taken(tmp_path: Path) -> None:
    for mend, make in ((False, with_lengths), (True, alone)):
        with pytest.raises(UncheckableError, match=r"projection\.weight"):
            lengthwise_export.export(make(Lazy), tmp_path / "lazy", mend=mend)
    trained = with_lengths(Lazy)
    with torch.no_grad():
        trained(torch.zeros(1, 3, 4), torch.tensor([3]))
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    report = lengthwise_export.check(with_lengths(Lazy), checkpoint=tmp_path / "weights.pt", max_length=SHORT)
    assert report.verdict == "sound"


def test_a_refusal_leaves_a_module_as_it_was() -> None:
    module = with_lengths(next(iter(CHANGING)))
    lengthwise_export.check(module, max_length=SHORT)
    assert not module.fitted
    assert not module.mean.any()


def assert_names(reason: str, kind: type) -> None:
    """A refusal is one line with what changes, and the line that changes it."""
    assert "same answer twice" in reason
    assert CHANGING[kind] in reason
    assert f"changing_modules.py:{marked_line(kind)}" in reason
    assert "\n" not in reason
