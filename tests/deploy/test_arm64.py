"""The wheel for Linux on ARM: built here, and its kernels and reader tested in an emulated processor.

Debian's Python for that processor runs in `qemu-user`, with the packages that PyPI has for it; nothing is installed on
this machine. Nothing here says how fast anything is there.
"""

import os
import shutil
import subprocess
import sys
from ast import literal_eval
from pathlib import Path

import numpy as np
import pytest

from lengthwise.runtime import fixed_kernels
from tests.deploy.tools import DEPLOY, ROOT, loaded

pytestmark = pytest.mark.deploy
QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
PROCESSORS = {"max": "i8mm", "neoverse-n1": "dotprod", "cortex-a57": "portable"}
"""The best instruction set that each of qemu's processors has for products of bytes."""
# What lends cores to threads, or tries thousands of batches, takes minutes in an emulation.
LEFT_OUT = "not any_width and not two_threads and not in_threads"
TESTS = (
    "recurrent_kernels",
    "integer_kernels",
    "integer_layers",
    "fusion",
    "packed_steps",
    "convolutions",
    "fast_json",
)
PACKAGES = ("httpx2", "hypothesis", "onnx", "onnx-ir", "pytest", "pytest-asyncio", "safetensors")
# onnxruntime asks Linux for the processor, and of an emulated one it finds this machine's.
CPUINFO = "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd07\n\n"


class Emulated:
    """Python on an emulated processor, with the wheel and what its tests need."""

    def __init__(self, folder: Path) -> None:
        self._root, self._site = folder / "root", folder / "site"
        _debian(folder / "apt", self._root)
        (wheel,) = (
            file for file in loaded(DEPLOY / "wheels.py").make(folder / "dist", "aarch64") if "aarch64" in file.name
        )
        self.wheel = wheel
        version = self._python().name.removeprefix("python")
        target = ("--python-version", version, "--only-binary", ":all:", "--target", self._site)
        platforms = [f"--platform=manylinux_{glibc}_aarch64" for glibc in ("2_17", "2_28")] + [
            "--platform=manylinux2014_aarch64"
        ]
        wanted = (f"lengthwise[cpu,serve] @ {wheel.as_uri()}", *PACKAGES)
        _run(sys.executable, "-m", "pip", "install", "--quiet", *target, *platforms, *wanted)

    def _python(self) -> Path:
        return (self._root / "usr" / "bin" / "python3").resolve()

    def run(self, *arguments: object, processor: str = "max") -> str:
        models = self._site / "lengthwise" / "models"
        variables = {
            "PYTHONPATH": f"{self._site}:{ROOT}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PREPARED_MODELS": str(models),
        }
        return _run(QEMU, "-cpu", processor, "-L", self._root, self._python(), *arguments, **variables)


def _run(*command: object, **variables: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def _debian(state: Path, root: Path) -> None:
    """Unpacks Debian's Python for ARM, with all that it needs; apt keeps its notes in `state`, not in the system."""
    for folder in ("lists/partial", "archives/partial"):
        (state / folder).mkdir(parents=True)
    (state / "status").touch()
    places = {"Dir::State": state, "Dir::State::status": state / "status", "Dir::Cache": state}
    kind = {"APT::Architecture": "arm64", "APT::Architectures::": "arm64", "APT::Install-Recommends": "false"}
    apt = ["apt-get", *(f"-o{name}={value}" for name, value in (places | kind).items()), "-oAPT::Sandbox::User="]
    _run(*apt, "update")
    _run(*apt, "install", "--yes", "--download-only", "python3", "libstdc++6")
    for archive in (state / "archives").glob("*.deb"):
        _run("dpkg", "-x", archive, root)
    (root / "proc").mkdir()
    (root / "proc" / "cpuinfo").write_text(CPUINFO)


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    for tool in (QEMU, shutil.which("apt-get")):
        if not tool:
            pytest.skip("needs qemu-user and apt (Debian: apt-get install qemu-user-static)")
    return Emulated(tmp_path_factory.mktemp("arm64"))


def test_the_wheel_is_for_every_linux_on_arm(arm: Emulated) -> None:
    assert "manylinux_2_17_aarch64" in arm.wheel.name


@pytest.mark.parametrize("processor", PROCESSORS)
def test_each_processor_has_its_kernels(processor: str, arm: Emulated) -> None:
    ask = "from lengthwise.runtime.kernels._kernels import INSTRUCTION_SETS as s; print({k: s[k][0] for k in s})"
    assert literal_eval(arm.run("-c", ask, processor=processor)) == {
        "float32": "neon",
        "int8": PROCESSORS[processor],
        "shares": "portable",
        "convolutions": "neon",
    }


@pytest.mark.parametrize("test", TESTS)
def test_the_tests_of_what_is_in_c_pass(test: str, arm: Emulated) -> None:
    said = arm.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", LEFT_OUT, f"tests/service/test_{test}.py")
    assert " passed" in said


COMPARED = """
import sys, numpy as np
from lengthwise.runtime.fixed_kernels import KernelPlan, shares
given = np.load(sys.argv[1])
sequences = np.split(given["values"], np.cumsum(given["lengths"])[:-1])
found = shares(KernelPlan(given["numbers"], given["biases"]), sequences)
print(found.shape, int((found.view(np.int32) != given["expected"].view(np.int32)).sum()))
"""


def test_shares_have_the_bits_of_this_processor(arm: Emulated, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    lengths = (*range(1, 10), 33, 70, 301)
    sequences = [
        random.standard_normal((length, 3)).astype(np.float32) * 10 ** random.uniform(-9, 9) for length in lengths
    ]
    kernels = [
        fixed_kernels.DilatedKernels(
            dilation,
            random.random((fixed_kernels.KERNELS, 3)) < (1, 0.6, 0.6),  # each reads the first
            random.standard_normal((fixed_kernels.KERNELS, 5)).astype(np.float32),
            random.random(fixed_kernels.KERNELS) < 0.5,
        )
        for dilation in (1, 4, 40)
    ]
    plan = fixed_kernels.plan(kernels, bits=10)
    given = dict(zip(("numbers", "biases"), plan, strict=True), values=np.concatenate(sequences), lengths=lengths)
    np.savez(tmp_path / "given.npz", **given, expected=fixed_kernels.shares(plan, sequences))
    assert arm.run("-c", COMPARED, tmp_path / "given.npz").strip() == f"({len(lengths)}, {plan.biases.size}) 0"
