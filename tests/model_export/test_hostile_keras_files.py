"""Keras files that are broken, or made to harm: each is a clear error, and nothing of it runs."""

from __future__ import annotations

import base64
import json
import marshal
import os
import pickle
import stat
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("h5py", reason="the extra `keras` is not installed")

import h5py
from click.testing import CliRunner

from lengthwise.commands.cli import main
from lengthwise.errors import ConfigurationError
from lengthwise_export.keras_models import keras_targets
from tests.support import keras_files
from tests.support.keras_files import CONFIG, WEIGHTS
from tests.support.keras_models import NEEDS_KERAS

pytestmark = [NEEDS_KERAS, pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return keras_files.save(tmp_path / "model.keras")


def refused(path: Path, *words: str) -> str:
    """Reads the file as the command does, and wants an error that has the words and the name of the file."""
    with pytest.raises(ConfigurationError) as caught:
        keras_targets.load(path)
    told = str(caught.value)
    assert path.name in told
    assert len(told) < 1200
    assert told.isprintable(), repr(told)
    for word in words:
        assert word.lower() in told.lower(), told
    return told


def test_a_right_file_is_read_and_the_folder_beside_it_stays_as_it_is(file: Path) -> None:
    import keras

    before = {path: path.read_bytes() for path in file.parent.iterdir() if path.is_file()}
    assert isinstance(keras_targets.load(file), keras.Sequential)
    assert {path: path.read_bytes() for path in file.parent.iterdir() if path.is_file()} == before


# -- the archive ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 100, b"hello", b"PK\3\4", b"PK\3\4 and nothing", b"\x89HDF\r\n\x1a\n", b"PK\5\6" + b"\0" * 18],
)
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    refused(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(file: Path, share: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    refused(file)


def test_a_changed_byte_of_the_weights_is_refused_or_harmless(file: Path) -> None:
    data = file.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(data), 60):
        broken = bytearray(data)
        broken[place] ^= 0xFF
        file.write_bytes(bytes(broken))
        with suppress(ConfigurationError):
            keras_targets.load(file)


@pytest.mark.parametrize("missing", [CONFIG, WEIGHTS])
def test_an_archive_without_a_part_is_refused(file: Path, missing: str) -> None:
    content = keras_files.members(file)
    del content[missing]
    refused(keras_files.write(file, content), missing)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "name",
    [
        "../../evil.txt",
        "/tmp/evil.txt",
        "..\\evil.txt",
        "assets/../../evil.txt",
        "evil.py",
        "assets/evil",
        "evil.weights.h5",
    ],
)
def test_a_member_that_does_not_belong_there_is_refused_and_written_nowhere(file: Path, name: str) -> None:
    before = {path for path in file.parent.parent.rglob("*")}
    refused(keras_files.write(file, {**keras_files.members(file), name: b"evil"}))
    assert {path for path in file.parent.parent.rglob("*")} == before
    assert not Path("/tmp/evil.txt").exists()


def test_a_link_in_the_archive_is_refused(file: Path) -> None:
    content = keras_files.members(file)
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in content.items():
            info = zipfile.ZipInfo(name)
            if name == WEIGHTS:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
                data = b"/etc/passwd"
            archive.writestr(info, data)
    refused(file, "link")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice_is_refused(file: Path) -> None:
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(CONFIG, b"{}")
    refused(file, "twice")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_zip_bomb_is_refused_before_it_is_unpacked(file: Path, name: str) -> None:
    keras_files.write(file, keras_files.members(file) | {name: b"\0" * (64 << 20)}, zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 1 << 20
    refused(file, name)


def test_a_bomb_that_lies_about_its_size_is_refused(file: Path) -> None:
    size = 64 << 20
    keras_files.write(file, keras_files.members(file) | {WEIGHTS: b"\0" * size}, zipfile.ZIP_DEFLATED)
    file.write_bytes(file.read_bytes().replace(struct.pack("<I", size), struct.pack("<I", 4000)))
    refused(file)


@pytest.mark.long
def test_a_configuration_that_lies_about_its_size_is_read_up_to_the_limit(
    file: Path,
) -> None:
    size = (256 << 20) + 0x010203  # four bytes that are nowhere else
    keras_files.write(file, keras_files.members(file) | {CONFIG: b"\0" * size}, zipfile.ZIP_DEFLATED)
    file.write_bytes(file.read_bytes().replace(struct.pack("<I", size), struct.pack("<I", 2)))
    tracemalloc.start()
    refused(file)
    assert tracemalloc.get_traced_memory()[1] < 128 << 20
    tracemalloc.stop()


def test_a_member_that_cannot_be_inflated_is_an_error_with_a_sentence(file: Path) -> None:
    keras_files.write(file, keras_files.members(file), zipfile.ZIP_DEFLATED)
    damaged = bytearray(file.read_bytes())
    start = damaged.index(CONFIG.encode()) + len(CONFIG)
    damaged[start : start + 12] = b"\xff" * 12
    file.write_bytes(damaged)
    refused(file, "it cannot be read as a .keras file")


# -- the configuration ------------------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "text",
    [
        *(
            b"",
            b"null",
            b"[]",
            b"3",
            b'"Sequential"',
            b"{",
            b"\xff\xfe",
            b"{}",
            b'{"class_name": "Sequential"}',
            b"NaN",
        ),
        *(b'{"config":' * deep + b"1" + b"}" * deep for deep in (900, 5_000, 100_000)),
        b"[" * 200_000,
    ],
    ids=lambda text: f"{text[:30]!r} of {len(text)}",
)
def test_a_configuration_that_describes_no_model_is_refused(file: Path, text: bytes) -> None:
    refused(keras_files.write(file, {**keras_files.members(file), CONFIG: text}))


