"""Logs a model directory as a model of MLflow, in its pyfunc flavor, and loads it there.

```python
import lengthwise.mlflow

logged = lengthwise.mlflow.log_model("models/vowels/1", name="vowels")
mlflow.pyfunc.load_model(logged.model_uri).predict(recordings)
```

MLflow keeps a copy of the model directory, and nothing is pickled. docs/engines.md has the page.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from lengthwise.repository.source import model_directory
from lengthwise.runtime.manifest import Manifest
from lengthwise.scoring.scorer import Scorer


def log_model(directory: str | os.PathLike[str], **options: Any) -> Any:
    """Logs a model directory under the run that is active, or a new one.

    Args:
        directory: A version (`models/vowels/1`), or a model (`models/vowels`) for its highest version; or an address.
        options: The other arguments of `mlflow.pyfunc.log_model`, such as `name` and `registered_model_name`.

    Returns:
        The `ModelInfo` of MLflow.

    Raises:
        ConfigurationError: There is no such model directory.
        ManifestError: It has no valid manifest.
    """  # noqa: DOC502 - what it calls raises them
    import mlflow.pyfunc

    return _write(mlflow.pyfunc.log_model, directory, options)


def save_model(directory: str | os.PathLike[str], path: str | os.PathLike[str], **options: Any) -> None:
    """Writes a model directory as a folder that MLflow can load.

    Args:
        directory: A version (`models/vowels/1`), or a model (`models/vowels`) for its highest version; or an address.
        path: The folder to write.
        options: The other arguments of `mlflow.pyfunc.save_model`.

    Raises:
        ConfigurationError: There is no such model directory.
        ManifestError: It has no valid manifest.
    """  # noqa: DOC502 - what it calls raises them
    import mlflow.pyfunc

    _write(mlflow.pyfunc.save_model, directory, {"path": os.fspath(path), **options})


def _write(write: Callable[..., Any], directory: str | os.PathLike[str], options: dict[str, Any]) -> Any:
    """Calls MLflow's `write` (log or save) with a copy of the model directory, and returns what it returns."""
    source = model_directory(os.fspath(directory))
    manifest = Manifest.read(source)
    requirements = {"pip_requirements": [f"lengthwise[cpu]=={metadata.version('lengthwise')}"]}
    # MLflow keeps only the last name of a path, here NAME; the folder VERSION is in it.
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, manifest.name)
        shutil.copytree(source, copy / str(manifest.version))
        return write(loader_module=__name__, data_path=str(copy), **(requirements | options))


class RaggedModel:
    """A model for `mlflow.pyfunc`: one call takes sequences of different lengths."""

    def __init__(self, path: str) -> None:
        self._scorer = Scorer(path)
        self._scorer.open()

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Answers sequences.

        Args:
            model_input: A pandas DataFrame with a column `steps`, as for `Scorer`; or sequences in the forms of
                `Model.predict`, such as a list of arrays `[length, features]`.
            params: Not used.

        Returns:
            A DataFrame with the columns of the answers; or a list of predictions in the form of `POST /predict`.

        Raises:
            InvalidSequences: The model does not accept some sequences; names them all.
        """  # noqa: DOC502 - what it calls raises them
        is_table = self._scorer.steps in getattr(model_input, "columns", ())
        return self._scorer(model_input) if is_table else self._scorer.predictions(model_input)


_load_pyfunc = RaggedModel  # MLflow calls it with the path of its copy
