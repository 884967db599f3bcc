"""The table of providers, with what is promised on each, and the choice of the devices that graphs run on.

A *provider* is onnxruntime's word for the code that runs a graph on one kind of device. The *label* of a device names
provider and device (`Device.label`).

| provider | runs on | promises in float32 | costs are measured by |
|---|---|---|---|
| `cpu` | the processor, in the thread that runs the batch | the same bits batched and unbatched | processor time |
| `cuda` | one session per GPU, two batches in flight on each | a tolerance, measured on that device | wall time |

`--provider auto` chooses CUDA if the installed onnxruntime supports it and a GPU is available, else the CPU, and logs
why. `--provider cuda` without CUDA is an error that names everything that is missing. Nothing falls back to the CPU
silently: `lengthwise.runtime.session` refuses a session that onnxruntime moved there, and
`lengthwise.runtime.placement` refuses a node.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from lengthwise.errors import ConfigurationError
from lengthwise.runtime.installation import Driver, Installation, LoadLibrary, find

ProviderChoice = Literal["auto", "cuda", "cpu"]
"""The values of `--provider`."""

_CPU_PACKAGE: Final = "pip install 'lengthwise[cpu]'"
_GPU_PACKAGE: Final = "pip install 'lengthwise[gpu]'"


@dataclass(frozen=True, slots=True)
class Provider:
    """One row of the table."""

    name: str  # its name in `--provider`
    execution_provider: str  # its name in onnxruntime
    device_type: str  # onnxruntime's name of the memory that its kernels read
    # Whether a float32 graph can give the same bits batched and unbatched, as is measured for each model; if not, a
    # tolerance is promised.
    bits: bool
    wall_clock: bool  # whether costs are wall time, as the thread that waits for the work does not do it
    in_flight: int  # batches at once on one device, unless `runners` says otherwise: one is copied, one computed
    # Whether batches go through buffers of the device (`runtime.binding`), in few shapes (`batching.buckets`)
    bound: bool = False
    load_library: LoadLibrary = ctypes.CDLL  # loads CUDA's runtime, for these buffers
    session: Mapping[str, str] = field(default_factory=dict)  # entries for onnxruntime's session options
    options: Mapping[str, str] = field(default_factory=dict)  # onnxruntime's options of the provider, on every device


PROVIDERS: Final[Mapping[str, Provider]] = {
    "cpu": Provider(
        name="cpu",
        execution_provider="CPUExecutionProvider",
        device_type="cpu",
        bits=True,
        wall_clock=False,
        in_flight=1,
    ),
    "cuda": Provider(
        name="cuda",
        execution_provider="CUDAExecutionProvider",
        device_type="cuda",
        bits=False,
        wall_clock=True,
        in_flight=2,
        bound=True,
        session={
            # onnxruntime records which provider runs each node; `lengthwise.runtime.placement` checks that at load.
            "session.record_ep_graph_assignment_info": "1",
        },
        options={
            # The arena grows by what a shape needs; doubling could exceed a memory limit that the shapes fit into.
            "arena_extend_strategy": "kSameAsRequested",
            # An exhaustive search of convolution algorithms would run again for every shape.
            "cudnn_conv_algo_search": "HEURISTIC",
            "do_copy_in_default_stream": "1",
        },
    ),
}


@dataclass(frozen=True, slots=True)
class Device:
    """A device on which sessions run."""

    provider: Provider  # its row of the table
    index: int = 0  # its number among the provider's devices
    name: str = ""  # the name that its driver gives; empty for the CPU
    memory_bytes: int = 0  # 0 if not known
    # Whether float32 products may use TF32 (ten bits of mantissa): faster, with errors of about 1e-3
    tf32: bool = False
    memory_limit_bytes: int | None = None  # of onnxruntime's memory arena there; None for no limit
    in_flight: int = 1  # batches at once
    # Whether layers may run in the kernels of `recurrent_kernels`, which are for the CPU
    recurrent_kernels: bool = False
    # Whether those serve only if they are not slower than onnxruntime's (`repository.kernel_choice`)
    timed: bool = False

    @property
    def label(self) -> str:
        """The name of the device in manifests, logs and metrics: a promise and a cost table are valid for one label.

        `CPUExecutionProvider`, or `CUDAExecutionProvider, NVIDIA H200`, with `, TF32` where that is on.
        """
        parts = [self.provider.execution_provider, self.name, "TF32" if self.tf32 else ""]
        return ", ".join(part for part in parts if part)

    @property
    def options(self) -> dict[str, str]:
        """The options that onnxruntime gets with the provider for this device."""
        options = dict(self.provider.options)
        if self.provider.name == "cuda":
            options |= {"device_id": str(self.index), "use_tf32": "1" if self.tf32 else "0"}
            if self.memory_limit_bytes is not None:
                options["gpu_mem_limit"] = str(self.memory_limit_bytes)
        return options


CPU_DEVICE: Final = Device(PROVIDERS["cpu"], recurrent_kernels=True)
"""The processor, with Lengthwise's recurrent kernels: the default device."""
TIMED_CPU: Final = Device(PROVIDERS["cpu"], recurrent_kernels=True, timed=True)
"""The processor, with Lengthwise's recurrent kernels or onnxruntime's, whichever are faster for a model."""
PLAIN_CPU: Final = Device(PROVIDERS["cpu"])
"""The processor, with onnxruntime's kernels only."""


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """The chosen devices, of one provider: each gets a session of every model."""

    devices: tuple[Device, ...] = (CPU_DEVICE,)
    reason: str = "the CPU was asked for"  # a sentence for the log and `/healthz`

    @property
    def provider(self) -> Provider:
        """The devices' row of the table."""
        return self.devices[0].provider

    def runners(self, cores: int) -> int:
        """How many runner threads: one for each core, or one for each batch in flight on the devices."""
        return sum(device.in_flight for device in self.devices) if self.provider.bound else cores

    def __str__(self) -> str:
        """`CUDAExecutionProvider, NVIDIA H200 (2 of them): a GPU answers`, for the log."""
        count = f" ({len(self.devices)} of them)" if len(self.devices) > 1 else ""
        return f"{self.devices[0].label}{count}: {self.reason}"


