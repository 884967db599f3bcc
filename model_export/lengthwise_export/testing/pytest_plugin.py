"""The pytest plugin: tests of models in one line, and tests of the padding tests that a user has written.

```python
@pytest.mark.padding_safe(features=12, max_length=200)
def test_padding_changes_no_answer():
    return MyModel()


def test_padding_changes_no_answer_of_a_trained_model(padding_safe):
    padding_safe(trained(), features=12)


@pytest.mark.padding_test
def test_of_our_own():
    ...  # fails with LW001 or LW002 if it could not fail: it compares equal inputs, or never pads
```

pytest loads it where Lengthwise is installed, and it imports torch only when one of these is used.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final

import pytest

from lengthwise_export.testing import PaddingUnsafeError, assert_padding_safe

if TYPE_CHECKING:
    from lengthwise_export.interface.api import CheckReport

_NAMED: Final = "pad"  # What the names of tests contain to which `--padding-tests` applies

_MARKERS: Final = (
    "padding_safe(**options): the test returns a model, which `lengthwise_export.check` checks with these options",
    "padding_test: the test fails if it compares equal inputs (LW001) or never pads (LW002)",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option `--padding-tests`."""
    parser.getgroup("lengthwise").addoption(
        "--padding-tests",
        action="store_true",
        help=f"treat tests with `{_NAMED}` in their names as if marked `padding_test`",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declares the markers of this plugin to pytest."""
    for line in _MARKERS:
        config.addinivalue_line("markers", line)


@pytest.fixture(scope="session")
def padding_safe() -> Callable[..., CheckReport]:
    """`lengthwise_export.testing.assert_padding_safe`: fails with the report if padding changes an answer."""
    return assert_padding_safe


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Checks the model that a test marked `padding_safe` returns; pytest calls the test."""
    marker = pyfuncitem.get_closest_marker("padding_safe")
    if marker is None:
        return
    test = pyfuncitem.obj

    def checked(**fixtures: Any) -> None:
        """Runs the test, and checks the model that it returns; a leak fails the test with the report."""
        try:
            assert_padding_safe(test(**fixtures), *marker.args, **marker.kwargs)
        except PaddingUnsafeError as error:
            pytest.fail(str(error), pytrace=False)  # the report has the lines

    pyfuncitem.obj = checked


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Watches a test marked `padding_test`: it fails if it passes although it could not fail (LW001, LW002)."""
    __tracebackhide__ = True
    marked = item.get_closest_marker("padding_test")
    if marked is None and not (item.config.getoption("padding_tests") and _NAMED in item.name.lower()):
        return (yield)
    from lengthwise_export.testing import padding_tests

    with padding_tests.watched() as calls:
        answer = yield
    if broken := padding_tests.findings(calls):
        pytest.fail("\n".join(f"{rule.code} {rule.name}: {rule.why}\n{rule.fix}" for rule in broken), pytrace=False)
    if marked is not None and not calls:
        pytest.fail("no torch module was called, so it cannot be seen whether this test pads", pytrace=False)
    return answer
