import sys
from pathlib import Path
from typing import Any

import click
import onnx
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from lengthwise.commands.cli import main
from lengthwise.commands.options import flags
from lengthwise.errors import ConfigurationError, ManifestError
from lengthwise.padding import pad
from lengthwise_export.errors import CheckpointError, SpecError
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets import targets
from lengthwise_export.targets.target import DirectoryTarget, GraphTarget, ModuleTarget, SpecTarget, labels_of
from lengthwise_export.targets.torch_targets import module_of
from tests.gallery.index import ONNX_SOUND

BUNDLED = Path(__file__).parents[2] / "service" / "lengthwise" / "models" / "japanese-vowels" / "1"

MODULE = """
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence


class Last(nn.Module):
    def __init__(self, features=3):
        super().__init__()
        self.rnn = nn.GRU(features, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.head(self.rnn(packed)[1][-1])


class Either(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(3, 2)
        self.other = nn.Linear(5, 2)

    def forward(self, x, lengths):
        step = self.one if x.shape[-1] == 3 else self.other
        return torch.stack([step(row[: int(n)]).sum(0) for row, n in zip(x, lengths)])


def make():
    return Last()


def raises():
    raise RuntimeError("no weights here")


def text():
    return "a model"


def inner_error():
    return len(3)


class Sized(Last):
    def __init__(self, *, features):
        super().__init__(features)


class Compiled(nn.Module):  # as torch.compile wraps a module
    def __init__(self):
        super().__init__()
        self._orig_mod = Last()

    def forward(self, *args, **kwargs):
        return self._orig_mod(*args, **kwargs)


def parallel():
    return nn.DataParallel(Last())


class OneRow(Last):
    def forward(self, x, lengths):
        if x.size(0) != 1:
            raise ValueError("one at a time")
        return super().forward(x, lengths)


either = Either()
number = 7


class Namespace:
    make = Last


def quits():
    raise SystemExit(0)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "users.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("import there_is_no_such_package\n")
    (tmp_path / "fails.py").write_text("1 / 0\n")
    (tmp_path / "quits.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("users", "broken", "fails", "quits"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    return tmp_path


@pytest.mark.long
def test_a_factory_gives_a_target_of_the_same_weights_each_time(folder: Path) -> None:
    target, again = (targets.read("users:make", TargetOptions()) for _ in range(2))
    assert type(target) is ModuleTarget
    assert (target.steps.features, target.labels, target.per_step) == (3, ("0", "1"), False)
    batch = pad([torch.ones(4, 3).numpy()])
    logits = target.subject.answer(batch).logits
    assert logits.shape == (1, 2)
    assert (logits == again.subject.answer(batch).logits).all()
    named = targets.read("users:make", TargetOptions(labels=("no", "yes")))
    assert named.labels == ("no", "yes")
    assert [value.name for value in named.build("users", 18).graph.input] == ["values", "lengths"]
    assert targets.read("users:either", TargetOptions(features=5)).steps.features == 5


def test_a_users_package_goes_before_an_installed_one_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("installed", "users"):
        (tmp_path / name / "twice_there").mkdir(parents=True)
        (tmp_path / name / "twice_there" / "__init__.py").write_text(f"{MODULE}\nWHOSE = {name!r}\n")
    monkeypatch.chdir(tmp_path / "users")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "installed"), *sys.path, str(tmp_path / "users")])
    targets.read("twice_there:make", TargetOptions())
    assert sys.modules.pop("twice_there").WHOSE == "users"
    assert sys.path.count(str(tmp_path / "users")) == 1


@pytest.mark.parametrize(
    "text",
    [
        "users.py:make",
        "users:Last",
        "users:Namespace.make",
        "{folder}/users.py:Last",
        "users:Compiled",
        "users:parallel",
    ],
)
def test_a_factory_is_named_by_file_or_attribute_and_wrappers_are_removed(folder: Path, text: str) -> None:
    assert targets.read(text.format(folder=folder), TargetOptions()).steps.features == 3


def test_a_module_of_one_row_is_left_to_the_check(folder: Path) -> None:
    result = CliRunner().invoke(main, ["check", "users:OneRow"])
    assert (result.exit_code, "rows is frozen at 1" in " ".join(result.stdout.split())) == (2, True), result.output


def test_a_checkpoint_is_put_into_a_users_module(folder: Path) -> None:
    module = module_of("users:make")
    torch.nn.init.zeros_(module.head.weight)
    torch.nn.init.ones_(module.head.bias)
    save_file(module.state_dict(), folder / "weights.safetensors")
    target = targets.read("users:make", TargetOptions(checkpoint=folder / "weights.safetensors"))
    assert (target.subject.answer(pad([torch.ones(4, 3).numpy()])).logits == 1.0).all()
    torch.save({"other": torch.ones(1)}, folder / "other.pt")
    with pytest.raises(CheckpointError):
        targets.read("users:make", TargetOptions(checkpoint=folder / "other.pt"))


NO_MODULES = (
    *("../../etc:make", ":x", "a:", "users:", ":", "a..b:make", ".users:make", "..:x", ".:x", "users.py::make"),
    *("folder/users:make", "folder\\users:make", "notes.txt:make", " :make"),
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("users:nothing", "users has no nothing; it has .*make"),
        ("users.py", "also name the function that returns the module, as in users.py:FACTORY"),
        ("users:raises", r"no weights here \(users.py:"),
        ("users:quits", r"raises: SystemExit: 0 \(users.py:"),
        ("quits:make", r"importing it raises SystemExit: 0 \(quits.py:1\)"),
        ("users:text", "gives a str"),
        ("users:number", "is a int: name a function"),
        ("no_such_module:make", "no module no_such_module, neither installed nor below"),
        ("users.inner:make", "no module users.inner|users is not a package"),
        ("broken:make", "needs there_is_no_such_package, which is not installed"),
        ("fails:make", "ZeroDivisionError"),
        ("missing.py:make", "there is no file missing.py"),
        ("missing.toml", "there is no file missing.toml"),
        ("model.h5", "there is no file model.h5"),
        ("model.tflite", "is not a target: a target is a spec"),
        ("", "is not a target: a target is a spec"),
        *((text, "write file.py:factory, or package.module:factory") for text in NO_MODULES),
        ("users:Last.forward", "raises: TypeError: .* name a function without arguments that returns the module"),
        ("users:Sized", "raises: TypeError: .* name a function without arguments that returns the module"),
        ("users:inner_error", r"raises: TypeError: .* \(users.py:\d+\)$"),
    ],
)
def test_what_is_no_target_is_a_wrong_call(folder: Path, text: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        targets.read(text, TargetOptions())


@pytest.mark.parametrize(
    ("text", "labels"),
    [("no, yes", ("no", "yes")), ('"a, b",c', ("a, b", "c")), ('5" pipe,"say ""x"""', ('5" pipe', 'say "x"'))],
)
def test_a_label_in_quotes_may_have_a_comma(text: str, labels: tuple[str, ...]) -> None:
    seen: list[TargetOptions] = []
    command = click.command()(flags(TargetOptions)(lambda options: seen.append(options)))
    command(["--labels", text], standalone_mode=False)
    assert seen[0].labels == labels


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("either", {}, "--features 3 and with --features 5"),
        ("make", {"features": 3, "vocabulary": 9}, "--vocabulary"),
        ("make", {"labels": ("a", "b", "c")}, "--labels"),
        ("make", {"labels": ("a", "a")}, "--labels"),
        ("make", {"classes": 5}, "--classes"),
    ],
)
def test_options_that_contradict_the_module_are_refused(folder: Path, name: str, options: Any, named: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        targets.read(f"users:{name}", TargetOptions(**options))
    assert named in str(caught.value)


@pytest.mark.parametrize("names", [("a", ""), ("", "b"), ("", ""), ("a", " "), ("",), ("a", "b", "")])
def test_a_label_without_a_name_is_an_error(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError):
        labels_of("mine.py:make", TargetOptions(labels=names), 2)


def test_a_spec_is_the_built_in_architecture(tmp_path: Path) -> None:
    spec = tmp_path / "tiny.toml"
    spec.write_text('[input]\nfeatures = 3\n[model]\nhidden = 4\nlayers = 1\n[output]\nlabels = ["a", "b"]\n')
    target = targets.read(str(spec), TargetOptions())
    assert (type(target), target.labels, target.traced) == (SpecTarget, ("a", "b"), True)
    assert CliRunner().invoke(main, ["check", str(spec)]).exit_code == 0
    for said in (TargetOptions(features=4), TargetOptions(second="mask")):
        with pytest.raises(ConfigurationError, match="--features" if said.features else "--second"):
            targets.read(str(spec), said)
    spec.write_text("[input]\n")
    with pytest.raises(SpecError):
        targets.read(str(spec), TargetOptions())


def test_an_onnx_file_keeps_its_graph(tmp_path: Path) -> None:
    (exhibit,) = (exhibit for exhibit in ONNX_SOUND if exhibit.name == "gru_time_first")
    path = exhibit.save(tmp_path)
    target = targets.read(str(path), TargetOptions(labels=("a", "b")))
    assert (type(target), target.names.time_first, target.traced) == (GraphTarget, True, False)
    assert target.build("name", 18).SerializeToString() == onnx.load(path).SerializeToString()
    with pytest.raises(ConfigurationError, match="--checkpoint"):
        targets.read(str(path), TargetOptions(checkpoint=path))
    path.write_bytes(b"no graph")
    with pytest.raises(ConfigurationError):
        targets.read(str(path), TargetOptions())


def test_a_model_directory_is_read_by_its_manifest(tmp_path: Path) -> None:
    target = targets.read(str(BUNDLED), TargetOptions(features=12))
    assert (type(target), len(target.labels)) == (DirectoryTarget, 9)
    with pytest.raises(ConfigurationError, match="--labels"):
        targets.read(str(BUNDLED), TargetOptions(labels=("a",)))
    with pytest.raises(ConfigurationError):
        targets.read(str(tmp_path), TargetOptions())
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ManifestError):
        targets.read(str(tmp_path), TargetOptions())


