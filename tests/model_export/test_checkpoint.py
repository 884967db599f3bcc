import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lengthwise_export.architecture import checkpoint
from lengthwise_export.errors import CheckpointError


class Trap:
    """What a hostile file would hold: unpickling it runs code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("trap",)


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def test_tensors_and_state_come_back_together(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    checkpoint.write(path, {"a": torch.arange(3.0)}, {"epoch": 4})
    tensors, state = checkpoint.read(path)
    assert tensors["a"].tolist() == [0.0, 1.0, 2.0]
    assert state == {"epoch": 4}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_keeps_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "s.safetensors"
    checkpoint.write(path, {"a": torch.zeros(1)}, {})

    def broken(*arguments: object) -> None:
        raise BlockingIOError("the disk is full")

    monkeypatch.setattr(os, step, broken)
    with pytest.raises(BlockingIOError):
        checkpoint.write(path, {"a": torch.ones(1)}, {})
    assert checkpoint.read(path)[0]["a"].item() == 0.0
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.safetensors"]


@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model", "net"])
def test_a_state_dict_that_torch_or_a_training_library_saved_is_read(
    tmp_path: Path, module: nn.Module, key: str | None
) -> None:
    held = module.state_dict()
    torch.save(held if key is None else {key: held, "optimizer": {"lr": 0.1}, "epoch": 3}, tmp_path / "m.pt")
    save_file(held, tmp_path / "m.safetensors")  # made elsewhere
    for name in ("m.pt", "m.safetensors"):
        other = nn.Linear(3, 2)
        assert checkpoint.load(other, tmp_path / name) == []
        assert other.weight.equal(module.weight)


def test_a_checkpoint_that_holds_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Trap()}, "m.pt")
    with pytest.raises(CheckpointError):
        checkpoint.weights(Path("m.pt"))
    assert not Path("trap").exists()


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
def test_a_file_that_is_absent_damaged_or_of_another_model_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=name):
        checkpoint.weights(tmp_path / name)
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match=name):
        checkpoint.weights(tmp_path / name)
    other = {"weight": torch.zeros(4, 4), "extra": torch.zeros(1)}
    torch.save(other, tmp_path / name) if name == "m.pt" else save_file(other, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"bias is missing; extra is left over; weight is \[4, 4\] there"):
        checkpoint.load(nn.Linear(3, 2), tmp_path / name)


def under(prefix: str, module: nn.Module) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize(
    "held",
    [
        lambda module: [1, 2],
        lambda module: {"epoch": 3},
        lambda module: {"state_dict": [1]},
        lambda module: {f"layer{index}": torch.zeros(1) for index in range(9)},
        lambda module: under("teacher.", module),
        lambda module: under("model.", module) | under("net.", nn.Linear(3, 2)),
    ],
    ids=["a list", "no tensor", "no tensor in it", "other layers", "another prefix", "two that fit"],
)
def test_what_are_not_the_weights_of_this_model_is_refused(
    tmp_path: Path, module: nn.Module, held: Callable[[nn.Module], object]
) -> None:
    torch.save(held(module), tmp_path / "m.pt")
    with pytest.raises(CheckpointError):
        checkpoint.load(nn.Linear(3, 2), tmp_path / "m.pt")


@pytest.mark.parametrize("prefix", ["model.", "module.", "net.", "_orig_mod.", "module._orig_mod.", "model.net."])
def test_the_prefix_of_a_wrapper_is_left_out_and_told(tmp_path: Path, module: nn.Module, prefix: str) -> None:
    path = tmp_path / "m.pt"
    torch.save(under(prefix, module), path)
    other = nn.Linear(3, 2)
    notices = checkpoint.load(other, path)
    assert notices == [f"{path}: its names begin with {prefix}, which the module's do not: it is removed"]
    assert other.weight.equal(module.weight)


def test_a_prefix_of_the_module_itself_stays(tmp_path: Path, module: nn.Module) -> None:
    outer = nn.ModuleDict({"model": module})
    torch.save(outer.state_dict(), tmp_path / "same.pt")
    assert checkpoint.load(nn.ModuleDict({"model": nn.Linear(3, 2)}), tmp_path / "same.pt") == []
    torch.save(under("module.", outer), tmp_path / "wrapped.pt")
    other = nn.ModuleDict({"model": nn.Linear(3, 2)})
    assert "begin with module., which" in checkpoint.load(other, tmp_path / "wrapped.pt")[0]
    assert other.state_dict()["model.weight"].equal(module.weight)


def test_the_other_weights_of_a_lightning_checkpoint_are_named(tmp_path: Path, module: nn.Module) -> None:
    weights = under("model.", module) | {"loss.weight": torch.ones(2)}
    torch.save({"state_dict": weights, "epoch": 3, "hyper_parameters": {"lr": 0.1}}, tmp_path / "m.ckpt")
    (notice,) = checkpoint.load(nn.Linear(3, 2), tmp_path / "m.ckpt")
    assert notice.endswith("it is removed, and so are the weights of other parts: loss.weight")
