"""Tests of your own models: `assert_padding_safe` fails with the whole report of `check`.

```python
from lengthwise_export.testing import assert_padding_safe


def test_padding_changes_no_answer():
    assert_padding_safe(MyModel(), features=12, max_length=200)
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lengthwise_export.interface.api import CheckReport
    from lengthwise_export.targets.targets import TargetSource

__all__ = ["PaddingUnsafeError", "assert_padding_safe"]


class PaddingUnsafeError(AssertionError):
    """Padding, or another sequence of the batch, changes an answer, or it could not be checked.

    Attributes:
        report: The report; the text of the error is that of `lengthwise check`.
    """

    def __init__(self, report: CheckReport) -> None:
        super().__init__(str(report))
        self.report = report


def assert_padding_safe(target: TargetSource, *, strict: bool = False, **options: Any) -> CheckReport:
    """Fails if padding, or another sequence of the batch, changes an answer of a model.

    Works in pytest, unittest and anywhere else. A model that cannot be checked fails, too.

    Args:
        target: A torch module, a Keras model, an ONNX graph, or a text, as for `lengthwise_export.check`.
        strict: Whether a warning fails as well: a difference that only NaN, infinity or 1e30 in the padding shows.
        options: The other arguments of `lengthwise_export.check`, such as `features=12` or `max_length=200`.

    Returns:
        The report of a model that passes.

    Raises:
        PaddingUnsafeError: It does not pass; it is an AssertionError with the whole report.
        ConfigurationError: The target cannot be loaded, or an option contradicts it.

    Example:
        >>> assert_padding_safe("examples/masking.py:lengths_given", max_length=40).verdict
        'sound'
    """  # noqa: DOC502 - what it calls raises them
    from lengthwise_export.interface.api import check  # pytest loads this package at each start

    __tracebackhide__ = True  # pytest then shows the line of the test
    report = check(target, **options)
    if report.exit_code(strict=strict):
        raise PaddingUnsafeError(report)
    return report
