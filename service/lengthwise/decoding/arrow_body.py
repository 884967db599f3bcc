"""`POST /predict` as an Arrow stream: record batches to a call, by the rules for a JSON body.

The columns are the fields of a sequence in JSON, where null stands for one that is absent. A null or a NaN among the
numbers is a missing value. A valid row is read with NumPy: of float32 without null, its steps are a view of the body.
Any other row is read as the JSON object that it stands for, by `validation`. So both forms have the same rules and
pointers.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding import arrow_stream, validation
from lengthwise.decoding.arrow_columns import StepColumn, check_columns, offsets_of, step_column
from lengthwise.decoding.arrow_steps import SentColumn
from lengthwise.decoding.calls import (
    MAX_ID_CHARACTERS,
    Call,
    Find,
    Item,
    Problems,
    compact,
    first_fault,
    make_item,
    rounded,
    why_rejected,
)
from lengthwise.decoding.options import CallOptions, find_model
from lengthwise.decoding.sent_steps import SentMask
from lengthwise.decoding.validation import PREDICT
from lengthwise.errors import TooLarge
from lengthwise.padding import Steps
from lengthwise.runtime.manifest import Manifest

_QUICK_BATCHES: Final = 8  # of a body that is read quickly; each takes some ten microseconds
_QUICK_ROWS: Final = 64  # read one by one in such a body; each takes about ten microseconds


def read(
    body: bytes, asked: CallOptions, problems: Problems, find: Find, *, max_sequences: int, quick: bool = False
) -> Call | None:
    """Reads an inflated body as `validation.read`; `quick`: valid rows only, and None where there is another."""
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
            rows = _RowReader(batch, manifest, body, keep_body=len(batches) == 1)
            found = rows.items(first, None if quick else problems)
            if found is None:
                return None
            first += batch.num_rows
            items += found[0]
            beside_bytes += found[1]
    if problems.total:
        raise problems.error()
    return Call(model, items, attention, asked.timeout_ms, asked.priority, PREDICT.pointer, 0, beside_bytes)


class _RowReader:
    """The rows of one record batch, which refers to `body`; steps are views of it only with `keep_body`."""

    def __init__(self, batch: Any, manifest: Manifest, body: bytes, *, keep_body: bool) -> None:
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        self._manifest = manifest
        self._column = columns["steps"]
        self._ids: list[str | None] = columns["id"].to_pylist() if "id" in columns else [None] * batch.num_rows
        self._step_masks = _Masks.of(columns.get("step_mask"))
        self._feature_masks = _Masks.of(columns.get("feature_mask"))
        self._has_null = bool(self._column.null_count)
        found = step_column(self._column, body)
        steps = None if found is None else _steps(found, manifest)
        if steps is not None and not keep_body and steps.base is not None:
            steps = steps.copy()
        self._steps = steps
        self._sent = SentColumn(self._column, body)
        self._offsets = offsets_of(self._column)

    def items(self, first: int, problems: Problems | None) -> tuple[list[Item], int] | None:
        """The items, and the bytes that they hold beside their own steps; without `problems`, None if one is wrong."""
        made = self._valid_items()
        if made is None:
            if problems is None and len(self._ids) > _QUICK_ROWS:
                return None
            made = []
            for row in range(len(self._ids)):
                item = self._valid_item(row)
                if item is None:
                    if problems is None:
                        return None
                    item = self._explained_item(row, PREDICT.pointer.format(first + row), problems)
                if item is not None:
                    made.append(item)
        return (made, 0) if self._steps is None else compact(made, self._steps)

    def _valid_items(self) -> list[Item] | None:
        """The items where every row is plain and valid; None otherwise."""
        manifest, steps = self._manifest, self._steps
        if steps is None or self._has_null or self._step_masks or self._feature_masks or not self._has_valid_ids():
            return None
        lengths = np.diff(self._offsets)
        shortest, longest = int(lengths.min()), int(lengths.max())
        if shortest < max(1, manifest.min_length) or (longest > manifest.max_length and manifest.long == "reject"):
            return None
        takes_missing = manifest.missing != "refuse"
        if first_fault(steps, vocabulary=manifest.input.vocabulary, takes_missing=takes_missing) is not None:
            return None
        ends: list[int] = self._offsets.tolist()
        items = [
            Item(steps[start:end], end - start, None, identifier)
            for start, end, identifier in zip(ends, ends[1:], self._ids, strict=False)
        ]
        if longest <= manifest.max_length or manifest.long == "window":
            return items
        return [make_item(item.steps, manifest, sent_steps=item.sent_steps, id=item.id) for item in items]

    def _has_valid_ids(self) -> bool:
        return all(identifier is None or len(identifier) <= MAX_ID_CHARACTERS for identifier in self._ids)

    def _valid_item(self, row: int) -> Item | None:
        """The item of a row; None where something is wrong with it, or only `validation` can tell."""
        identifier = self._ids[row]
        is_null = self._has_null and not self._column[row].is_valid
        if self._steps is None or is_null or (identifier is not None and len(identifier) > MAX_ID_CHARACTERS):
            return None
        steps: Steps = self._steps[self._offsets[row] : self._offsets[row + 1]]
        sent, places = len(steps), None
        if self._step_masks and self._step_masks.has(row):
            kept = self._step_masks.row(row, sent)
            if kept is None or not kept.any():
                return None
            if not kept.all():
                places = np.flatnonzero(kept)
                steps = steps[places]
        if why_rejected(steps, self._manifest) is not None:
            return None
        if self._feature_masks and self._feature_masks.has(row):
            features = self._manifest.input.features
            kept = None if features is None else self._feature_masks.row(row, features)
            if kept is None or (self._manifest.missing == "refuse" and not kept.all()):
                return None
            if not kept.all():
                steps = steps.copy()
                steps[:, ~kept] = np.nan
        return make_item(steps, self._manifest, sent_steps=sent, kept_places=places, id=identifier)

    def _explained_item(self, row: int, pointer: str, problems: Problems) -> Item | None:
        return validation.read_item(self._document(row), pointer, self._manifest, problems)

    def _document(self, row: int) -> dict[str, Any]:
        document: dict[str, Any] = {"steps": self._sent.row(row) if self._column[row].is_valid else None}
        if self._ids[row] is not None:
            document["id"] = self._ids[row]
        for name, masks in (("step_mask", self._step_masks), ("feature_mask", self._feature_masks)):
            if masks and masks.has(row):
                document[name] = masks.sent(row)
        return document


class _Masks:
    def __init__(self, column: Any) -> None:
        self._column = column
        self._offsets = offsets_of(column)

    @classmethod
    def of(cls, column: Any) -> _Masks | None:
        """None where there is no column, or where it has only nulls."""
        return None if column is None or column.null_count == len(column) else cls(column)

    def has(self, row: int) -> bool:
        return bool(self._column[row].is_valid)

    def row(self, row: int, size: int) -> NDArray[np.bool_] | None:
        """The mask of a row; None where it has not this size, or a null in it."""
        start, end = int(self._offsets[row]), int(self._offsets[row + 1])
        part = self._column.values.slice(start, end - start) if end - start == size else None
        if part is None or part.null_count:
            return None
        mask: NDArray[np.bool_] = part.to_numpy(zero_copy_only=False)
        return mask

    def sent(self, row: int) -> SentMask:
        """The mask of a row as it was sent."""
        start, end = int(self._offsets[row]), int(self._offsets[row + 1])
        part = self._column.values.slice(start, end - start)
        wrong = np.flatnonzero(part.is_null().to_numpy(zero_copy_only=False)).tolist() if part.null_count else ()
        return SentMask(part.fill_null(False).to_numpy(zero_copy_only=False), wrong)


def _steps(column: StepColumn, manifest: Manifest) -> Steps | None:
    """The steps of a column as the model takes them; None where they have another form."""
    numbers, features = column.numbers, manifest.input.features
    if features is None:
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            return None
        return numbers.astype(
            np.int64, copy=False
        )  # beyond 63 bits it becomes negative, which is not a token id either
    if numbers.ndim == 1 and features == 1:
        numbers = numbers[:, None]
    if numbers.ndim != 2 or numbers.shape[1] != features:
        return None
    return numbers if numbers.dtype == np.float32 else rounded(numbers)
