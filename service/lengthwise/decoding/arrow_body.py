"""`POST /predict` as an Arrow stream: record batches to a call, by the rules for a JSON body.

The columns are the fields of a sequence in JSON, where null stands for one that is absent. A null or a NaN among the
numbers is a missing value. Rows that are all plain and valid are read at once with NumPy: of float32 without null,
their steps are views of the body. Any other row is read as the JSON object that it stands for, by `validation`. So both
forms have the same rules and pointers.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from lengthwise.decoding import arrow_stream, validation
from lengthwise.decoding.arrow_columns import ColumnSteps, StepsColumn, check_columns, offsets_of
from lengthwise.decoding.calls import MAX_ID_CHARACTERS, Call, Find, Item, Problems, compact, first_fault, split
from lengthwise.decoding.options import CallOptions, find_model
from lengthwise.decoding.sent_steps import SentMask
from lengthwise.decoding.validation import PREDICT
from lengthwise.errors import TooLarge
from lengthwise.runtime.manifest import Manifest

_QUICK_BATCHES: Final = 8  # of a body that is read quickly; each takes some ten microseconds
_QUICK_ROWS: Final = 64  # read one by one in such a body; each takes about ten microseconds
_QUICK_ENTRIES: Final = 65_536  # of one of its columns of masks, eight to a byte of the body


def read(
    body: bytes, asked: CallOptions, problems: Problems, find: Find, *, max_sequences: int, quick: bool = False
) -> Call | None:
    """Reads an inflated body as `validation.read`; `quick`: valid rows only, and None where there is another.

    Raises:
        TooLarge: There are more than `max_sequences`. Everything else that is wrong with the body is one
            InvalidRequest.
    """
    try:
        batches = arrow_stream.record_batches(body, check_columns, most=_QUICK_BATCHES if quick else max_sequences)
    except TooLarge:
        if quick:
            return None
        raise
    count = sum(batch.num_rows for batch in batches)
    if count > max_sequences:
        raise TooLarge(f"a request may have {max_sequences} sequences, this one has {count}")
    if not count:
        problems.add("/sequences", "must have at least one sequence")
    model = find_model(asked, find, problems, in_query=True)
    manifest = model.manifest
    attention = "attention" in asked.outputs
    if attention and manifest.graph.attention is None:
        problems.add("", f"query parameter outputs: the model {manifest.key} has no attention")
    items: list[Item] = []
    beside_bytes = first = 0
    for batch in batches:
        if batch.num_rows:
            rows = _RowReader(batch, manifest, body)
            found = rows.plain(keep_body=len(batches) == 1) or rows.others(first, problems, quick=quick)
            if found is None:
                return None
            items += found[0]
            beside_bytes += found[1]
            first += batch.num_rows
    problems.require_none()
    return Call(model, items, attention, asked.timeout_ms, asked.priority, PREDICT.pointer, 0, beside_bytes)


class _RowReader:
    """The rows of one record batch, which refers to `body`."""

    def __init__(self, batch: Any, manifest: Manifest, body: bytes) -> None:
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        self._manifest = manifest
        self._column = columns["steps"]
        self._ids: list[str | None] = columns["id"].to_pylist() if "id" in columns else [None] * batch.num_rows
        masks = [(name, columns[name]) for name in ("step_mask", "feature_mask") if name in columns]
        self._masks = [(name, mask) for name, mask in masks if mask.null_count < batch.num_rows]
        self._sent = StepsColumn(self._column, body)
        self._steps = self._sent.steps(manifest.input.features)

    def plain(self, *, keep_body: bool) -> tuple[list[Item], int] | None:
        """The items where every row is plain and valid, and the bytes that they hold beside their own steps, or None.

        Steps are views of the body only with `keep_body`.
        """
        manifest, steps = self._manifest, self._steps
        if steps is None or self._column.null_count or self._masks:
            return None
        if any(identifier is not None and len(identifier) > MAX_ID_CHARACTERS for identifier in self._ids):
            return None
        lengths = np.diff(self._sent.offsets)
        longest = int(lengths.max())
        if lengths.min() < max(1, manifest.min_length) or (longest > manifest.max_length and manifest.long == "reject"):
            return None
        takes_missing = manifest.missing != "refuse"
        if first_fault(steps, vocabulary=manifest.input.vocabulary, takes_missing=takes_missing) is not None:
            return None
        if not keep_body and steps.base is not None:
            steps = steps.copy()
        return compact(split(steps, self._sent.offsets.tolist(), self._ids, manifest), steps)

    def others(self, first: int, problems: Problems, *, quick: bool) -> tuple[list[Item], int] | None:
        """The items of rows of any kind, as `plain`; `first` is the index of the first row. What is wrong is added.

        None if `quick`, and there are many rows, or many entries of masks, or something is wrong.
        """
        entries = max((len(mask.values) for _, mask in self._masks), default=0)
        if quick and (len(self._ids) > _QUICK_ROWS or entries > _QUICK_ENTRIES):
            return None
        masks = [(name, _Masks(mask)) for name, mask in self._masks]
        found = []
        for row, identifier in enumerate(self._ids):
            is_there = not self._column.null_count or self._column[row].is_valid
            document: dict[str, Any] = {"steps": ColumnSteps(self._sent, row, self._steps) if is_there else None}
            if identifier is not None:
                document["id"] = identifier
            document |= {name: mask.row(row) for name, mask in masks if mask.has[row]}
            found.append(validation.read_item(document, PREDICT.pointer.format(first + row), self._manifest, problems))
            if quick and problems.total:
                return None
        return [item for item in found if item is not None], 0


class _Masks:
    """A column of masks."""

    def __init__(self, column: Any) -> None:
        values = column.values
        self.has: list[bool] = column.is_valid().to_pylist()
        self._offsets: list[int] = offsets_of(column).tolist()
        self._entries = values.fill_null(False).to_numpy(zero_copy_only=False)
        self._is_null = values.is_null().to_numpy(zero_copy_only=False) if values.null_count else None

    def row(self, row: int) -> SentMask:
        """The mask of a row as it was sent."""
        part = slice(*self._offsets[row : row + 2])
        return SentMask(self._entries[part], None if self._is_null is None else self._is_null[part])
