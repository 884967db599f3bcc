"""The exporter: masked sequence models in, verified model directories out.

```python
import lengthwise_export

report = lengthwise_export.check(module)
published = lengthwise_export.export(module, "models/mine", labels=["no", "yes"])
```

Exported: `check`, `export`, `adopt`, `CheckReport`, `PublishedModel`, `errors`, `__version__`. Importing the package is
cheap: torch and onnx are imported when one of the first five is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lengthwise.errors import how_to_install
from lengthwise_export import errors

__all__ = ["CheckReport", "PublishedModel", "__version__", "adopt", "check", "errors", "export"]

_ELSEWHERE = {"PublishedModel": "lengthwise_export.pipeline", "adopt": "lengthwise_export.adopting.adopt"}
"""Where what is not in `api` is defined."""


if TYPE_CHECKING:
    from lengthwise_export.adopting.adopt import adopt
    from lengthwise_export.api import CheckReport, check, export
    from lengthwise_export.pipeline import PublishedModel

    __version__: str
else:  # a type checker is to find misspelt names

    def __getattr__(name: str) -> Any:
        """Imports what is exported when it is first used."""
        if name == "__version__":
            value: Any = importlib.import_module("lengthwise").__version__
        elif name in __all__:
            module = _ELSEWHERE.get(name, "lengthwise_export.api")
            try:
                value = getattr(importlib.import_module(module), name)
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(
                    f"lengthwise_export.{name} needs {error.name}, which is not installed: {how_to_install('export')}",
                    name=error.name,
                ) from error
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """What is exported, and the modules that were imported."""
    return sorted({*globals(), *__all__})
