"""The modules in C, and how wheels are tagged; everything else of the package stands in pyproject.toml.

The modules keep to Python's limited API of 3.11, so one wheel (`cp311-abi3`) serves every later Python of a platform.
A build in which one of them does not compile fails. `LENGTHWISE_PURE=1` leaves all of them out: that wheel
(`py3-none-any`) serves on every platform, more slowly.
`LENGTHWISE_PROJECT_URL` is the address of the repository that a release is made from.
"""

import os
import shutil
import sys
import sysconfig
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CCompilerError, ExecError, PlatformError

PURE = os.environ.get("LENGTHWISE_PURE", "") not in ("", "0")
PROJECT_URL = os.environ.get("LENGTHWISE_PROJECT_URL", "").rstrip("/")
# Free-threaded Python has no limited API: there the modules are built for the one version.
IS_LIMITED = not PURE and not sysconfig.get_config_var("Py_GIL_DISABLED")
LIMITED = {"py_limited_api": True, "define_macros": [("Py_LIMITED_API", "0x030B0000")]} if IS_LIMITED else {}

KERNELS = "service/lengthwise/runtime/kernels"
PARTS = (
    *("_kernels", "_recurrent", "_integer", "_shares", "_convolutions", "_attention", "_summaries", "_lent_cores"),
    "_states",
)
MODULES_IN_C = [
    Extension(
        "lengthwise.decoding._fast_json",
        ["service/lengthwise/decoding/_fast_json.c"],
        **LIMITED,
    ),
    Extension(
        "lengthwise.runtime.kernels._kernels",
        [f"{KERNELS}/{name}.c" for name in PARTS],
        depends=[*glob(f"{KERNELS}/*.h")],
        # No product and sum are fused but where the source says so: the bits are the same with every compiler.
        extra_compile_args=["-O3", "-ffp-contract=off", "-fvisibility=hidden"],
        libraries=["m"],
        **LIMITED,
    ),
]


class BuildModules(build_ext):
    """Compiles the modules; one that cannot be compiled ends the build with what to do."""

    def build_extension(self, extension: Extension) -> None:
        """Compiles one module.

        Raises:
            SystemExit: It was not compiled.
        """
        try:
            super().build_extension(extension)
        except (CCompilerError, ExecError, PlatformError) as error:
            sys.exit(
                f"error: {extension.name} was not compiled: {error}\n"
                "It needs a C compiler and Python's headers (Debian: apt-get install gcc python3-dev). "
                "LENGTHWISE_PURE=1 installs without the modules in C; serving is slower then."
            )


class BuildPackages(build_py):
    """Copies the packages without what an earlier build left: modules that are gone would get into the wheel."""

    def run(self) -> None:
        """Copies the packages."""
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(
    cmdclass={"build_ext": BuildModules, "build_py": BuildPackages},
    ext_modules=[] if PURE else MODULES_IN_C,
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if IS_LIMITED else {},
    project_urls={
        "Source": PROJECT_URL,
        "Changelog": f"{PROJECT_URL}/blob/main/CHANGELOG.md",
        "Issues": f"{PROJECT_URL}/issues",
    }
    if PROJECT_URL
    else {},
)
