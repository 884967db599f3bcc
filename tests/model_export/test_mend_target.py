"""`check --suggest` and `export --mend` with mends made by hand: what is shown, published and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

import lengthwise
import lengthwise_export
from lengthwise.commands.cli import main
from lengthwise.errors import ConfigurationError, LengthwiseError, VerificationError
from lengthwise_export.errors import UnmendableError
from lengthwise_export.mending import mend_target
from lengthwise_export.mending.fix import FixProposal
from lengthwise_export.mending.mend import Mended
from tests.gallery import onnx_sound
from tests.support.mends import CHANGES, WEIGHTS, blind_mean, leaking_mean, mended_mean

SHORT: dict[str, Any] = {"max_length": 60}

Give = Callable[[onnx.ModelProto], None]


@pytest.fixture
def mends_to(monkeypatch: pytest.MonkeyPatch) -> Give:
    """Lets every mend give this graph."""

    def give(graph: onnx.ModelProto) -> None:
        monkeypatch.setattr(mend_target, "mend", lambda *given, **more: Mended(graph, CHANGES, 1, 10**6))

    return give


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **more: object) -> None:
        raise UnmendableError("head (Gemm)", "its weights mean one width only", CHANGES[0].location)

    monkeypatch.setattr(mend_target, "mend", refuse)


@pytest.fixture
def blind(tmp_path: Path) -> Path:
    path = tmp_path / "blind.onnx"
    onnx.save(blind_mean(), path)
    return path


def command(*words: object) -> Result:
    return CliRunner().invoke(main, [*map(str, words), "--max-length", "60"])


def labelled(folder: Path) -> Path:
    """A file of sequences with the label that the model answers alone."""
    random = np.random.default_rng(0)
    rows = [random.normal(size=(length, 3)).astype(np.float32) for length in range(2, 42)]
    lines = []
    for steps in rows:
        lines.append({"steps": steps.tolist(), "label": str(int((steps.mean(axis=0) @ WEIGHTS).argmax()))})
    path = folder / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_the_report_of_a_model_without_lengths_shows_the_mend(mends_to: Give, blind: Path, tmp_path: Path) -> None:
    mends_to(mended_mean())
    done = command("check", blind, "--suggest", "--html", tmp_path / "page.html")
    assert done.exit_code == 2, done.output
    text = " ".join(done.stdout.split())
    assert text.startswith("uncheckable")
    assert "takes neither lengths nor a mask" in text
    assert "+pooled = Div (sum, lengths)" in text
    assert "200 sequences of 1 to 60 steps" in text
    page = (tmp_path / "page.html").read_text()
    assert "<polyline" in page
    assert "node_mean" in page


def test_json_adds_one_key(mends_to: Give, blind: Path) -> None:
    mends_to(mended_mean())
    with_fix = json.loads(command("check", blind, "--suggest", "--json").stdout)
    without = json.loads(command("check", blind, "--json").stdout)
    assert with_fix.keys() - without.keys() == {"fix"}
    assert (with_fix["fix"]["mendable"], with_fix["fix"]["verdict"]) == (True, "sound")
    assert with_fix["fix"]["proof"]["holds"] is True
    assert with_fix["verdict"] == without["verdict"] == "uncheckable"
    report = lengthwise_export.check(blind, suggest=True, **SHORT)
    assert report.to_dict() == with_fix
    assert "node_mean" in str(report)
    assert "node_mean" in report._repr_html_()


def test_a_leak_keeps_its_exit_code(mends_to: Give, tmp_path: Path) -> None:
    mends_to(mended_mean())
    onnx.save(leaking_mean(), tmp_path / "leak.onnx")
    done = command("check", tmp_path / "leak.onnx", "--suggest", "--json")
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert (report["verdict"], report["fix"]["mendable"]) == ("leak", True)


def test_a_sound_model_needs_no_mend(refused: None, tmp_path: Path) -> None:
    report = lengthwise_export.check(onnx_sound.bool_mask_mean(), suggest=True, **SHORT)
    assert isinstance(report.fix, FixProposal)
    assert (report.verdict, report.fix.mendable, report.fix.changes) == ("sound", True, ())
    published = lengthwise_export.export(onnx_sound.bool_mask_mean(), tmp_path / "sound", mend=True, **SHORT)
    assert any("nothing to mend" in notice for notice in published.notices)
    assert "mended" not in published.manifest.made
    assert published.mend is None


def test_a_mended_model_is_published_and_answers_as_the_original_alone(
    mends_to: Give, blind: Path, tmp_path: Path
) -> None:
    mends_to(mended_mean())
    done = command("export", blind, "--mend", "--out", tmp_path / "models" / "mended", "--tolerance", "0", "--json")
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert [change["operator"] for change in value["mend"]["changes"]] == ["node_mean", "node_conv"]
    assert value["mend"]["accuracy"] is None
    folder = Path(value["directory"])
    assert json.loads((folder / "manifest.json").read_text())["made"]["mended"] == "2 operators"
    recorded = json.loads((folder / "verification.json").read_text())
    assert recorded["mend"]["proof"]["holds"] is True
    assert any(case["varied"] == "reference" for case in recorded["cases"])
    random = np.random.default_rng(1)
    rows = [random.normal(size=(length, 3)).astype(np.float32) for length in (1, 7, 33, 60)]
    for steps, answer in zip(rows, lengthwise.load(folder).predict(rows), strict=True):
        powers = np.exp(steps.mean(axis=0) @ WEIGHTS)
        np.testing.assert_allclose(answer.probabilities, powers / powers.sum(), rtol=1e-4)


def test_a_mend_that_does_not_hold_is_not_published(mends_to: Give, blind: Path, tmp_path: Path) -> None:
    mends_to(mended_mean(counted_wrong=True))
    done = command("export", blind, "--mend", "--out", tmp_path / "models" / "wrong")
    assert done.exit_code == 1
    assert "differs from the original alone: sequence" in done.stderr
    assert "steps)" in done.stderr
    assert not (tmp_path / "models").exists()
    report = lengthwise_export.check(blind, suggest=True, **SHORT)
    assert isinstance(report.fix, FixProposal)
    assert not report.fix.mendable
    assert report.fix.proof is not None
    assert not report.fix.proof.holds


def test_a_mend_that_lets_nan_through_is_not_published(mends_to: Give, blind: Path, tmp_path: Path) -> None:
    mends_to(mended_mean(multiplied=True))
    report = lengthwise_export.check(blind, suggest=True, **SHORT)
    assert isinstance(report.fix, FixProposal)
    assert report.fix.proof is not None
    assert report.fix.proof.holds
    assert (report.fix.mendable, report.fix.verdict) == (False, "warning")
    with pytest.raises(VerificationError):
        lengthwise_export.export(blind, tmp_path / "m" / "one", mend=True, **SHORT)
    assert not (tmp_path / "m").exists()


def test_what_cannot_be_mended_is_refused_by_operator_and_line(refused: None, blind: Path, tmp_path: Path) -> None:
    done = command("export", blind, "--mend", "--out", tmp_path / "models" / "refused")
    assert done.exit_code == 2
    assert "models/net.py:12: head (Gemm): its weights mean one width only" in done.stderr
    report = lengthwise_export.check(blind, suggest=True, **SHORT)
    assert isinstance(report.fix, FixProposal)
    assert (report.fix.mendable, report.fix.operator) == (False, "head (Gemm)")


def test_without_mend_a_model_without_lengths_is_refused_as_before(blind: Path, tmp_path: Path) -> None:
    done = command("export", blind, "--out", tmp_path / "models" / "blind")
    assert done.exit_code == 2
    assert lengthwise_export.check(blind, **SHORT).fix is None


@pytest.mark.long
def test_the_accuracy_is_told_padded_alone_and_mended(mends_to: Give, blind: Path, tmp_path: Path) -> None:
    mends_to(mended_mean())
    data = labelled(tmp_path)
    published = lengthwise_export.export(blind, tmp_path / "m" / "one", mend=True, data=data, **SHORT)
    measured = published.mend_accuracy
    assert measured is not None
    assert (measured.mended, measured.alone.accuracy, measured.alone.moved) == (1.0, 1.0, 0)
    assert measured.sequences == measured.answers == 40
    assert "1.0000 alone" in str(measured)
    assert published.sample is not None
    assert published.sample.accuracy == measured.mended


def test_nothing_is_published_below_the_accuracy_to_keep(mends_to: Give, blind: Path, tmp_path: Path) -> None:
    mends_to(mended_mean())
    data = labelled(tmp_path)
    lines = data.read_text().splitlines()
    wrong = [json.loads(line) | {"label": "0"} for line in lines[:20]]
    data.write_text("\n".join([*map(json.dumps, wrong), *lines[20:]]))
    with pytest.raises(VerificationError):
        lengthwise_export.export(blind, tmp_path / "m" / "one", mend=True, data=data, must_keep_accuracy=0.99, **SHORT)
    assert not (tmp_path / "m").exists()
    with pytest.raises(ConfigurationError, match="pass --data"):
        lengthwise_export.export(blind, tmp_path / "m" / "one", mend=True, must_keep_accuracy=0.9, **SHORT)
    with pytest.raises(ConfigurationError):
        lengthwise_export.export(blind, tmp_path / "m" / "one", mend=True, must_keep_accuracy=95, **SHORT)


class CountsValues(nn.Module):
    """Takes its lengths from the values, or raises for a row of zeros beside its lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x, (x != 0).any(-1).sum(1))

    def last(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.gru(packed)[1][-1])  # type: ignore[no-any-return]


