"""A provider is chosen by what is there, and where one cannot be had the error says all that is missing."""

from dataclasses import replace
from typing import Any

import pytest

from lengthwise.errors import ConfigurationError
from lengthwise.runtime.installation import Driver, Gpu, Installation
from lengthwise.runtime.provider import CPU_DEVICE, PROVIDERS, Device, DeviceChoice, choose

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


def test_the_cpu_is_taken_where_it_is_asked_for_and_no_gpu_is_looked_at():
    def asked() -> Driver:
        raise AssertionError("nobody asked for a GPU")

    assert choose("cpu", installation=without(driver=asked)) == DeviceChoice((TIMED,), "the CPU was asked for")


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


def test_who_does_not_ask_for_cuda_is_not_told_how_to_install_it():
    assert (
        choose("auto", installation=FOR_THE_CPU).reason == "CUDA is not available: onnxruntime 1.31.1 is without CUDA"
    )
    with pytest.raises(ConfigurationError, match=r"lengthwise\[gpu\]"):
        choose("cuda", installation=FOR_THE_CPU)


def test_cuda_is_refused_with_all_that_is_missing_at_once():
    bare = without(driver=NO_DRIVER.driver, missing_libraries=lambda: ("libcublas.so.13", "libcudnn.so.9"))
    with pytest.raises(ConfigurationError) as refused:
        choose("cuda", installation=bare)
    assert "there is no NVIDIA driver; libcublas.so.13, libcudnn.so.9 cannot be loaded" in str(refused.value)


def test_auto_loads_no_library_where_no_gpu_could_use_it():
    def loaded() -> tuple[str, ...]:
        raise AssertionError("half a gigabyte for nothing")

    assert choose("auto", installation=without(driver=NO_DRIVER.driver, missing_libraries=loaded)).devices == (TIMED,)


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


def test_a_gpu_computes_float32_in_full_unless_tf32_is_asked_for_and_its_label_says_which():
    full, rounded = (choose("cuda", tf32=tf32, installation=WITH_GPU).devices[1] for tf32 in (False, True))
    assert full.options["use_tf32"] == "0"
    assert rounded.options["use_tf32"] == "1"
    assert rounded.label == full.label + ", TF32"
    assert full.options["device_id"] == "1"


def test_a_memory_limit_reaches_the_provider_and_its_arena_grows_by_what_is_needed():
    bounded = choose("cuda", memory_limit_bytes=1 << 30, installation=WITH_GPU).devices[0]
    assert bounded.options["gpu_mem_limit"] == "1073741824"
    assert bounded.options["arena_extend_strategy"] == "kSameAsRequested"
    assert "gpu_mem_limit" not in choose("cuda", installation=WITH_GPU).devices[0].options


def test_threads_that_run_batches_are_the_cores_on_a_cpu_and_two_for_each_gpu():
    assert DeviceChoice().runners(7) == 7
    assert choose("cuda", installation=WITH_GPU).runners(7) == 4


@pytest.mark.parametrize(("runners", "in_flight"), [(1, 1), (2, 1), (3, 2), (8, 4)])
def test_runners_that_were_asked_for_are_shared_out_among_the_gpus(runners: int, in_flight: int):
    choice = choose("cuda", runners=runners, installation=WITH_GPU)
    assert [device.in_flight for device in choice.devices] == [in_flight, in_flight]
    assert choice.runners(64) == 2 * in_flight


def test_every_row_is_a_provider_that_onnxruntime_knows_and_only_the_cpus_promises_bits():
    import onnxruntime

    assert {row.execution_provider for row in PROVIDERS.values()} <= set(onnxruntime.get_all_providers())
    assert {name: (row.bits, row.wall_clock) for name, row in PROVIDERS.items()} == {
        "cpu": (True, False),
        "cuda": (False, True),
    }
    assert (CPU_DEVICE.label, CPU_DEVICE.options) == ("CPUExecutionProvider", {})
    assert Device(PROVIDERS["cuda"]).label == "CUDAExecutionProvider"
