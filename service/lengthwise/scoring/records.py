"""The records of a file: validated against a model's manifest, and grouped into chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lengthwise.batching.pending import HORIZON
from lengthwise.datasets.record_fields import BadRecord, Label, Record, label_mismatch
from lengthwise.decoding import json_body
from lengthwise.decoding.calls import Item, make_item, why_rejected
from lengthwise.errors import RecordError
from lengthwise.runtime.answers import Answer
from lengthwise.runtime.manifest import Manifest

if TYPE_CHECKING:
    from lengthwise.scoring.offline import ScoringResult

CHUNK_RECORDS: Final = HORIZON  # what the planner considers together
CHUNK_BYTES: Final = 33_554_432  # of steps at which a chunk is full


@dataclass(frozen=True, slots=True)
class ValidRecord:
    """A record that the model accepts."""

    id: str  # its own, or its number in the file
    item: Item
    label: Label  # the right answer, where the file has it
    place: str  # `file:line`


InputRecord = ValidRecord | BadRecord


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive records that are scored together, good and bad, and the share of the file read up to here."""

    entries: list[InputRecord]
    read: float

    @property
    def items(self) -> list[Item]:
        """The sequences for the model."""
        return [entry.item for entry in self.entries if isinstance(entry, ValidRecord)]


def validated(records: Iterable[Record | BadRecord], manifest: Manifest) -> Iterator[InputRecord]:
    """The records that the model accepts, and the others with their error."""
    for record in records:
        if isinstance(record, BadRecord):
            yield record
            continue
        reason = why_rejected(record.steps, manifest) or label_mismatch(record, manifest.task)
        if reason is not None:
            yield BadRecord(record.id, RecordError(f"{record.place}: {reason}"))
            continue
        item = make_item(record.steps, manifest, sent_steps=len(record.steps), id=record.id)
        yield ValidRecord(record.id, item, record.label, record.place)


def chunked(entries: Iterable[InputRecord], read: Callable[[], float], *, stop: bool) -> Iterator[Chunk]:
    """Chunks of entries in the order of the file; with `stop`, the first bad record is the last of the last chunk."""
    held: list[InputRecord] = []
    size = 0
    for entry in entries:
        held.append(entry)
        is_last = stop and isinstance(entry, BadRecord)
        if isinstance(entry, ValidRecord):
            size += entry.item.steps.nbytes
        if is_last or len(held) == CHUNK_RECORDS or size >= CHUNK_BYTES:
            yield Chunk(held, read())
            held, size = [], 0
        if is_last:
            return
    if held:
        yield Chunk(held, read())


def prediction_of(
    entry: InputRecord, result: ScoringResult | None, manifest: Manifest, *, attention: bool
) -> dict[str, Any] | RecordError:
    """The prediction of a record, as `POST /predict` has it, or the error."""
    if isinstance(entry, BadRecord):
        return entry.error
    if isinstance(result, Answer):
        return json_body.prediction(manifest, entry.item, result, attention=attention)
    return RecordError(f"{entry.place}: {result}")
