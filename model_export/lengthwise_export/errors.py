"""The errors of training, export and check. They extend the tree of `lengthwise.errors`.

```
LengthwiseError
├── ConfigurationError              the options or files are wrong                        exit 2
│   ├── SpecError                   a spec is malformed, or its keys contradict each other
│   ├── CheckpointError             weights cannot be read, or belong to another model
│   └── PublishError                the version exists, or its folder cannot be written
├── ExportError                     the target cannot be exported                         exit 2
│   └── TraceError                  a line of the user's code cannot be traced
├── UncheckableError                the target cannot be checked                          exit 2
│   └── RunError                    the model raises for a batch
├── UnmendableError                 an operator of the graph cannot be mended             exit 2
└── ModelError
    └── VerificationError           the exported graph failed the verification            exit 1
```

A message names the file, key or operator, and says what to write instead. The words that messages share (`counted`,
`first_of`, `nearest`, ...) are those of the service; they and its errors are imported from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lengthwise.errors import (
    IS_TRANSPOSED,
    ConfigurationError,
    InvalidSequences,
    LengthwiseError,
    ModelError,
    Problem,
    VerificationError,
    missing_extra,
)
from lengthwise.wrong_values import all_wrong, counted, first_of, nearest, no_booleans_for_numbers, unknown

if TYPE_CHECKING:
    from lengthwise_export.tracing.source_lines import CodeLocation
__all__ = [
    "IS_TRANSPOSED",
    "TAKE_LENGTHS",
    "CheckpointError",
    "ConfigurationError",
    "ExportError",
    "InvalidSequences",
    "LengthwiseError",
    "ModelError",
    "Problem",
    "PublishError",
    "RunError",
    "SpecError",
    "TraceError",
    "UncheckableError",
    "UnmendableError",
    "VerificationError",
    "all_wrong",
    "counted",
    "first_of",
    "missing_extra",
    "nearest",
    "no_booleans_for_numbers",
    "unknown",
]


class SpecError(ConfigurationError):
    """A spec is malformed, or its keys contradict each other; the message names the keys."""


class CheckpointError(ConfigurationError):
    """A checkpoint cannot be read, or holds the weights of another model."""


class PublishError(ConfigurationError):
    """The version to publish exists already, or its folder cannot be written."""


class UncheckableError(LengthwiseError):
    """The target cannot be checked; the message says why, and what to change."""


class RunError(UncheckableError):
    """The model raises for a batch.

    Attributes:
        detail: The error of the model.
        location: The line of the user's code; None if it is not known.
        part: The layer that raised, such as `` `head` (Linear(512, 3)) ``; None if it is the model itself.
    """

    def __init__(self, detail: str, location: object = None, part: str | None = None) -> None:
        super().__init__(detail if location is None else f"{location}: {detail}")
        self.detail = detail
        self.location = location
        self.part = part

    @property
    def of_answer(self) -> str | None:
        """Why the answer cannot be judged, of a model that did not raise; None if it raised."""
        return f"the model's answer: {self.__cause__.detail}" if isinstance(self.__cause__, ExportError) else None


TAKE_LENGTHS: Final = (
    "A mask or lengths that are taken from the values leave no step of a sequence of zeros: take `lengths` "
    "([rows], int64) as an argument"
)
"""What to do about a model that raises for a sequence of zeros."""


class ExportError(LengthwiseError):
    """A step of the export failed.

    Attributes:
        step: The step: check, trace, mend, precision, ...
        detail: Why it failed, and what to do instead.
    """

    def __init__(self, step: str, detail: str) -> None:
        super().__init__(f"{step}: {detail}")
        self.step = step
        self.detail = detail


class TraceError(ExportError):
    """A line of the user's code cannot be traced; its `location` is in the message, if it is known."""

    def __init__(self, location: CodeLocation | None, why: str) -> None:
        super().__init__("trace", why if location is None else f"{location.description()}: {why}")


class UnmendableError(LengthwiseError):
    """A graph cannot be mended.

    Attributes:
        operator: The operator that cannot be mended.
        reason: Why not.
        location: The line of the user's code that calls it; None if it is not known.
    """

    def __init__(self, operator: str, reason: str, location: object = None) -> None:
        super().__init__(f"{operator}: {reason}" if location is None else f"{location}: {operator}: {reason}")
        self.operator = operator
        self.reason = reason
        self.location = location