class WantsValues(CountsValues):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]  # it is called with both
        if not x.any(-1).any(-1).all():
            raise ValueError("a row without a signal")
        return self.last(x, lengths)


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize(("kind", "mend"), [(CountsValues, True), (WantsValues, False)])
def test_a_sequence_of_zeros_at_which_a_model_raises_is_told(kind: type[nn.Module], mend: bool, tmp_path: Path) -> None:
    with pytest.raises(LengthwiseError, match=r"raises for a sequence of \d+ steps? with zeros only.* take `lengths`"):
        lengthwise_export.export(kind(), tmp_path / "m", features=4, max_length=24, mend=mend)


class FiveAtOnce(nn.Module):
    """A convolution over five steps without padding, and the largest value: shorter sequences have no answer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 6, 5)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x.mT)).amax(2))


@pytest.mark.long
def test_a_torch_module_is_mended_from_its_shortest_sequence_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = FiveAtOnce().eval()
    report = lengthwise_export.check(module, suggest=True, **SHORT)
    assert isinstance(report.fix, FixProposal)
    assert report.fix.min_length == 5
    assert report.fix.proof is not None
    assert (report.fix.proof.sequences, min(report.fix.proof.lengths)) == (200, 5)
    published = lengthwise_export.export(module, tmp_path / "five", mend=True, **SHORT)
    assert published.manifest.min_length == 5
    rows = [np.random.default_rng(0).normal(size=(length, 3)).astype(np.float32) for length in (5, 6, 31, 60)]
    for steps, answer in zip(rows, lengthwise.load(published.directory).predict(rows), strict=True):
        alone = module(torch.from_numpy(steps[None])).softmax(dim=1).detach().numpy()[0]
        np.testing.assert_allclose(answer.probabilities, alone, rtol=1e-4)


class Products(nn.Module):
    """Attention with heads that are merged with the rows, and a state of keys and values, as einops' users write it."""

    def __init__(self, scores: str, weighted: str, *, merged: bool) -> None:
        super().__init__()
        self.scores, self.weighted, self.merged = scores, weighted, merged
        self.project, self.head = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.project(x).unflatten(2, (2, 4)).transpose(1, 2)  # [rows, heads, width, 4]
        states = heads.flatten(0, 1) if self.merged else heads
        weights = torch.einsum(self.scores, states, states).softmax(-1)
        attended = torch.einsum(self.weighted, weights, states).mean(-2)
        return self.head(attended.reshape(x.shape[0], 8))


@pytest.mark.long
@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("scores", "weighted", "merged"),
    [
        ("bid,bjd->bij", "bij,bjd->bid", True),
        ("...id,...jd->...ij", "...ij,...jd->...id", True),
        ("...id,...jd->...ij", "...ij,...jk", False),
        ("bhid,bhjd->bhij", "bhij,bhjd->bhid", False),
    ],
)
def test_products_over_merged_or_unnamed_axes_are_mended(
    scores: str, weighted: str, merged: bool, tmp_path: Path
) -> None:
    module = Products(scores, weighted, merged=merged)
    published = lengthwise_export.export(module, tmp_path / "m", features=3, mend=True, **SHORT)
    model = lengthwise.load(str(published.directory))
    sequences = [np.random.default_rng(length).normal(size=(length, 3)).astype(np.float32) for length in (1, 5, 33)]
    for steps, answer in zip(sequences, model.predict(sequences), strict=True):
        own = module(torch.from_numpy(steps)[None]).softmax(-1)[0]
        np.testing.assert_allclose(np.asarray(answer.probabilities), own.detach().numpy(), atol=1e-5)
