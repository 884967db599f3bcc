"""`--missing handled` is held to what it says: what stands beside a null must count."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from lengthwise.commands.cli import main
from lengthwise.padding import PaddedBatch, step_mask
from lengthwise.runtime.manifest import VERIFICATION_FILE, Manifest, StepInput
from lengthwise.runtime.session import CPU_LABEL
from lengthwise_export import check
from lengthwise_export.exporting.missing_values import cases, failure
from lengthwise_export.onnx_graphs.protos import contains_isnan
from tests.gallery.onnx_models import Weights, integers, model, scalar


def recurrent(kind: str, features: int, *, fills: bool) -> onnx.ModelProto:
    """An LSTM or a GRU over steps, one value of which may be NaN; with `fills`, it puts 0 in the place of NaN."""
    gates = {"LSTM": 4, "GRU": 3}[kind]
    attributes = "<hidden_size = 6, linear_before_reset = 1>" if kind == "GRU" else "<hidden_size = 6>"
    filled = "[asks] absent = IsNaN (x)\n[fill] known = Where (absent, nothing, x)\n" if fills else ""
    body = f"""{filled}
[turn] t = Transpose <perm = [1, 0, 2]> ({"known" if fills else "x"})
[rnn] y, h = {kind} {attributes} (t, W, R, B, n)
[squeeze] last = Squeeze (h, first)
[head] logits = MatMul (last, V)"""
    weights = Weights(3).recurrent(gates, features, 6)
    made = {"nothing": scalar(0.0), "first": integers(0), "V": Weights(4).normal(6, 2)} | weights
    signature = f"g (float[N,T,{features}] x, int32[N] n) => (float[N,2] logits)"
    return model(signature, body, made, producer="test", opset=17)


def exported(graph: onnx.ModelProto, folder: Path, *more: str) -> Result:
    (folder / "g.onnx").write_bytes(graph.SerializeToString())
    words = ["export", str(folder / "g.onnx"), "--out", str(folder / "m" / "1"), "--max-length", "20", *more]
    return CliRunner().invoke(main, words)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("features", [1, 6])
def test_a_recurrent_kernel_that_makes_a_number_of_nan_does_not_handle_it(
    kind: str, features: int, tmp_path: Path
) -> None:
    graph = recurrent(kind, features, fills=False)
    assert exported(graph, tmp_path).exit_code == 0
    assert Manifest.read(tmp_path / "m" / "1").missing == "refuse"
    (tmp_path / "said").mkdir()
    result = exported(graph, tmp_path / "said", "--missing", "handled")
    assert result.exit_code == 1
    assert "--missing handled does not hold" in result.output
    assert not (tmp_path / "said" / "m").exists()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("features", [1, 6])
def test_a_graph_that_fills_its_gaps_handles_them_where_that_is_said(kind: str, features: int, tmp_path: Path) -> None:
    graph = recurrent(kind, features, fills=True)
    result = exported(graph, tmp_path, "--missing", "handled")
    assert result.exit_code == 0, result.output
    assert Manifest.read(tmp_path / "m" / "1").missing == "handled"
    told = json.loads((tmp_path / "m" / "1" / VERIFICATION_FILE).read_text())
    assert {case["varied"] for case in told["cases"] if "a null of feature 0" in case["name"]} == {"missing"}
    (tmp_path / "not_said").mkdir()
    result = exported(graph, tmp_path / "not_said")
    assert (result.exit_code, "pass --missing handled" in result.output) == (0, True)
    assert Manifest.read(tmp_path / "not_said" / "m" / "1").missing == "refuse"


def test_a_check_holds_a_model_to_it_as_well(tmp_path: Path) -> None:
    for fills, code in ((True, 0), (False, 2)):
        path = tmp_path / f"{fills}.onnx"
        path.write_bytes(recurrent("LSTM", 6, fills=fills).SerializeToString())
        result = CliRunner().invoke(main, ["check", str(path), "--missing", "handled"])
        assert result.exit_code == code, result.output
    assert "--missing handled" in " ".join(result.output.split())


def test_a_null_that_eats_its_step_is_seen_in_any_model() -> None:
    def run(batch: PaddedBatch, *, eats: bool) -> np.ndarray:
        absent = np.isnan(batch.steps)
        values = np.where(absent.any(2, keepdims=True) if eats else absent, 0.0, batch.steps)
        valid = step_mask(batch.lengths, batch.width)
        return (values * valid[..., None]).sum(1).astype(np.float32)

    for eats in (True, False):
        model = partial(run, eats=eats)
        found = list(cases(model, StepInput(features=4), max_length=30, seed=0, provider=CPU_LABEL))
        assert (failure(found) is None) is not eats
    assert failure([]) is None


def test_a_graph_that_asks_for_nan_is_known_and_other_policies_are_those_of_a_spec(tmp_path: Path) -> None:
    for fills, word in ((True, "zero"), (False, "mean")):
        graph = recurrent("GRU", 2, fills=fills)
        assert contains_isnan(graph) is fills
        assert exported(graph, tmp_path, "--missing", word).exit_code == 2


class Filling(nn.Module):
    """A masked mean of steps whose missing values are filled by `fill`, a function of `(x, valid)`."""

    def __init__(self, fill, features: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fill, self.step, self.head = fill, nn.Linear(features, 8), nn.Linear(8, 3)

    def forward(self, x, lengths):
        valid = (torch.arange(x.size(1)) < lengths[:, None])[..., None]
        steps = torch.tanh(self.step(self.fill(x, valid)))
        return self.head(torch.where(valid, steps, 0.0).sum(1) / lengths[:, None])


def filled(x, values):
    return torch.where(x.isnan(), values, x).nan_to_num()


def known(x, valid):
    return torch.where(valid, x, torch.nan)


LEAKS = {
    "the mean of the batch": lambda x, valid: filled(x, known(x, valid).nanmean((0, 1))),
    "the mean over the width": lambda x, valid: filled(x, x.nanmean(1, keepdim=True)),
    "the next step": lambda x, valid: filled(x, torch.cat([x[:, 1:], x[:, :1] * 0], 1)),
    "whether any is missing": lambda x, valid: x.nan_to_num() + 0.2 * (x.isnan() & valid).any(),
}
SOUND = {
    "zeros": lambda x, valid: x.nan_to_num(),
    "the mean of the sequence": lambda x, valid: filled(x, known(x, valid).nanmean(1, keepdim=True)),
    "the last known value": lambda x, valid: x.gather(
        1, torch.where(x.isnan(), 0, torch.arange(x.size(1))[:, None]).cummax(1).values
    ).nan_to_num(),
}


@pytest.mark.long
@pytest.mark.sampled(7)
@pytest.mark.parametrize("name", [*LEAKS, *SOUND])
def test_what_a_missing_value_is_filled_with_may_come_from_its_own_sequence_only(name: str) -> None:
    report = check(Filling((LEAKS | SOUND)[name]), features=3, missing="handled", max_length=40)
    assert (report.verdict, bool(report.leaks)) == (("leak", True) if name in LEAKS else ("sound", False))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("seed", range(4))
def test_a_model_need_not_answer_where_all_is_missing(seed: int) -> None:
    def fill(x, valid):
        return torch.where(x.isnan(), known(x, valid).nanmean(1, keepdim=True), x)

    report = check(Filling(fill, 1), features=1, missing="handled", max_length=40, seed=seed)
    assert report.verdict == "sound"
    assert "no trial has a feature without a value" in " ".join(report.notes)
