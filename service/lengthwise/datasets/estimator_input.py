"""What estimators in the manner of scikit-learn take as sequences: the forms of `input_sequences`, and a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lengthwise.datasets.column_roles import ColumnNames, has_ids
from lengthwise.datasets.input_sequences import InputSequences, Layout, Padding, sequences_of
from lengthwise.datasets.table_sequences import list_columns
from lengthwise.datasets.tables import columns_of


def estimator_sequences(
    X: Any,
    layout: Layout,
    padding: Padding | None = None,
    names: tuple[str, ...] | None = None,
    per_step: bool | None = None,
    static: Sequence[str] | None = None,
) -> InputSequences:
    """Converts `X` to sequences; refuses with the errors that scikit-learn's tests of estimators expect.

    What other estimators read as a matrix is one here, too: in an array without iteration, or in a table of numbers
    without a column of ids, each row is a sequence of one feature.

    Args:
        X: The argument of `fit` or `predict`, in any form.
        layout: The order of the axes of an array.
        padding: Which steps are cut off the end of each sequence; None for none.
        names: The feature names of the fitted model, by which columns are selected; None if it has none yet.
        per_step: False if each sequence of a table has one label, in all of its rows; None if labels do not matter.
        static: The columns of a table that are static values, by the spec; None for none.

    Raises:
        TypeError: It is a sparse matrix.
        ValueError: The values are complex numbers.
    """
    if hasattr(X, "toarray") and hasattr(X, "nnz"):
        raise TypeError("sequences are dense arrays, and X is sparse: use X.toarray()")
    if getattr(getattr(X, "dtype", None), "kind", "") == "c":
        raise ValueError("Complex data not supported: a sequence has real values")
    table = columns_of(X)
    is_matrix = (
        table is not None
        and "steps" not in table
        and not has_ids([*table])
        and len(table.levels) < 2
        and not list_columns(table)
    )
    is_array = hasattr(X, "__array__") and not hasattr(X, "__iter__")
    columns = ColumnNames(inputs=names, static=tuple(static or ()))
    return sequences_of(
        np.asarray(X) if is_matrix or is_array else X, layout, columns, padding=padding, per_step=per_step, ask=False
    )
