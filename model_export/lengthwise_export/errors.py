"""Every way a training, an export or a check can be refused, in the tree of `lengthwise.errors`.

```
LengthwiseError
├── ConfigurationError              the call is wrong                                     exit 2
│   ├── SpecError                   a spec is malformed, or asks for what does not fit together
│   ├── CheckpointError             weights cannot be read, or are those of another model
│   └── PublishError                the place to publish to is taken or cannot be written
├── ExportError                     the call is right, the target cannot be exported      exit 2
├── UncheckableError                the call is right, the target cannot be checked       exit 2
│   └── RunError                    it raises for a batch
└── ModelError
    └── VerificationError           it was exported, and its proof does not hold          exit 1
```

A message names what was read (a file, a key, an operator) and says what to write instead.
"""

from __future__ import annotations

from lengthwise.errors import ConfigurationError, LengthwiseError


class SpecError(ConfigurationError):
    """A spec is malformed, or asks for things that do not fit together; names the keys."""


class CheckpointError(ConfigurationError):
    """A checkpoint cannot be read as weights, or holds the weights of another model."""


class PublishError(ConfigurationError):
    """A version that exists already, or a place that cannot be written."""


class UncheckableError(LengthwiseError):
    """A target that cannot be judged; says what it lacks or does, and what would be right."""


class RunError(UncheckableError):
    """A target that raises for a batch.

    Args:
        detail: What it says.
        place: Where in the user's code that was, where it is known.
    """

    def __init__(self, detail: str, place: object = None) -> None:
        super().__init__(detail if place is None else f"{place}: {detail}")
        self.detail = detail
        self.place = place


class ExportError(LengthwiseError):
    """A step of the export could not do its part.

    Args:
        step: The step that failed, in the words of `lengthwise_export.pipeline`.
        detail: What it required or ensured, and what to do instead.
    """

    def __init__(self, step: str, detail: str) -> None:
        super().__init__(f"{step}: {detail}")
        self.step = step
        self.detail = detail
