"""`lengthwise_export.check` and `export`: what the commands of these names do, of texts and of objects."""

from __future__ import annotations

import copy
import doctest
import html
import logging
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import orjson
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import lengthwise
import lengthwise_export
from lengthwise.commands.cli import main
from lengthwise.errors import ConfigurationError, VerificationError
from lengthwise_export.errors import CheckpointError, PublishError
from lengthwise_export.interface import api
from lengthwise_export.options import CheckOptions
from tests.gallery import onnx_sound
from tests.support.users_models import Mean, Tagger

MASKING = Path(__file__).parents[2] / "examples" / "masking.py"
SOUND, LEAKING = f"{MASKING}:masked_attention_after_lstm", f"{MASKING}:attention_after_lstm"
SHORT: dict[str, Any] = {"max_length": 40}


class Noting(nn.Module):
    """A sound model that writes into a buffer, puts another in the place of one, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = Mean()
        self.norm = nn.BatchNorm1d(2)
        self.calls = nn.Buffer(torch.zeros(1))
        self.last = nn.Buffer(torch.zeros(1))

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        self.calls += 1
        self.last = torch.rand(1)
        return self.norm(self.mean(values, lengths))


def state(module: nn.Module) -> dict[str, Any]:
    """All that must not change."""
    return {
        "tensors": {name: tensor.detach().clone() for name, tensor in module.state_dict().items()},
        "objects": [id(tensor) for tensor in (*module.parameters(), *module.buffers())],
        "training": [part.training for part in module.modules()],
        "gradients": [tensor.requires_grad for tensor in module.parameters()],
        "random": torch.get_rng_state(),
        "threads": torch.get_num_threads(),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    tensors, others = before["tensors"], after["tensors"]
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())
    assert torch.equal(before["random"], after["random"])
    for name in ("objects", "training", "gradients", "threads"):
        assert before[name] == after[name]


def command(*words: object) -> Any:
    return CliRunner().invoke(main, [*map(str, words), "--json"])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("target", [SOUND, LEAKING])
def test_a_check_of_a_text_is_that_of_the_command(target: str) -> None:
    report = lengthwise_export.check(target, **SHORT)
    done = command("check", target, "--max-length", 40)
    assert report.to_dict() == orjson.loads(done.stdout)
    assert report.exit_code() == done.exit_code
    assert report.target == target


def test_a_module_is_a_target_as_its_factory_is() -> None:
    torch.manual_seed(0)
    module = Mean(leaks=True)
    report = lengthwise_export.check(module, **SHORT)
    assert (report.verdict, report.target) == ("leak", "Mean")
    assert report.to_dict()["leaks"][0]["file"].endswith("users_models.py")
    assert lengthwise_export.check(Mean(), **SHORT).verdict == "sound"


def test_a_graph_and_the_path_of_a_directory_are_targets(tmp_path: Path) -> None:
    graph = onnx_sound.bool_mask_mean()
    before = graph.SerializeToString()
    assert lengthwise_export.check(graph, **SHORT).verdict == "sound"
    published = lengthwise_export.export(graph, tmp_path / "graph", tolerance=0.0, **SHORT)
    assert graph.SerializeToString() == before
    report = lengthwise_export.check(published.directory, **SHORT)
    assert report.verdict == "sound"
    assert report.served is not None
    assert report.served in " ".join(str(report).split())


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("act", "make"), [("check", Noting), ("export", Noting), ("export", Tagger)])
def test_a_module_is_left_as_it_was(act: str, make: type[nn.Module], tmp_path: Path) -> None:
    module = make().train()
    if make is Noting:
        next(module.children()).eval()
    next(module.parameters()).requires_grad_(False)
    before = state(module)
    if act == "check":
        lengthwise_export.check(module, **SHORT)
    else:
        lengthwise_export.export(module, tmp_path / "model", **SHORT)
    assert_same(before, state(module))


@pytest.mark.long
def test_weights_of_a_checkpoint_are_tried_and_taken_out_again(tmp_path: Path) -> None:
    sound, other = Mean(), Mean()
    torch.save(other.state_dict(), tmp_path / "other.pt")
    before = state(sound)
    published = lengthwise_export.export(sound, tmp_path / "m" / "1", checkpoint=tmp_path / "other.pt", **SHORT)
    assert_same(before, state(sound))
    values, lengths = torch.randn(1, 5, 3), torch.tensor([5])
    expected = other(values, lengths).softmax(dim=1).detach().numpy()
    (prediction,) = lengthwise.load(published.directory).predict(values.numpy())
    np.testing.assert_allclose(prediction.probabilities, expected[0], rtol=1e-5)
    torch.save(Tagger().state_dict(), tmp_path / "tagger.pt")
    before = state(sound)
    with pytest.raises(CheckpointError):
        lengthwise_export.check(sound, checkpoint=str(tmp_path / "tagger.pt"))
    assert_same(before, state(sound))


@pytest.mark.long
def test_what_is_published_is_what_the_command_publishes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lengthwise.export"):
        published = lengthwise_export.export(SOUND, tmp_path / "api" / "m", labels=["a", "b", "c"], **SHORT)
    done = command("export", SOUND, "--out", tmp_path / "cli" / "m", "--labels", "a,b,c", "--max-length", 40)
    assert done.exit_code == 0, done.output
    names = sorted(path.name for path in published.directory.iterdir())
    assert (published.version, published.directory) == (1, tmp_path / "api" / "m" / "1")
    assert names == sorted(path.name for path in (tmp_path / "cli" / "m" / "1").iterdir())
    for name in names:
        assert (published.directory / name).read_bytes() == (tmp_path / "cli" / "m" / "1" / name).read_bytes()
    assert published.notices == (
        "no --checkpoint: the weights are the factory's own; pass --checkpoint FILE if trained ones are in a file",
    )
    logged = [record for record in caplog.records if record.name == "lengthwise.export"]
    assert [(record.levelname, record.getMessage()) for record in logged] == [("WARNING", published.notices[0])]
    assert done.stderr == f"warning: {published.notices[0]}\n"
    assert repr(published).startswith(f"<lengthwise_export.PublishedModel m/1: {published.directory}, ")


@pytest.mark.long
def test_the_weights_of_an_object_are_those_that_are_meant(tmp_path: Path) -> None:
    published = lengthwise_export.export(Mean(), tmp_path / "mean", labels=("no", "yes"), **SHORT)
    (rewritten,) = published.notices
    assert rewritten.startswith("rewritten: ReduceSum ")
    assert published.manifest.promises[0].bits
    assert "weights" not in published.manifest.made
    assert published.manifest.labels == ("no", "yes")
    assert lengthwise.load(tmp_path / "mean").labels == ("no", "yes")


def test_a_leak_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(VerificationError):
        lengthwise_export.export(Mean(leaks=True), tmp_path / "m", **SHORT)
    assert list(tmp_path.iterdir()) == []
    lengthwise_export.export(Mean(), tmp_path / "m" / "1", **SHORT)
    with pytest.raises(PublishError):
        lengthwise_export.export(Mean(), tmp_path / "m" / "1", **SHORT)


@pytest.mark.long
def test_a_report_is_shown_as_text_and_in_a_notebook() -> None:
    report = lengthwise_export.check(Mean(leaks=True), **SHORT)
    assert repr(report).startswith("<lengthwise_export.CheckReport Mean: leak, the answer to a sequence changes with: ")
    text = str(report)
    assert text.startswith("leak  Mean: ")
    assert "users_models.py" in text
    assert "\x1b" not in text
    frame = report._repr_html_()
    assert frame.startswith("<iframe srcdoc=")
    assert "<svg" in html.unescape(frame.split('"')[1])


class ElsewhereMean(Mean):
    """On no processor."""


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda: Mean, r"Mean is a class, and not a module: give an instance of it, such as Mean\(\)"),
        (lambda: int, "'int'> is not a target: give a torch.nn.Module"),
        (lambda: 5, "5 is not a target"),
        (lambda: None, "None is not a target"),
        (lambda: "nothing.onnx", "there is no file nothing.onnx"),
        (lambda: Path("nothing.toml"), "there is no file nothing.toml"),
        (lambda: ElsewhereMean().to("meta"), "ElsewhereMean is on meta: give copy"),
        (lambda: onnx.ModelProto(), "the graph holds no graph"),
    ],
)
def test_what_is_no_target_is_said(given: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        lengthwise_export.check(given())


OUT_OF_BOUNDS = {"features": 0, "classes": True, "vocabulary": 2.0, "second": "length", "missing": "zero", "opset": 99}
OUT_OF_BOUNDS |= {"max_length": 0, "tolerance": -1.0, "seed": "0", "checkpoint": "nothing.pt", "threshold": 1.0}
OUT_OF_BOUNDS |= {"scores": "probability", "precision": "fp8", "labels": "no,yes"}


@pytest.mark.parametrize(("name", "value"), [*OUT_OF_BOUNDS.items(), ("labels", [1, 2])])
def test_options_out_of_bounds_are_said_by_name(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name} must be "):
        lengthwise_export.export(Mean(), tmp_path / "m", **{name: value})


def test_options_are_an_object_or_keywords_and_progress_is_reported() -> None:
    options = CheckOptions(max_length=40, seed=1)
    told: list[str] = []
    module = Mean()
    report = lengthwise_export.check(module, options=options, seed=2, progress=told.append)
    assert report == lengthwise_export.check(module, seed=2, **SHORT)
    assert len(told) > 10
    assert {trial.name for trial in report.trials} <= {*told}
    with pytest.raises(TypeError, match="featurs"):
        lengthwise_export.check(module, featurs=3)


def test_an_export_names_its_phases_and_the_trials_of_its_check(tmp_path: Path) -> None:
    told: list[str] = []
    lengthwise_export.export(Mean(), tmp_path / "m", labels=("no", "yes"), progress=told.append, **SHORT)
    assert told[-3:] == ["building the graph", "verifying the graph", "choosing kernels and publishing"]
    assert "junk in the padding" in told[:-3]


@pytest.mark.long
def test_options_mean_what_they_mean_to_the_command(tmp_path: Path) -> None:
    report = lengthwise_export.check(Mean(), features=4, **SHORT)
    assert (report.verdict, str(report)[:19]) == ("uncheckable", "uncheckable  Mean: ")
    published = lengthwise_export.export(
        Mean(), tmp_path / "m", multi_label=True, threshold=0.75, features=3, opset=20, tolerance=1e-3, **SHORT
    )
    assert (published.manifest.task, published.manifest.threshold) == ("multi-label", 0.75)
    opsets = {opset.version for opset in onnx.load(published.directory / "model.onnx").opset_import if not opset.domain}
    assert opsets == {20}


@pytest.mark.long
def test_threads_check_copies_at_once_alike_and_leave_torch_as_it_was() -> None:
    sound, leaking = Mean().train(), Mean(leaks=True).train()
    before = [state(sound), state(leaking)]
    checked = [sound, leaking] * 3 + [copy.deepcopy(sound), copy.deepcopy(leaking)]
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda module: lengthwise_export.check(module, **SHORT), checked))
    assert [report.verdict for report in reports] == ["sound", "leak"] * 4
    assert len({str(report) for report in reports}) == 2
    for module, kept in zip((sound, leaking), before, strict=True):
        assert_same(kept, state(module))


@pytest.mark.long
def test_the_examples_in_the_docstrings_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(MASKING.parents[1])
    globs = {"lengthwise_export": lengthwise_export, "folder": tmp_path}
    found = doctest.DocTestFinder(recurse=True).find(api, globs=globs)
    tried = [doctest.DocTestRunner().run(test) for test in found if test.examples]
    assert len(tried) == 2
    assert not any(result.failed for result in tried)


@pytest.mark.long
def test_a_file_that_was_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one in another folder, and one that got the same size within a second."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for nanoseconds, (folder, masked) in enumerate((("one", "not 0"), ("one", "not 1"), ("two", "True"))):
        (tmp_path / folder).mkdir(exist_ok=True)
        file = tmp_path / folder / "twice.py"
        file.write_text(MASKING.read_text().replace("LstmAttention(masked=True)", f"LstmAttention(masked={masked})"))
        os.utime(file, ns=(10**18 + nanoseconds, 10**18 + nanoseconds))
        report = lengthwise_export.check(f"{file}:masked_attention_after_lstm", **SHORT)
        assert report.verdict == ("leak" if masked == "not 1" else "sound"), nanoseconds