OUTSIDE = """
import numpy
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm


class Kernels(nn.Module):
    def __init__(self, kernels=None):
        super().__init__()
        self.kernels, self.head = kernels, nn.Linear(3, 2)

    def drawn(self):
        return self.kernels

    def forward(self, x, lengths):
        valid = torch.arange(x.shape[1]) < lengths[:, None]
        drawn = self.drawn()
        return self.head((x * valid[..., None]).sum(1) * (1 if drawn is None else torch.as_tensor(drawn)))


class First(Kernels):  # as tsai's Hydra: what is drawn is in no state_dict
    def drawn(self):
        return self.kernels[0]


class Unread(Kernels):
    def drawn(self):
        return None


class OwnDict(Kernels):
    def state_dict(self):
        return super().state_dict()


def attribute():
    return Kernels(torch.randn(3))


def listed():
    return First([torch.randn(3), None])


def keyed():
    return First({0: torch.randn(3)})


def array():
    return Kernels(torch.randn(3).numpy())


def buffer():
    module = Kernels()
    del module.kernels
    module.register_buffer("kernels", torch.randn(3), persistent=False)
    return module


def fixed():
    return First((torch.arange(3), "a name"))


def seeded():
    torch.manual_seed(5)
    return attribute()


def shared():
    module = Unread()
    module.kernels = [module.head.weight.T]
    return module


def example():
    return Unread(torch.randn(3))


def scratch():
    return Unread(torch.full((3,), torch.nan))


def sparse():
    return Unread(torch.randn(3).to_sparse())


def meta():
    return Unread(torch.empty(3, device="meta"))


def old_norm():
    module = Kernels()
    spectral_norm(module.head)
    return module


def new_norm():
    module = Kernels()
    parametrizations.weight_norm(module.head)
    return module


def pruned():
    module = Kernels()
    prune.random_unstructured(module.head, "weight", 1)
    return module


def own_dict():
    return OwnDict(torch.arange(3))


made = []


def once():
    if made:
        raise ValueError("already registered")
    made.append(True)
    return attribute()
"""


