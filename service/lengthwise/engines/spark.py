"""PySpark: `score` answers the rows of a DataFrame in the Python workers of Spark (extra `spark`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lengthwise.scoring.engine_batches import ColumnKind, check_names
from lengthwise.scoring.scorer import Scorer

try:
    from pyspark.sql.types import (
        ArrayType,
        DataType,
        FloatType,
        IntegerType,
        StringType,
        StructField,
        StructType,
    )
except ImportError as missing:
    raise ImportError("PySpark is not installed: pip install 'lengthwise[spark]'") from missing

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_TYPES: Final[dict[ColumnKind, DataType]] = {
    "text": StringType(),
    "texts": ArrayType(StringType()),
    "number": FloatType(),
    "numbers": ArrayType(FloatType()),
    "numbers of steps": ArrayType(ArrayType(FloatType())),
    "count": IntegerType(),
    "windows": ArrayType(
        StructType(
            [
                StructField("start", IntegerType()),
                StructField("length", IntegerType()),
                StructField("probabilities", ArrayType(FloatType())),
            ]
        )
    ),
}


def schema(frame: DataFrame, scorer: Scorer) -> StructType:
    """The schema of the answered rows: the frame's columns without the sequences, and those of the answers.

    They follow from the manifest, so the scorer's path has to exist here, too. Raises ConfigurationError.
    """
    columns = scorer.columns()
    check_names(frame.columns, scorer.steps, columns, keep_steps=scorer.keep_steps)
    fields = [field for field in frame.schema.fields if scorer.keep_steps or field.name != scorer.steps]
    return StructType([*fields, *(StructField(column.name, _TYPES[column.kind]) for column in columns)])


def score(frame: DataFrame, scorer: Scorer) -> DataFrame:
    """Answers the rows of a DataFrame with `DataFrame.mapInArrow`, without the sequences and with `scorer.columns()`.

    A worker sorts and packs the rows of one Arrow batch, of which `spark.sql.execution.arrow.maxRecordsPerBatch` is the
    size. It keeps the model open for its next tasks. If a worker dies, Spark runs its task again, as often as
    `spark.task.maxFailures` allows (on one machine: `local[2,4]`).
    """
    return frame.mapInArrow(scorer.batches, schema(frame, scorer))
