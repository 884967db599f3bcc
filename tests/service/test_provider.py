"""A provider is chosen by what is there, as driver and libraries say; where one cannot be had, it is said why."""

import ctypes
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from lengthwise.errors import ConfigurationError
from lengthwise.runtime.installation import Driver, Gpu, Installation, ask_driver, find, missing_libraries
from lengthwise.runtime.provider import CPU_DEVICE, PROVIDERS, Device, DeviceChoice, choose
from lengthwise.settings import bundled_models

H200 = Gpu(0, "NVIDIA H200", 141 << 30)
TWO = Driver((13, 0), (H200, replace(H200, index=1)))

WITH_GPU = Installation(
    packages={"onnxruntime-gpu": "1.31.1"},
    module=True,
    providers=("CUDAExecutionProvider", "CPUExecutionProvider"),
    cuda="13.0",
    driver=lambda: TWO,
    missing_libraries=lambda: (),
)


def without(**changed: Any) -> Installation:
    return replace(WITH_GPU, **changed)


FOR_THE_CPU = without(packages={"onnxruntime": "1.31.1"}, providers=("CPUExecutionProvider",), cuda="")
NO_DRIVER = without(driver=lambda: Driver(problem="there is no NVIDIA driver"))
NO_CUDNN = without(missing_libraries=lambda: ("libcudnn.so.9",))
OLD_DRIVER = without(driver=lambda: Driver((12, 4), (H200,)))


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_cuda_is_taken_where_a_gpu_answers_with_a_session_for_each(wanted: Any):
    choice = choose(wanted, installation=WITH_GPU)
    assert [device.index for device in choice.devices] == [0, 1]
    assert {device.label for device in choice.devices} == {"CUDAExecutionProvider, NVIDIA H200"}
    assert choice.provider is PROVIDERS["cuda"]
    assert str(choice).startswith("CUDAExecutionProvider, NVIDIA H200 (2 of them): ")


def test_gpus_of_another_kind_than_the_first_are_left_out_and_it_is_said():
    mixed = without(driver=lambda: Driver((13, 0), (H200, Gpu(1, "NVIDIA L4", 24 << 30))))
    choice = choose("auto", installation=mixed)
    assert [device.name for device in choice.devices] == ["NVIDIA H200"]
    assert choice.reason.endswith("; 1 of another kind left out")
    assert "experimental" in str(choice)  # what the log says


TIMED = replace(CPU_DEVICE, recurrent_kernels=True, timed=True)
"""The CPU as it is chosen without options: the faster kernels of recurrent layers."""


def asked() -> Any:
    raise AssertionError("nobody asked for a GPU, and its libraries are half a gigabyte")


def test_for_the_cpu_no_gpu_is_looked_at_and_no_library_is_loaded_in_vain():
    assert choose("cpu", installation=without(driver=asked)) == DeviceChoice((TIMED,), "the CPU was asked for")
    for_nothing = without(driver=NO_DRIVER.driver, missing_libraries=asked)
    assert choose("auto", installation=for_nothing).devices == (TIMED,)


@pytest.mark.parametrize(
    ("installation", "reason"),
    [
        (FOR_THE_CPU, "onnxruntime 1.31.1 is without CUDA"),
        (NO_DRIVER, "there is no NVIDIA driver"),
        (NO_CUDNN, "libcudnn.so.9 cannot be loaded"),
        (OLD_DRIVER, "runs CUDA 12.4 at most, and onnxruntime was built for CUDA 13.0"),
    ],
)
def test_auto_takes_the_cpu_and_says_why_and_cuda_is_refused_for_the_same(installation: Installation, reason: str):
    choice = choose("auto", installation=installation)
    assert choice.devices == (TIMED,)
    assert choice.reason.startswith("CUDA is not available: ")
    assert reason in choice.reason
    with pytest.raises(ConfigurationError, match=rf"--provider cuda.*{reason}"):
        choose("cuda", installation=installation)


