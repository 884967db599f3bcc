"""Keras files: what is read from them, and that nothing in them is run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from lengthwise.commands.cli import main
from lengthwise.errors import ConfigurationError
from lengthwise.padding import pad
from lengthwise_export.checking.check import check_subject
from lengthwise_export.keras_models import keras_targets
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets import targets
from tests.support import keras_files
from tests.support.keras_models import CLASSES, FEATURES, alone, built, keras, saved, sequential, two_lstms

Config = dict[str, Any]


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Keras', about masks that layers drop


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(two_lstms(), tmp_path_factory.mktemp("keras") / "model.keras")


@pytest.fixture(scope="module")
def old_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(two_lstms(), tmp_path_factory.mktemp("keras") / "model.h5")


def rewritten(file: Path, into: Path, change: Callable[[Config], object]) -> Path:
    """A copy of a file with a changed configuration."""
    copy = into / "changed.keras"
    copy.write_bytes(file.read_bytes())
    return keras_files.with_config(copy, change)


def why_refused(path: Path) -> str:
    with pytest.raises(ConfigurationError) as error:
        keras_targets.load(path)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["file", "old_file"])
def test_a_file_is_a_target_with_the_weights_that_it_holds(name: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(name)
    target = targets.read(path, TargetOptions(labels=("a", "b", "c")))
    assert (type(target), target.steps.features, target.labels) == (
        keras_targets.KerasTarget,
        FEATURES,
        ("a", "b", "c"),
    )
    values = np.linspace(-1, 1, 5 * FEATURES, dtype=np.float32).reshape(5, FEATURES)
    own = target.subject.answer(pad([values], width=8)).logits[0]
    assert np.abs(own - alone(two_lstms(), values)).max() < 1e-6


def test_a_file_without_its_suffix_of_version_3_is_read_too(old_file: Path, file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        targets.read("nothing.keras", TargetOptions())
    named_otherwise = tmp_path / "model.h5"
    named_otherwise.write_bytes(file.read_bytes())
    assert keras_targets.load(named_otherwise).count_params() == two_lstms().count_params()


LAYER: Callable[[Config], Config] = lambda config: config["config"]["layers"][2]  # noqa: E731 - the first LSTM


def evil(**changes: Any) -> Callable[[Config], None]:
    return lambda config: LAYER(config).update(changes)


def inner(**changes: Any) -> Callable[[Config], None]:
    return lambda config: LAYER(config)["config"].update(changes)


def function_of(module: str, name: str) -> Config:
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (evil(class_name="Lambda"), r"lstm\w* \(Lambda\) is not read: its function is code"),
        (evil(module="os", class_name="system"), "is not read: its class is not in the file|not among the layers"),
        (evil(module="builtins", class_name="eval"), "calls the function"),
        (evil(module="keras.utils", class_name="get_file"), "is not read"),
        (evil(module="keras.src.utils.file_utils", class_name="get_file"), "is not read"),
        (evil(module="my_package.layers", class_name="MyLayer", registered_name="Mine>MyLayer"), "file.py:factory"),
        (evil(registered_name="Mine>LSTM"), "its class is not in the file"),
        (evil(class_name="TorchModuleWrapper"), "holds a pickled module"),
        (evil(class_name="TFSMLayer"), "runs TensorFlow"),
        (evil(class_name="TextVectorization"), "prepares data"),
        (evil(class_name="ConvLSTM1D"), "TimeDistributed"),
        (evil(class_name="Conv2D"), "not among the layers of sequence models"),
        (evil(class_name=["LSTM"]), "names a class that is no text"),
        (evil(module="keras.src.ops.core", class_name="Map"), "is not read"),
        (inner(activation=function_of("os", "system")), "calls the function 'system'"),
        (inner(activation=function_of("builtins", "exec")), "calls the function 'exec'"),
        (inner(activation={"class_name": "__lambda__", "config": {"value": "eA=="}}), "is not read"),
        (inner(stateful=True), "is stateful"),
        (inner(dtype="mixed_float16"), "computes in mixed_float16"),
        (inner(dtype={"class_name": "DTypePolicy", "config": {"name": "float16"}}), "computes in float16"),
        (inner(units=1_000_000), "weights, and the file holds"),
        (inner(units=-1), "cannot be read by Keras"),
        (inner(units="many"), "cannot be read by Keras"),
        (lambda config: config.clear(), "describes no model"),
        (lambda config: config.update(class_name="LSTM"), "cannot be read by Keras|which is no model"),
        (lambda config: config["config"].update(layers=[]), "weights do not fit|cannot be read"),
    ],
)
def test_a_configuration_with_anything_unknown_is_refused(
    file: Path, tmp_path: Path, change: Callable[[Config], None], why: str
) -> None:
    said = why_refused(rewritten(file, tmp_path, change))
    assert re.search(why, said), said


def test_what_only_training_needs_is_not_even_looked_at(file: Path, tmp_path: Path) -> None:
    def change(config: Config) -> None:
        LAYER(config)["config"].update(
            kernel_regularizer={"module": "os", "class_name": "system", "config": {}},
            kernel_initializer={"module": "os", "class_name": "system", "config": {}},
        )
        config["compile_config"] = {"loss": function_of("os", "system")}

    assert keras_targets.load(rewritten(file, tmp_path, change)).count_params() == two_lstms().count_params()


def test_a_class_that_this_process_has_registered_is_allowed(tmp_path: Path) -> None:
    made = keras()

    @made.saving.register_keras_serializable("lengthwise_tests")
    class Doubled(made.layers.Layer):  # type: ignore[misc, name-defined]  # Keras has no types
        def call(self, x: Any) -> Any:
            return x * 2.0

    path = saved(built(lambda: sequential(Doubled(), made.layers.GRU(3))), tmp_path / "own.keras")
    assert type(keras_targets.load(path).layers[0]).__name__ == "Doubled"
    held = path.read_bytes()
    made.saving.get_custom_objects().clear()
    path.write_bytes(held)
    assert "Doubled" in why_refused(path)


def test_an_old_file_is_examined_too(old_file: Path, tmp_path: Path) -> None:
    import h5py

    def said(config: str | None) -> str:
        path = tmp_path / "bad.h5"
        path.write_bytes(old_file.read_bytes())
        with h5py.File(path, "r+") as opened:
            if config is None:
                del opened.attrs["model_config"]
            else:
                opened.attrs["model_config"] = config
        return why_refused(path)

    with h5py.File(old_file) as opened:
        own = json.loads(opened.attrs["model_config"])
    own["config"]["layers"][-1]["class_name"] = "Lambda"
    assert "(Lambda) is not read" in said(json.dumps(own))
    assert "holds weights only" in said(None)
    assert "is not JSON" in said("{")
    own["config"]["layers"][-1].update(class_name="Dense", config={"what": 3})
    assert "model.save('model.keras')" in said(json.dumps(own))


@pytest.mark.long
def test_a_factory_may_return_a_keras_model_with_layers_of_its_own() -> None:
    name = "tests.gallery.keras_leaking:positions_from_the_end"
    target = targets.read(name, TargetOptions())
    assert (type(target), target.steps.features, len(target.labels)) == (keras_targets.KerasTarget, 4, CLASSES)
    report = CliRunner().invoke(main, ["check", name, "--max-length", "16", "--json"])
    told = json.loads(report.stdout)
    assert told["verdict"] == "leak"
    (leak, *_) = told["leaks"]
    assert "ops.flip(ops.arange(steps))" in leak["source"]
    assert re.match(r"recency\w*: flip$", leak["operator"])


@pytest.mark.process
def test_a_keras_of_another_backend_is_refused_with_the_cure(tmp_path: Path) -> None:
    program = (
        "import sys, types\n"
        "keras = types.ModuleType('keras'); keras.ops = keras; keras.__version__ = '3.15'\n"
        "keras.config = types.SimpleNamespace(backend=lambda: 'jax'); sys.modules['keras'] = keras\n"
        "from lengthwise_export.keras_models.backend import import_keras\n"
        "try: import_keras()\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert told.stdout.startswith("ConfigurationError Keras was imported with the backend jax")
    assert "Set KERAS_BACKEND=torch before the first import of keras" in told.stdout


def test_reading_a_file_changes_no_random_numbers_of_torch(file: Path) -> None:
    torch.manual_seed(5)
    first = torch.rand(1)
    torch.manual_seed(5)
    keras_targets.load(file)
    assert torch.equal(torch.rand(1), first)


@pytest.mark.long
def test_a_subclassed_model_is_checked_and_traced() -> None:
    name = "tests.gallery.keras_sound:VisitModel"
    with pytest.raises(ConfigurationError, match="--features N"):
        targets.read(name, TargetOptions())
    target = targets.read(name, TargetOptions(features=7))
    assert check_subject(target.subject, max_length=16).verdict == "sound"
    kinds = [node.op_type for node in target.build("net", 18).graph.node]
    assert kinds.count("GRU") == 1
