"""What needs a GPU: without one each test is skipped, and the end of the run says so with the reason."""

import pytest

from lengthwise.errors import ConfigurationError
from lengthwise.runtime import provider
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.provider import DeviceChoice
from lengthwise.runtime.session import Session
from tests.support.model_directories import BUNDLED


@pytest.fixture(scope="session")
def choice() -> DeviceChoice:
    """The GPUs; a test that asks for them is skipped where there is none."""
    try:
        found = provider.choose("auto")
    except ConfigurationError as error:
        pytest.skip(str(error))
    if not found.provider.bound:
        pytest.skip(found.reason)
    return found


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    """Of the bundled model."""
    return Manifest.read(BUNDLED)


@pytest.fixture(scope="session")
def on_cpu(manifest: Manifest) -> Session:
    """The bundled model on the CPU."""
    return Session.load(BUNDLED, manifest)


@pytest.fixture(scope="session")
def on_gpu(manifest: Manifest, choice: DeviceChoice) -> Session:
    """The same on one GPU."""
    return Session.load(BUNDLED, manifest, devices=choice.devices[:1])