def test_models_inside_models_without_end_are_refused(file: Path) -> None:
    def nested(config: dict[str, Any]) -> dict[str, Any]:
        for number in range(200):
            inner = {"name": f"model_{number}", "trainable": True, "layers": [config]}
            config = {"module": "keras", "class_name": "Sequential", "config": inner, "registered_name": None}
        return config

    began = time.process_time()
    refused(keras_files.with_config(file, nested))
    assert time.process_time() - began < 60


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "change",
    [
        *({"units": units} for units in (10**9, 10**15, -3, 0, 4.5, "four", None, [4], True, 7)),
        {"activation": "os.system"},
        {"activation": {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"}},
        {"dtype": "float16"},
        {"dtype": "string"},
        {"name": 3},
        {"name": "a/b\x1b[31m\n"},
        {"recurrent_activation": "no such"},
        {"unknown_argument": 1},
    ],
    ids=str,
)
def test_a_layer_of_wrong_arguments_is_refused(file: Path, change: dict[str, Any]) -> None:
    def changed(config: dict[str, Any]) -> None:
        config["config"]["layers"][2]["config"].update(change)

    refused(keras_files.with_config(file, changed))


class _Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self._path),)


def _hostile_layers(ran: Path) -> dict[str, dict[str, Any]]:
    """Layers by name; each of them would make this folder."""
    code = compile(f"__import__('os').mkdir({str(ran)!r})", "x", "exec")
    payload = pickle.dumps(_Payload(ran))
    pickled, command = base64.b64encode(payload).decode(), f"mkdir {ran}"

    def named(class_name: str, place: str | None, /, **config: Any) -> dict[str, Any]:
        return {"module": place, "class_name": class_name, "config": config, "registered_name": class_name}

    def of(module: str, function: str) -> dict[str, Any]:
        return {"module": module, "class_name": "function", "config": function, "registered_name": function}

    marshalled = base64.b64encode(marshal.dumps(code)).decode()
    function = {"class_name": "__lambda__", "config": {"code": marshalled, "defaults": None, "closure": None}}
    of_lambda = named("Lambda", "keras.layers", name="lambda", function=function)
    return {
        "lambda": of_lambda,
        "lambda of a builtin": named("Lambda", "keras.layers", function=of("builtins", "exec")),
        "a function of os": of("os", "system"),
        "a class of subprocess": named("Popen", "subprocess", args=command, shell=True),
        "keras.utils.get_file": named("get_file", "keras.utils", fname="x", origin="http://127.0.0.1:9/x"),
        "a function of keras": of("keras.src.utils.file_utils", "get_file"),
        "a pickled module": named("TorchModuleWrapper", "keras.layers", module=pickled, name="wrapper"),
        "a pickled module elsewhere": named("TorchModuleWrapper", "keras.src.utils.torch_utils", module=pickled),
        "a saved model of TensorFlow": named(
            "TFSMLayer", "keras.layers", filepath=str(ran.parent), call_endpoint="serve"
        ),
        "a vocabulary from a file": named("StringLookup", "keras.layers", vocabulary="/etc/passwd"),
        "an activation that is a lambda": named("Activation", "keras.layers", activation=function),
        "a class with a module in its name": named(
            "keras.src.utils.torch_utils.TorchModuleWrapper", None, module=pickled
        ),
        "bytes": {"class_name": "__bytes__", "config": {"value": payload.hex()}},
        "a wrapped lambda": named(
            "TimeDistributed", "keras.layers", layer=named("Lambda", "keras.layers", function=function)
        ),
        "an initializer of os": named(
            "Dense", "keras.layers", units=3, kernel_initializer=named("system", "os", command=command)
        ),
        "a lambda in a policy": named("Dense", "keras.layers", units=3, dtype=named("DTypePolicy", "os", name=command)),
    }


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", _hostile_layers(Path("folder")))
def test_nothing_that_a_configuration_names_runs(file: Path, name: str, tmp_path: Path) -> None:
    keras_files.with_layer(file, _hostile_layers(tmp_path / "ran")[name])
    if name == "an initializer of os":  # weights come from the file, and initializers are left out
        with pytest.raises(ConfigurationError):
            keras_targets.load(file)
    else:
        refused(file)
    assert not (tmp_path / "ran").exists()


