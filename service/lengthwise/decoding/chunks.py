"""The states that come with the items of a call: whether each is one, which version answers, and what it has seen.

A *chunk* is the next steps of a sequence; its *state* is the text that came with the answer to the chunk before. Of one
item the first of these counts, and of one call everything that is 422 comes before what is 409:

| status | what is wrong |
|---|---|
| 422 | the text is none, was changed or is not signed; or the version that would answer takes no states |
| 409 | the state is of no served version of this model, or of another one than the call or another state names |
| 409 | it has seen another number of steps than the item's `offset` says |
| 422 | its values have another size than the version's, are not finite, or count other steps than it has seen |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from lengthwise.decoding.calls import Item, Problems
from lengthwise.decoding.json_text import kind
from lengthwise.errors import RequestError, StateConflict
from lengthwise.padding import Sample
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.states import MOST_OFFSET, SequenceState, StateKeys, have_seen, unpack
from lengthwise.wrong_values import counted

if TYPE_CHECKING:
    from lengthwise.repository.registry import ServedModel

ABSENT: Final = object()
"""In the place of what an item does not say."""
NO_STREAM: Final = "the model {} takes and gives no states: it was not exported with --streaming"
NO_OFFSET: Final = "must be a whole number of steps, from 0"
_NO_STATE: Final = (
    "is no state of this service: it was cut, changed, or not signed by it; without a state, send the sequence from "
    "its start"
)


class SentState(NamedTuple):
    """What an item says of the steps before its own: the state after them, and how many they are."""

    text: Any = ABSENT
    offset: Any = ABSENT


class Past(NamedTuple):
    """What came before the steps of an item that is sent with states; nothing where its sequence begins."""

    offset: int = 0  # how many steps there were
    values: np.void | None = None  # the states: a field for each, named as the graph's input
    wants_state: bool = False  # whether the answer has the next state
    repeated: int = 0  # how many of these steps run again with the next ones: as many as the model looks ahead


def resumed(item: Item, past: Past | None) -> Item:
    """The item as the steps that follow its past; an item that is sent without states stays as it is."""
    if past is None:
        return item
    row = item.steps if isinstance(item.steps, Sample) else Sample(item.steps)
    steps = Sample(row.steps, row.beside, row.others, past.wants_state, past.repeated, past.values)
    return Item(steps, item.sent_steps, item.step_indices, item.id, past.offset)  # `_replace` takes three times as long


def sent_state(item: Any) -> SentState:
    """What an item of a body says of the steps before its own, if it is an object."""
    return SentState(item.get("state", ABSENT), item.get("offset", ABSENT)) if isinstance(item, dict) else SentState()


def ordinary_past(text: Any, offset: Any, manifest: Manifest, keys: StateKeys, *, wants_state: bool) -> Past | None:
    """The past of an item as `SentStates` reads it, in half the time, where its state is right and of this version.

    `text` and `offset` are what the item says of them (`SentState`), and here None is what it does not say.

    Raises:
        RequestError: It is not; `SentStates` says what is wrong.
    """
    if text is None and offset is None:
        return Past(wants_state=True) if wants_state else None
    state, streaming = keys.read(text) if isinstance(text, str | bytes) else None, manifest.streaming
    if state is not None and streaming is not None and state.digest == manifest.state_digest:
        values = unpack(state.values, streaming)
        is_believed = offset is None or (type(offset) is int and offset == state.offset)
        if values is not None and is_believed and have_seen(values, streaming, state.offset):
            return Past(state.offset, values, wants_state, min(state.offset, streaming.look_ahead_steps))
    raise RequestError("a state is not ordinary")


@dataclass
class SentStates:
    """What the items of one call say of the steps before their own.

    `state_at` and `offset_at` are the JSON pointers of an item's two fields, with {} for its index. What is 422 goes to
    `problems`, what is 409 to `conflicts`.
    """

    sent: Sequence[SentState]
    state_at: str
    offset_at: str
    problems: Problems
    wants_state: bool  # whether the answer has the next states
    conflicts: Problems = field(init=False, default_factory=lambda: Problems(kind=StateConflict))
    refused: Counter[str] = field(init=False, default_factory=Counter)  # items, by the reason in the metrics
    # Of each item; None if it has none, or something that is none
    _states: list[SequenceState | None] = field(init=False, default_factory=list)
    _at_fault: set[int] = field(init=False, default_factory=set)

    def choose(self, model: ServedModel, *, named: bool) -> tuple[ServedModel, list[Past | None]]:
        """The version that answers a call, and the past of each item (`read`); counts what is refused.

        `model` is the version that the call names (`named`), or else the one that answers calls that name none.
        """
        is_ordinary = all(said == SentState() for said in self.sent)
        versions = [model] if named or is_ordinary else [model, *reversed(model.versions())]
        keys = StateKeys() if is_ordinary else model.state_keys
        index, pasts = self.read([version.manifest for version in versions], keys)
        for reason, number in self.refused.items():
            versions[index].metrics.count("state_refused", number, reason)
        return versions[index], pasts

    def read(self, versions: Sequence[Manifest], keys: StateKeys) -> tuple[int, list[Past | None]]:
        """The index of the version that answers, and the past of each item.

        The past is None for an item without a state, unless the answer is to have one. Without a state that is of a
        version, the first one answers. What is refused is noted in `problems`, `conflicts` and `refused`.
        """
        beginning = Past(wants_state=True) if self.wants_state else None
        self._states = [self._state(index, keys) for index in range(len(self.sent))]
        fitting = {state.digest: _version_of(state, versions) for state in self._states if state is not None}
        chosen = next((index for index in fitting.values() if index is not None), 0)
        several = len({*fitting.values()} - {None}) > 1
        for index, state in enumerate(self._states):
            if versions[chosen].streaming is None and self.sent[index] != SentState():
                at = self.offset_at if self.sent[index].text is ABSENT else self.state_at
                self._refuse(index, "malformed", NO_STREAM.format(versions[chosen].key), at)
            elif state is not None and fitting[state.digest] is None:
                self._refuse(index, "version", _not_of(versions))
            elif state is not None and several:
                self._refuse(index, "version", "the states of a call must be of one version, these are of several")
        return chosen, [self._past(index, versions[chosen]) or beginning for index in range(len(self.sent))]

    def _state(self, index: int, keys: StateKeys) -> SequenceState | None:
        """The state of an item; None if it has none, or something that is none."""
        text, offset = self.sent[index]
        if offset is not ABSENT and (type(offset) is not int or not 0 <= offset <= MOST_OFFSET):
            self._refuse(index, "malformed", NO_OFFSET, self.offset_at)
        if text is ABSENT:
            return None
        state = keys.read(text) if isinstance(text, str) else None
        if state is None:
            detail = _NO_STATE if isinstance(text, str) else f"must be a string, got {kind(text)}"
            self._refuse(index, "malformed", detail)
        return state

    def _past(self, index: int, manifest: Manifest) -> Past | None:
        """The past of an item; None if it has no state. Of one at fault it is so long that no length is refused."""
        state, streaming = self._states[index], manifest.streaming
        seen, believed = 0 if state is None else state.offset, self.sent[index].offset
        if believed is not ABSENT and believed != seen:
            self._refuse(index, "offset", f"the state has seen {counted(seen, 'step')}, not {believed}", self.offset_at)
        values = None if state is None or streaming is None else unpack(state.values, streaming)
        if state is not None and values is None:
            self._refuse(index, "malformed", "has another size than the states of this version, or is not finite")
        if values is not None and streaming is not None and not have_seen(values, streaming, seen):
            self._refuse(index, "malformed", f"says that it has seen {seen} steps, its values count others")
        if index in self._at_fault:
            return Past(manifest.min_length)
        if values is None or streaming is None:
            return None
        return Past(seen, values, self.wants_state, repeated=min(seen, streaming.look_ahead_steps))

    def _refuse(self, index: int, reason: str, detail: str, at: str | None = None) -> None:
        """Notes that an item is at fault, unless it is already; `at` is by default the pointer of its state."""
        if index not in self._at_fault:
            self._at_fault.add(index)
            self.refused[reason] += 1
            found = self.problems if reason == "malformed" else self.conflicts
            found.add((at or self.state_at).format(index), detail)


def _version_of(state: SequenceState, versions: Sequence[Manifest]) -> int | None:
    """The index of the first version that the state is of; None if it is of none."""
    fits = (index for index, each in enumerate(versions) if each.streaming and each.state_digest == state.digest)
    return next(fits, None)


def _not_of(versions: Sequence[Manifest]) -> str:
    """The message for a state of none of these versions."""
    only = versions[0].key if len(versions) == 1 else f"any version of {versions[0].name} that is served"
    return (
        f"the state is not of {only}: serve the one that gave it, or send the sequence from its start, without a state"
    )
