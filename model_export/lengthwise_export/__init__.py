"""The exporter: masked sequence models in, verified model directories out.

```python
import lengthwise_export

report = lengthwise_export.check(module)
published = lengthwise_export.export(module, "models/mine", labels=["no", "yes"])

run = lengthwise_export.train("auto", sequences, labels)
published = run.export("models/trained")
```

All names: `check`, `export`, `train`, `CheckReport`, `PublishedModel`, `TrainedModel`, `LengthwiseClassifier`,
`SequenceSummaries`, `errors`, `__version__`. Importing the package is cheap: torch, onnx and scikit-learn are imported
when what needs them is first used. `lengthwise_export.testing` has `assert_padding_safe` for your tests.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lengthwise_export import errors
from lengthwise_export.errors import missing_extra

__all__ = [
    "CheckReport",
    "LengthwiseClassifier",
    "PublishedModel",
    "SequenceSummaries",
    "TrainedModel",
    "__version__",
    "check",
    "errors",
    "export",
    "train",
]

_ELSEWHERE = {
    "LengthwiseClassifier": "lengthwise_export.training.estimator",
    "PublishedModel": "lengthwise_export.exporting.flow",
    "SequenceSummaries": "lengthwise_export.summaries.transformer",
    "TrainedModel": "lengthwise_export.training.training_api",
    "train": "lengthwise_export.training.training_api",
}
"""The modules of the exported names that are not in `interface.api`."""


if TYPE_CHECKING:
    from lengthwise_export.exporting.flow import PublishedModel
    from lengthwise_export.interface.api import CheckReport, check, export
    from lengthwise_export.summaries.transformer import SequenceSummaries
    from lengthwise_export.training.estimator import LengthwiseClassifier
    from lengthwise_export.training.training_api import TrainedModel, train

    __version__: str
else:  # a type checker is to find misspelt names

    def __getattr__(name: str) -> Any:
        """The exported object with this name, whose module is imported when the name is first used.

        Raises:
            AttributeError: There is no such name.
            ModuleNotFoundError: The name needs a package that is not installed; the message says which extra brings it.
        """
        if name == "__version__":
            value: Any = importlib.import_module("lengthwise").__version__
        elif name in __all__:
            module = _ELSEWHERE.get(name, "lengthwise_export.interface.api")
            try:
                value = getattr(importlib.import_module(module), name)
            except ModuleNotFoundError as error:
                extra = missing_extra(error, name, f"lengthwise_export.{name}")
                if extra is None:
                    raise
                raise ModuleNotFoundError(extra, name=error.name) from error
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """The names of the package: those that it exports, and its modules that were imported."""
    return sorted({*globals(), *__all__})