def test_cuda_is_refused_with_all_that_is_missing_and_how_to_install_it():
    bare = without(driver=NO_DRIVER.driver, missing_libraries=lambda: ("libcublas.so.13", "libcudnn.so.9"))
    said = "there is no NVIDIA driver; libcublas.so.13, libcudnn.so.9 cannot be loaded"
    for installation, missing in ((bare, said), (FOR_THE_CPU, r"lengthwise\[gpu\]")):
        with pytest.raises(ConfigurationError, match=missing):
            choose("cuda", installation=installation)
    reason = choose("auto", installation=FOR_THE_CPU).reason
    assert reason == "CUDA is not available: onnxruntime 1.31.1 is without CUDA"


@pytest.mark.parametrize("wanted", ["auto", "cuda", "cpu"])
@pytest.mark.parametrize(
    ("installation", "said"),
    [
        (without(packages={"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}), "both installed"),
        (without(packages={}, module=False, providers=()), r"lengthwise\[cpu\].*lengthwise\[gpu\]"),
        (without(module=False, providers=(), import_error="libstdc++.so.6 is too old"), "too old"),
    ],
    ids=["two packages", "none", "a broken one"],
)
def test_other_than_one_package_of_onnxruntime_is_refused_whatever_is_wanted(
    wanted: Any, installation: Installation, said: str
):
    with pytest.raises(ConfigurationError, match=said):
        choose(wanted, installation=installation)


def test_a_gpu_computes_float32_in_full_unless_tf32_is_asked_for():
    full, rounded = (choose("cuda", tf32=tf32, installation=WITH_GPU).devices[1] for tf32 in (False, True))
    assert (full.options["use_tf32"], rounded.options["use_tf32"]) == ("0", "1")
    assert rounded.label == full.label + ", TF32"
    assert (full.options["device_id"], "gpu_mem_limit" in full.options) == ("1", False)
    bounded = choose("cuda", memory_limit_bytes=1 << 30, installation=WITH_GPU).devices[0].options
    assert (bounded["gpu_mem_limit"], bounded["arena_extend_strategy"]) == ("1073741824", "kSameAsRequested")


def test_runners_are_the_cores_on_a_cpu_and_two_for_each_gpu_by_default():
    assert DeviceChoice().runners(7) == 7
    assert choose("cuda", installation=WITH_GPU).runners(7) == 4
    for runners, in_flight in ((1, 1), (2, 1), (3, 2), (8, 4)):
        choice = choose("cuda", runners=runners, installation=WITH_GPU)
        assert [device.in_flight for device in choice.devices] == [in_flight, in_flight]
        assert choice.runners(64) == 2 * in_flight


def test_every_row_is_a_provider_of_onnxruntime_and_only_cpus_promise_bits():
    assert {row.execution_provider for row in PROVIDERS.values()} <= set(onnxruntime.get_all_providers())
    said = {name: (row.bits, row.wall_clock) for name, row in PROVIDERS.items()}
    assert said == {"cpu": (True, False), "cuda": (False, True)}
    assert (CPU_DEVICE.label, CPU_DEVICE.options) == ("CPUExecutionProvider", {})
    assert Device(PROVIDERS["cuda"]).label == "CUDAExecutionProvider"


ROOT = Path(__file__).parents[2]
MODEL = str(bundled_models() / "japanese-vowels" / "1")


class FakeDriver:
    """CUDA's driver interface with so many GPUs, in which a call may fail with a code."""

    def __init__(self, names: Sequence[str] = ("NVIDIA H200",), failing: str = "", code: int = 999) -> None:
        self.names, self.failing, self.code = names, failing, code

    def __getattr__(self, call: str) -> Any:
        def called(*given: Any) -> int:
            if call == self.failing:
                return self.code
            numbers = {"cuDriverGetVersion": 13020, "cuDeviceGetCount": len(self.names), "cuDeviceGet": given[-1]}
            numbers["cuDeviceTotalMem_v2"] = 5 << 30
            if call in numbers:
                given[0]._obj.value = numbers[call]
            elif call == "cuDeviceGetName":
                given[0].value = self.names[given[2].value].encode()
            elif call == "cuGetErrorString":
                given[1]._obj.value = b"in its own words"
            return 0

        return called


def no_library(name: str) -> Any:
    raise OSError(f"{name}: cannot open shared object file")


def test_the_gpus_are_those_of_the_driver_with_names_and_memory():
    driver = ask_driver(lambda name: FakeDriver(["NVIDIA H200", "NVIDIA L4"]))
    assert driver.problem is None
    assert driver.cuda == (13, 2)
    assert driver.gpus == (Gpu(0, "NVIDIA H200", 5 << 30), Gpu(1, "NVIDIA L4", 5 << 30))


@pytest.mark.parametrize(
    ("library", "said"),
    [
        (FakeDriver(failing="cuInit", code=100), "sees no GPU"),
        (FakeDriver(names=[]), "sees no GPU"),
        (FakeDriver(failing="cuInit", code=804), r"cannot be used: in its own words \(error 804\)"),
        (FakeDriver(failing="cuDeviceGetCount"), "cannot be asked for its GPUs: in its own words"),
        (FakeDriver(failing="cuDeviceTotalMem_v2"), "GPU 0 does not answer: in its own words"),
        (None, "there is no NVIDIA driver"),
    ],
)
def test_a_driver_that_gives_no_gpu_says_why(library: FakeDriver | None, said: str):
    driver = ask_driver(no_library if library is None else lambda name: library)
    assert driver.gpus == ()
    assert re.search(said, str(driver.problem))


def test_every_library_that_cannot_be_loaded_is_named_cudnn_among_them():
    of_13 = ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudnn.so.9")
    assert missing_libraries("13.0", no_library) == of_13
    assert missing_libraries("12.8", lambda name: name if name.endswith(".12") else no_library(name)) == of_13[3:]
    assert missing_libraries("13.0", lambda name: object()) == ()


def test_what_is_installed_here_is_found_and_no_gpu_is_asked_for_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    found = find()
    assert found.module
    assert len(found.packages) == 1
    assert "CPUExecutionProvider" in found.providers


def test_without_onnxruntime_nothing_is_found_and_nothing_fails(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lengthwise.runtime.installation.onnxruntime", None)
    monkeypatch.setattr("lengthwise.runtime.installation.PACKAGES", ("no-such-package",))
    found = find()
    assert (found.module, found.packages, found.providers, found.driver().gpus) == (False, {}, (), ())


WITHOUT = """
import sys
sys.modules["onnxruntime"], sys.argv = None, ["lengthwise", *sys.argv[1:]]
from lengthwise.commands.cli import main
from lengthwise.runtime import installation
installation.PACKAGES = ()
main()
"""


def without_onnxruntime(*call: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command in an environment that has no onnxruntime, and no package that would bring it."""
    command = [sys.executable, "-c", WITHOUT, *call]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize(
    "call",
    [
        ("serve", "--port", "1"),
        pytest.param(("score", "in.jsonl", "out.jsonl", "--model", MODEL), marks=pytest.mark.long),
    ],
    ids=lambda call: call[0],
)
def test_without_onnxruntime_a_command_that_runs_graphs_names_the_extras(call: tuple[str, ...], tmp_path: Path):
    (tmp_path / "in.jsonl").write_text('{"steps": [[0,0,0,0,0,0,0,0,0,0,0,0]]}\n')
    done = without_onnxruntime(*call, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: no onnxruntime is installed, and nothing runs a graph")
    assert "Traceback" not in done.stderr


@pytest.mark.long
@pytest.mark.process
def test_help_needs_no_onnxruntime():
    assert without_onnxruntime("--help").returncode == 0