def saved(tmp_path: Path, name: str) -> tuple[str, TargetOptions]:
    """A factory of `OUTSIDE`, and the options with the weights of a module of it that another seed drew."""
    (tmp_path / "outside.py").write_text(OUTSIDE)
    text, weights = f"{tmp_path / 'outside.py'}:{name}", tmp_path / "w.pt"
    torch.save(module_of(text, seed=3).state_dict(), weights)
    return text, TargetOptions(checkpoint=weights)


@pytest.mark.parametrize("name", ["attribute", "listed", "keyed", "array", "buffer"])
def test_what_is_drawn_at_random_and_in_no_file_is_refused(tmp_path: Path, name: str) -> None:
    text, options = saved(tmp_path, name)
    with pytest.raises(CheckpointError, match=rf"{name} draws something .*look at kernels.*w\.pt it is another model"):
        targets.read(text, options)


ANSWERS_ALIKE = ("fixed", "seeded", "shared", "example", "scratch", "sparse", "meta", "old_norm", "new_norm", "pruned")


@pytest.mark.parametrize("name", [*ANSWERS_ALIKE, "own_dict", "once"])
def test_what_answers_alike_or_is_made_once_keeps_its_checkpoint(tmp_path: Path, name: str) -> None:
    text, options = saved(tmp_path, name) if name != "once" else (*saved(tmp_path, "attribute"),)
    target = targets.read(text.replace("attribute", name), options)
    assert isinstance(target, ModuleTarget)
    held = torch.load(str(options.checkpoint))
    read = target.subject.module.state_dict()
    assert held.keys() == read.keys()
    assert all(torch.equal(held[key], tensor) for key, tensor in read.items())


def test_a_folder_with_a_graph_alone_names_it(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"neither manifest\.json .*; there is .*model\.onnx: name one"):
        targets.read(str(tmp_path), TargetOptions())
