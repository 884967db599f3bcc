"""Serves models that classify sequences of different lengths, as a server or inside a Python process.

```python
import lengthwise

model = lengthwise.load("models/vowels")
for prediction in model.predict([recording, another]):
    print(prediction.label, prediction.score)
```

Or asks a server that serves them:

```python
client = lengthwise.Client("http://localhost:8000")
predictions = client.predict([recording, another])
```

Or serves them as an application of FastAPI, under uvicorn or within another application:

```python
app = lengthwise.make_app(lengthwise.Settings(models="models"))
```

All names: `load`, `Model`, `Prediction`, `Predictions` (what `predict` returns), `Scorer` (for engines: Ray Data,
Spark, Beam), `Client`, `AsyncClient`, `PreparedSequences` (what `prepare` returns), `KeyedStreams` with a `StateStore`
of `StoredState`s (`DictStates`, `SQLiteStates`, `RedisStates`), `Settings`, `make_app`, `sequences` (to name the
columns of a table), `InputSequences` (what that returns), `Stream` (a sequence that goes on), `StateConflict` (the
error of a state that does not fit), `SequenceSummaries` (for pipelines of scikit-learn), `export` (which publishes
these, and what `lengthwise_export` takes), `errors`, `__version__`. Importing the package is cheap: NumPy is imported
when one of them is first used, and onnxruntime when a model is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lengthwise import errors

__all__ = [
    "AsyncClient",
    "Client",
    "DictStates",
    "InputSequences",
    "KeyedStreams",
    "Model",
    "Prediction",
    "Predictions",
    "PreparedSequences",
    "RedisStates",
    "SQLiteStates",
    "Scorer",
    "SequenceSummaries",
    "Settings",
    "StateConflict",
    "StateStore",
    "StoredState",
    "Stream",
    "__version__",
    "errors",
    "export",
    "load",
    "make_app",
    "sequences",
]
_MODULES = {
    "AsyncClient": "lengthwise.client.client",
    "Client": "lengthwise.client.client",
    "DictStates": "lengthwise.client.state_store",
    "InputSequences": "lengthwise.datasets.input_sequences",
    "KeyedStreams": "lengthwise.client.state_store",
    "PreparedSequences": "lengthwise.client.bodies",
    "RedisStates": "lengthwise.client.state_store",
    "SQLiteStates": "lengthwise.client.state_store",
    "Scorer": "lengthwise.scoring.scorer",
    "SequenceSummaries": "lengthwise_export.summaries.transformer",
    "Settings": "lengthwise.settings",
    "StateConflict": "lengthwise.errors",
    "StateStore": "lengthwise.client.state_store",
    "StoredState": "lengthwise.client.state_store",
    "export": "lengthwise_export",
    "make_app": "lengthwise.application.app",
    "sequences": "lengthwise.datasets.input_sequences",
}
"""Where exported names are defined; the others are in `lengthwise.api`."""

if TYPE_CHECKING:
    from lengthwise.api import Model, Prediction, Predictions, Stream, load
    from lengthwise.application.app import make_app
    from lengthwise.client.bodies import PreparedSequences
    from lengthwise.client.client import AsyncClient, Client
    from lengthwise.client.state_store import (
        DictStates,
        KeyedStreams,
        RedisStates,
        SQLiteStates,
        StateStore,
        StoredState,
    )
    from lengthwise.datasets.input_sequences import InputSequences, sequences
    from lengthwise.errors import StateConflict
    from lengthwise.scoring.scorer import Scorer
    from lengthwise.settings import Settings

    SequenceSummaries: Any
    export: Any
    __version__: str
else:  # a type checker is to find misspelt names

    def __getattr__(name: str) -> Any:
        """Imports what is exported when it is first used.

        Raises:
            AttributeError: There is no such name.
            ModuleNotFoundError: It needs an extra that is not installed.
        """
        if name == "__version__":
            value: Any = importlib.import_module("importlib.metadata").version("lengthwise")
        elif name in __all__:
            try:
                value = getattr(importlib.import_module(_MODULES.get(name, "lengthwise.api")), name)
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(
                    importlib.import_module("lengthwise.errors").missing_extra(error, "serve", f"lengthwise.{name}")
                    or error.msg,
                    name=error.name,
                ) from error
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