def choose(
    choice: ProviderChoice = "auto",
    *,
    tf32: bool = False,
    memory_limit_bytes: int | None = None,
    runners: int | None = None,
    recurrent_kernels: bool | None = None,
    installation: Installation | None = None,
) -> DeviceChoice:
    """Chooses the devices that graphs run on: the processor, or all GPUs that are of the same kind as the first.

    Args:
        choice: The value of `--provider`.
        tf32: Whether float32 products may use TF32 on a GPU.
        memory_limit_bytes: The limit of onnxruntime's memory on each GPU; None for no limit.
        runners: Number of runner threads, divided among the devices; None for the table's `in_flight`.
        recurrent_kernels: On the CPU: True for Lengthwise's kernels, False for onnxruntime's own, None for whichever
            are faster for a model.
        installation: What is installed; by default, what `find` returns.

    Returns:
        The devices, and for the log why they were chosen.

    Raises:
        ConfigurationError: No onnxruntime is installed, or two are; or CUDA is required and not available: the message
            names all that is missing.
    """
    # 1. The processor, if nothing else was asked for
    installed = find() if installation is None else installation
    check_packages(installed)
    processor = {None: TIMED_CPU, True: CPU_DEVICE, False: PLAIN_CPU}[recurrent_kernels]
    if choice == "cpu":
        return DeviceChoice((processor,))
    # 2. The processor, if CUDA is not available
    driver, missing = _missing_for_cuda(installed, everything=choice == "cuda")
    if missing:
        if choice == "cuda":
            raise ConfigurationError(f"--provider cuda is not available: {'; '.join(missing)}")
        return DeviceChoice((processor,), f"CUDA is not available: {'; '.join(missing)}")
    # 3. The GPUs. A promise and a cost table are valid for one kind of device: only GPUs of the first's kind are used.
    gpus = [gpu for gpu in driver.gpus if gpu.name == driver.gpus[0].name]
    cuda = PROVIDERS["cuda"]
    in_flight = cuda.in_flight if runners is None else -(-runners // len(gpus))
    devices = tuple(
        Device(cuda, gpu.index, gpu.name, gpu.memory_bytes, tf32, memory_limit_bytes, in_flight) for gpu in gpus
    )
    unused_gpus = len(driver.gpus) - len(gpus)
    unused_text = f"; {unused_gpus} of another kind left out" if unused_gpus else ""
    why = "CUDA was asked for" if choice == "cuda" else "onnxruntime has CUDA, and a GPU answers"
    tried = "GPUs are experimental: an NVIDIA H100 and an H200 have been tried"
    return DeviceChoice(devices, f"{why}; {tried}{unused_text}")


def check_packages(installed: Installation) -> None:
    """Checks that exactly one package of onnxruntime is installed: two would overwrite each other's files.

    Raises:
        ConfigurationError: None is installed, two are, or it cannot be imported; the message says what to install.
    """
    packages = installed.packages
    if len(packages) > 1:
        raise ConfigurationError(
            f"{' and '.join(packages)} are both installed, and each writes over the other's files: "
            f"pip uninstall {' '.join(packages)}, then {_CPU_PACKAGE} or {_GPU_PACKAGE}"
        )
    if packages and not installed.module:
        raise ConfigurationError(
            f"{_described(packages)} is installed, and cannot be imported: {installed.import_error}"
        )
    if not installed.module:
        raise ConfigurationError(
            f"no onnxruntime is installed, and nothing runs a graph without it: {_CPU_PACKAGE}, or {_GPU_PACKAGE} for "
            "NVIDIA GPUs; in a checkout: pip install -e '.[cpu]' or '.[gpu]'"
        )


def _described(packages: Mapping[str, str]) -> str:
    """The installed packages with their versions, for messages."""
    return " ".join(f"{name} {version}" for name, version in packages.items()) or "this onnxruntime"


def _missing_for_cuda(installed: Installation, *, everything: bool) -> tuple[Driver, list[str]]:
    """Finds out whether graphs can run on CUDA here, and what is missing if they cannot.

    Args:
        installed: What is installed.
        everything: Whether to name all that is missing; otherwise only the first thing, as the checks take time.

    Returns:
        The driver (an empty one if it was not asked), and what is missing, as sentences; no sentence if CUDA works.
    """
    missing = []
    # 1. The package
    cuda = PROVIDERS["cuda"].execution_provider
    if cuda not in installed.providers:
        problem = f"{_described(installed.packages)} is without CUDA"
        if not everything:  # CUDA was not asked for, so do not say how to install it
            return Driver(), [problem]
        missing.append(f"{problem} (pip uninstall onnxruntime, then {_GPU_PACKAGE})")
    # 2. The driver and the GPUs
    driver = installed.driver()
    if driver.problem is not None:
        missing.append(driver.problem)
    elif installed.cuda and driver.cuda[0] < int(installed.cuda.partition(".")[0]):
        missing.append(
            f"the NVIDIA driver runs CUDA {driver.cuda[0]}.{driver.cuda[1]} at most, and onnxruntime was built for "
            f"CUDA {installed.cuda}: a newer driver is needed"
        )
    if missing and not everything:
        return driver, missing
    # 3. The libraries
    if cuda in installed.providers and (libraries := installed.missing_libraries()):
        missing.append(f"{', '.join(libraries)} cannot be loaded ({_GPU_PACKAGE} brings CUDA's libraries and cuDNN)")
    return driver, missing
