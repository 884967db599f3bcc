"""Serves models that classify sequences of different lengths, as a server or inside a Python process.

```python
import lengthwise

model = lengthwise.load("models/vowels")
for prediction in model.predict([recording, another]):
    print(prediction.label, prediction.score)
```

Exported: `load`, `Model`, `Prediction`, `Scorer` (for engines: Ray Data, Spark, Beam), `errors`, `__version__`.
Importing the package is cheap: onnxruntime and NumPy are imported when one of the first four is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lengthwise import errors

__all__ = ["Model", "Prediction", "Scorer", "__version__", "errors", "load"]

if TYPE_CHECKING:
    from lengthwise.api import Model, Prediction, load
    from lengthwise.scoring.scorer import Scorer

    __version__: str
else:  # a type checker is to find misspelt names

    def __getattr__(name: str) -> Any:
        """Imports what is exported when it is first used."""
        if name == "__version__":
            value: Any = importlib.import_module("importlib.metadata").version("lengthwise")
        elif name in __all__:
            module = "lengthwise.scoring.scorer" if name == "Scorer" else "lengthwise.api"
            value = getattr(importlib.import_module(module), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """What is exported, and the modules that were imported."""
    return sorted({*globals(), *__all__})
