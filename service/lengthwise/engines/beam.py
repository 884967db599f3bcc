"""Apache Beam: `LengthwiseModelHandler` for the transform `RunInference` (extra `beam`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from lengthwise.errors import ConfigurationError
from lengthwise.scoring.opened import OpenModel
from lengthwise.scoring.scorer import Scorer

try:
    from apache_beam.ml.inference.base import ModelHandler, PredictionResult
except ImportError as missing:
    raise ImportError("Apache Beam is not installed: pip install 'lengthwise[beam]'") from missing

BLOCK_ROWS: Final = 2048  # that a worker answers together by default, sorted and packed


class LengthwiseModelHandler(ModelHandler[Any, PredictionResult, OpenModel]):  # type: ignore[misc]  # no types
    """Answers sequences in `RunInference`, with a scorer whose model each worker reads from the same path.

    An element is a sequence, as for `Model.predict`, or a row: a dict with the sequence under `scorer.steps`. With
    `KeyedModelHandler`, elements have keys. The inference is the prediction in the form of `POST /predict`, or with
    `on_error="column"` a dict with the key `error` only. Beam takes at most `block_rows` sequences from a bundle to
    answer together, and does not wait for more: the more, the less padding.
    """

    def __init__(self, scorer: Scorer, *, block_rows: int = BLOCK_ROWS) -> None:
        super().__init__()
        self._scorer = scorer
        self._block_rows = block_rows

    def load_model(self) -> OpenModel:
        """Opens the model, once in each process."""
        return self._scorer.open()

    def run_inference(
        self, batch: Sequence[Any], model: OpenModel, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """Answers the sequences of a batch, in their order."""
        predictions = self._scorer.predictions([self._steps(element) for element in batch])
        key = model.loaded.manifest.key
        return [PredictionResult(*pair, model_id=key) for pair in zip(batch, predictions, strict=True)]

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        """Batches as large as a bundle allows."""
        return {"min_batch_size": self._block_rows, "max_batch_size": self._block_rows}

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        """Bytes of the sequences of a batch as float32, for the metrics of Beam."""
        return sum(4 * int(np.size(self._steps(element))) for element in batch)

    def get_metrics_namespace(self) -> str:
        """The namespace of the metrics that `RunInference` collects."""
        return "BeamML_Lengthwise"

    def update_model_path(self, model_path: str | None = None) -> None:
        """Answers with another model from now on: `RunInference(..., model_metadata_pcoll=...)` calls it."""
        if model_path is not None:
            self._scorer = replace(self._scorer, path=model_path)

    def _steps(self, element: Any) -> Any:
        if not isinstance(element, Mapping):
            return element
        if self._scorer.steps not in element:
            raise ConfigurationError(
                f"an element has no {self._scorer.steps!r}; it has {', '.join(map(repr, element)) or 'nothing'}"
            )
        return element[self._scorer.steps]
