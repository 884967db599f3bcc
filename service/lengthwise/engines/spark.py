"""PySpark: `score` answers the rows of a DataFrame in the Python workers of Spark (extra `spark`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lengthwise.scoring.answer_columns import ColumnKind, check_names
from lengthwise.scoring.scorer import Scorer
from lengthwise.scoring.table_batches import check_column

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
    check_column(frame.columns, scorer.steps)
    fields = [field for field in frame.schema.fields if scorer.keep_steps or field.name != scorer.steps]
    check_names([field.name for field in fields], columns)
    return StructType([*fields, *(StructField(column.name, _TYPES[column.kind]) for column in columns)])


def score(frame: DataFrame, scorer: Scorer) -> DataFrame:
    """Answers the rows of a DataFrame with `DataFrame.mapInArrow`, without the sequences and with `scorer.columns()`.

    A worker sorts and packs the rows of one Arrow batch, of which `spark.sql.execution.arrow.maxRecordsPerBatch` is the
    size. It keeps the model open for its next tasks. If a worker dies, Spark runs its task again, as often as
    `spark.task.maxFailures` allows (on one machine: `local[2,4]`).
    """
    return frame.mapInArrow(scorer.batches, schema(frame, scorer))
