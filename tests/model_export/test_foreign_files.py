"""Files that hold a whole model are recognised and refused without running what is in them; each cure works."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

from lengthwise.errors import ConfigurationError
from lengthwise.padding import pad
from lengthwise_export.architecture import checkpoint, foreign_files
from lengthwise_export.errors import CheckpointError
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets import targets
from lengthwise_export.targets.target import Target


def model() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv1d(4, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 3))
    return nn.Sequential(*layers).eval()


EXAMPLE = torch.randn(2, 4, 20)


def traced(path: Path) -> None:
    torch.jit.save(torch.jit.trace(model(), EXAMPLE), path)


def exported(path: Path) -> None:
    sizes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC},)
    torch.export.save(torch.export.export(model(), (EXAMPLE,), dynamic_shapes=sizes), path)


def written_by_fastai(path: Path) -> None:
    """A pickle that names a class of fastai, as `Learner.export` writes it; there is no fastai here."""
    code = (
        "import sys, types, torch\n"
        "module = types.ModuleType('fastai.learner')\n"
        "sys.modules['fastai'] = types.ModuleType('fastai'); sys.modules['fastai.learner'] = module\n"
        "module.Learner = type('Learner', (), {'__module__': 'fastai.learner'})\n"
        "learn = module.Learner(); learn.model = torch.nn.Linear(2, 2)\n"
        "torch.save(learn, sys.argv[1])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


OF_TORCH = r"a pickled torch.nn.modules.container.Sequential, .*model.state_dict\(\)"
FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "traced.pt": (traced, r"is TorchScript, .*torch.onnx.export\(torch.jit.load"),
    "scripted.ptl": (
        lambda path: torch.jit.save(torch.jit.script(model()), path),
        r"is TorchScript, .*torch.onnx.export\(torch.jit.load",
    ),
    "program.pt2": (exported, r"written by torch.export.save, .*returns torch.export.load"),
    "whole.pt": (lambda path: torch.save(model(), path), OF_TORCH),
    "old.pth": (lambda path: torch.save(model(), path, _use_new_zipfile_serialization=False), OF_TORCH),
    "learner.pkl": (written_by_fastai, r"a pickled fastai.learner.Learner, .*learn.model.state_dict\(\).*--mend"),
}


@pytest.mark.sampled(6)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FILES)
def test_a_whole_model_is_refused_as_a_target_and_as_a_checkpoint(tmp_path: Path, name: str) -> None:
    write, why = FILES[name]
    write(tmp_path / name)
    as_target = partial(targets.read, str(tmp_path / name), TargetOptions())
    for error, read in (
        (ConfigurationError, as_target),
        (CheckpointError, partial(checkpoint.weights, tmp_path / name)),
    ):
        with pytest.raises(error, match=why):
            read()


@pytest.mark.parametrize("is_new", [True, False])
def test_weights_alone_are_not_refused(tmp_path: Path, is_new: bool) -> None:
    path = tmp_path / "weights.pt"
    torch.save(model().state_dict(), path, _use_new_zipfile_serialization=is_new)
    assert foreign_files.why_refused(path) is None
    with pytest.raises(ConfigurationError):
        targets.read(str(path), TargetOptions())


class Trap:
    """Unpickling it makes a folder."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("trap",)


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_pickle_is_named_and_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
    monkeypatch.chdir(tmp_path)
    Path("trap.pkl").write_bytes(pickle.dumps(Trap(), protocol=protocol))
    assert "posix.mkdir" in (foreign_files.why_refused(Path("trap.pkl")) or "")
    assert not Path("trap").exists()


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04 cut", b"\x80\x02cut", b"\x80", b"text"])
def test_a_damaged_file_is_not_of_any_kind(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(content)
    assert foreign_files.why_refused(path) is None
    assert foreign_files.why_refused(tmp_path / "absent.pt") is None


def require_the_models_answers(target: Target) -> None:
    batch = pad([np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)])
    with torch.no_grad():
        expected = model()(torch.tensor(batch.steps).mT).numpy()
    np.testing.assert_allclose(target.subject.answer(batch).logits, expected, atol=1e-6)


@pytest.mark.long
def test_a_program_of_torch_export_is_a_target_where_the_user_loads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exported(Path("model.pt2"))
    body = "import torch\n\n\ndef make():\n    return torch.export.load('model.pt2'){}\n"
    for name, ending in (("module_of_it", ".module()"), ("itself", "")):
        Path(f"{name}.py").write_text(body.format(ending))
        target = targets.read(f"{name}.py:make", TargetOptions(channels_first=True, features=4), blind=True)
        require_the_models_answers(target)
    graph = target.build("model", 18)
    assert [value.name for value in graph.graph.input] == ["values"]


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_a_target_once_it_is_a_graph(tmp_path: Path) -> None:
    traced(tmp_path / "model.pt")
    script = torch.jit.load(tmp_path / "model.pt")
    with pytest.raises(ConfigurationError):
        targets.read(script, TargetOptions(), blind=True)
    torch.onnx.export(
        script,
        (EXAMPLE,),
        str(tmp_path / "model.onnx"),
        dynamo=False,
        input_names=["x"],
        dynamic_axes={"x": {0: "rows", 2: "width"}},
    )
    target = targets.read(str(tmp_path / "model.onnx"), TargetOptions(), blind=True)
    assert (target.blind, target.names.channels_first) == (True, True)
    require_the_models_answers(target)


def test_the_weights_of_a_learner_are_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also as `Learner.save` writes them, beside the state of the optimizer."""
    monkeypatch.chdir(tmp_path)
    torch.save({"model": model().state_dict(), "opt": {"hypers": [{"lr": 1e-3}], "state": []}}, "learner.pth")
    empty = model()
    for weight in empty.parameters():
        nn.init.zeros_(weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = TargetOptions(checkpoint=Path("learner.pth"), channels_first=True)
        target = targets.read(empty, options, blind=True)
    assert target.notices == ()
    require_the_models_answers(target)