def _hdf5_file(path: Path, change: Callable[[list[dict[str, Any]]], object]) -> Path:
    """A model of Masking, LSTM and Dense, with its layers changed in the configuration."""
    import keras

    made = keras.layers
    keras.Sequential([keras.Input((None, 3)), made.Masking(), made.LSTM(4), made.Dense(2)]).save(path)
    with h5py.File(path, "r+") as opened:
        config = json.loads(opened.attrs["model_config"])
        change(config["config"]["layers"])
        opened.attrs["model_config"] = json.dumps(config)
    return path


@pytest.mark.parametrize("name", ["lambda", "a pickled module", "a function of os"])
def test_nothing_that_an_hdf5_file_names_runs(name: str, tmp_path: Path) -> None:
    hostile = _hostile_layers(tmp_path / "ran")[name]
    refused(_hdf5_file(tmp_path / "model.h5", lambda layers: layers.insert(2, hostile)))
    assert not (tmp_path / "ran").exists()


def test_a_small_hdf5_file_cannot_ask_for_a_large_model(tmp_path: Path) -> None:
    path = _hdf5_file(tmp_path / "model.h5", lambda layers: layers[3]["config"].update(units=10**12))
    assert "allocate" not in refused(path, "expects shape")  # found before there is memory for it


# -- the weights ------------------------------------------------------------------------------------------------------


def _first_replaced(put: Callable[[Any, str, tuple[int, ...]], object]) -> Callable[[Any], None]:
    """A change that takes the first weights out of the file and puts something in their place."""

    def change(opened: Any) -> None:
        each = keras_files.datasets(opened)[0]
        place, shape = each.name, each.shape
        del opened[place]
        put(opened, place, shape)

    return change


def _linked(link: Any) -> Callable[[Any], None]:
    return _first_replaced(lambda opened, place, _: opened.__setitem__(place, link))


WEIGHTS_CHANGED: dict[str, Callable[[Any], object]] = {
    "a link to another file": _linked(h5py.ExternalLink("/tmp/elsewhere.h5", "/secret")),
    "a link to another file, beside": lambda opened: opened.update(out=h5py.ExternalLink("/tmp/elsewhere.h5", "/")),
    "a link to nothing": _linked(h5py.SoftLink("/no/such/place")),
    "a link to something else, beside": lambda opened: opened.update(out=h5py.SoftLink("/layers")),
    "stored elsewhere": _first_replaced(
        lambda opened, place, shape: opened.create_dataset(
            place, shape, "f4", external=[("/etc/passwd", 0, 4 * int(np.prod(shape)))]
        )
    ),
    "huge and empty": _first_replaced(
        lambda opened, place, _: opened.create_dataset(place, (1 << 20, 1 << 20), "f4", chunks=(1024, 1024))
    ),
    "huge beside": lambda opened: opened.create_dataset("padding", (1 << 40,), "f4", chunks=(1 << 20,)),
    "of no shape": lambda opened: opened.create_dataset("null", data=h5py.Empty("f4")),
    "objects": _first_replaced(lambda opened, place, _: opened.create_dataset(place, (3,), h5py.string_dtype())),
    "another shape": _first_replaced(
        lambda opened, place, _: opened.create_dataset(place, data=np.zeros((5, 7), np.float32))
    ),
    "one missing": _first_replaced(lambda *_: None),
    "all missing": lambda opened: opened.clear(),
    "at another place": lambda opened: opened.move("layers", "other"),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("change", WEIGHTS_CHANGED)
def test_weights_that_do_not_belong_there_are_refused(file: Path, change: str) -> None:
    refused(keras_files.with_weights(file, WEIGHTS_CHANGED[change]))


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "change",
    [
        lambda opened: opened["layers"].__setitem__("again", h5py.SoftLink("/layers")),
        lambda opened: opened["layers"].__setitem__("root", opened["/"]),
        lambda opened: opened.create_dataset("padding", compression="gzip", data=np.zeros(64 << 20, np.uint8)),
    ],
    ids=["a link to itself", "a link to the root", "a bomb"],
)
def test_odd_weights_end_the_reading_soon(file: Path, change: Callable[[Any], object]) -> None:
    keras_files.with_weights(file, change)
    began = time.process_time()
    with suppress(ConfigurationError):
        keras_targets.load(file)
    assert time.process_time() - began < 60


@pytest.mark.long
def test_weights_that_are_not_finite_are_refused_with_the_reason(file: Path) -> None:
    def poison(opened: Any) -> None:
        for each in keras_files.datasets(opened):
            each[...] = np.nan

    keras_files.with_weights(file, poison)
    done = CliRunner().invoke(main, ["check", str(file), "--max-length", "40"])
    assert done.exit_code == 2, done.output
    assert "finite" in " ".join((done.stdout + done.stderr).split()) or "NaN" in done.stderr


def test_a_folder_a_pipe_and_a_file_that_is_not_there_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.keras")
    (tmp_path / "folder.keras").mkdir()
    for name in ("pipe.keras", "folder.keras", "absent.keras"):
        done = CliRunner().invoke(main, ["check", str(tmp_path / name)])
        assert done.exit_code == 2, (name, done.output)
        assert "Traceback" not in done.output + done.stderr
