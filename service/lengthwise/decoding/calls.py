"""What a caller asked, once its body is understood: the values that every protocol decodes into.

A `Call` has items, one for each sequence sent; an item's steps are the steps kept, NaN where a value is missing.
Everything here is valid: what is wrong with a body is found before a `Call` exists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding.json_text import kind
from lengthwise.errors import InvalidRequest, Problem
from lengthwise.padding import Steps
from lengthwise.runtime.manifest import Manifest

if TYPE_CHECKING:
    from lengthwise.serving import Served

MAX_TIMEOUT_MS = 86_400_000.0
"""A day: longer deadlines are clipped to it."""
MAX_ID_CHARACTERS = 256
NUMBER_BYTES: Final = 16
"""What a number takes in an answer: float32, and its text with a comma."""
ENTRY_BYTES: Final = 128
"""What an entry of an answer, or a step of a per-step head's, takes beside its numbers: names, labels, lengths."""
MOST_PROBLEMS = 100_000
"""Past so many the rest of a body is not read: to count them takes no longer than to parse the body."""


Find: TypeAlias = "Callable[[str | None, str | None], Served]"
"""Finds the model of a name and a version, None for the default; raises `RequestError` where there is none."""


class Item(NamedTuple):
    """One sequence as sent.

    Attributes:
        steps: The steps kept: `[length, features]` float32 with NaN for a missing value, or `[length]` int64.
        sent: Number of steps sent; more than the length where a step mask left steps out.
        kept: Places of the kept steps among those sent, `[length]`, or None where all are kept.
        id: The caller's own name for it.
    """

    steps: Steps
    sent: int
    kept: NDArray[np.intp] | None = None
    id: str | None = None


StepFault: TypeAlias = Literal["no token", "not finite", "missing"]
"""What a step can have that a model does not take."""


def first_fault(steps: Steps, *, vocabulary: int | None, takes_missing: bool) -> tuple[int, StepFault] | None:
    """The first step that a model does not take, and why; None where it takes all of them.

    Args:
        steps: `[length, features]` float32 with NaN for a missing value, or `[length]` int64 token ids.
        vocabulary: Token ids are below it; not looked at for values.
        takes_missing: Whether a value may be missing.
    """
    wrong: NDArray[np.bool_]
    if steps.ndim == 1:
        wrong = (steps < 0) | (steps >= (vocabulary or 1))
        return (int(wrong.argmax()), "no token") if wrong.any() else None
    if np.count_nonzero(np.isfinite(steps)) == steps.size:  # nearly always: then one look is enough
        return None
    wrong = np.logical_or.reduce(np.isinf(steps), axis=1)
    if wrong.any():
        return int(wrong.argmax()), "not finite"
    if takes_missing:
        return None
    return int(np.logical_or.reduce(np.isnan(steps), axis=1).argmax()), "missing"


def unfit(steps: Steps, manifest: Manifest) -> str | None:
    """Why a model does not take a sequence, as a sentence, or None where it does.

    Of the sequences of a JSON body that are unfit, `validation` says the same value by value.

    Args:
        steps: The kept steps, `[length, features]` float32 with NaN for a missing value, or `[length]` int64.
        manifest: Of the model.
    """
    if not len(steps):
        return "a sequence has at least one step"
    if len(steps) > manifest.max_length and manifest.long == "reject":
        return too_long(len(steps), manifest)
    step = manifest.input
    if step.kind == "values" and steps.shape[1] != step.features:
        return f"the model takes {step.features} features a step, this one has {steps.shape[1]}"
    fault = first_fault(steps, vocabulary=step.vocabulary, takes_missing=manifest.missing != "refuse")
    if fault is None:
        return None
    place, why = fault
    if why == "no token":
        return f"step {place} {no_token(manifest)}"
    if why == "not finite":
        return f"step {place} holds a number that is not finite as float32"
    return f"step {place} lacks a value: {refuses_missing(manifest)}"


def no_token(manifest: Manifest) -> str:
    """The message of a token id that the vocabulary does not have."""
    return f"is no token id: the vocabulary has 0 to {(manifest.input.vocabulary or 1) - 1}"


def wrong_id(value: Any) -> str | None:
    """Why a value is no sequence's or request's id, as a sentence, or None where it is one."""
    if not isinstance(value, str):
        return f"must be a string, it is {kind(value)}"
    if len(value) > MAX_ID_CHARACTERS:
        return f"must have at most {MAX_ID_CHARACTERS} characters, it has {len(value)}"
    return None


def too_long(length: int, manifest: Manifest) -> str:
    """What is said of a sequence past the max length of a model that rejects it."""
    return f"{length} steps; the model {manifest.key} takes at most {manifest.max_length}"


def refuses_missing(manifest: Manifest) -> str:
    """What is said of a missing value where the model takes none."""
    return f"the model {manifest.key} refuses missing values; export it with another missing policy to allow them"


def fitted(
    steps: Steps, manifest: Manifest, *, sent: int, kept: NDArray[np.intp] | None = None, id: str | None = None
) -> Item:
    """The item of a sequence; of one past the model's max length, what the model's policy keeps of it.

    Policy `head` keeps the first `max_length` of the kept steps and `tail` the last, as if the others had been masked;
    `window` keeps all (they are split where they are queued), and `reject` has refused before. What is kept is a copy:
    a view would keep the whole sequence in memory for as long as it waits.

    Args:
        steps: The kept steps, `[length, features]` or `[length]`.
        manifest: Whose max length and policy count.
        sent: Number of steps sent.
        kept: Places of the kept steps among those sent, or None for all.
        id: The caller's own name for it.
    """
    if len(steps) > manifest.max_length and manifest.long in ("head", "tail"):
        part = slice(manifest.max_length) if manifest.long == "head" else slice(-manifest.max_length, None)
        places = np.arange(sent, dtype=np.intp) if kept is None else kept
        return Item(steps[part].copy(), sent, places[part].copy(), id)
    return Item(steps, sent, kept, id)


def compact(items: list[Item], tensor: NDArray[Any]) -> tuple[list[Item], int]:
    """Items that are views of a tensor, as copies where what it is a part of is more than twice as much.

    Args:
        items: Some may be copies already.
        tensor: What the others are views of.

    Returns:
        The items, and how many bytes they keep in memory beside their own steps.
    """
    owner: Any = tensor
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    if isinstance(owner, memoryview):  # it may show a part of its object only
        owner = owner.obj
    owned = owner.nbytes if isinstance(owner, np.ndarray) else memoryview(owner).nbytes
    shared = sum([item.steps.nbytes for item in items if item.steps.base is not None])
    if 2 * shared < owned:
        return [item if item.steps.base is None else item._replace(steps=item.steps.copy()) for item in items], 0
    return items, owned - shared


class Call(NamedTuple):
    """One request for answers.

    Attributes:
        model: Whom it asks.
        items: At least one, in request order.
        attention: Whether the attention weights are wanted.
        timeout_ms: How long the caller waits, or None for the server's default.
        priority: 0 to 9, higher first.
        pointer: Where an item stands in the body as sent, with `{}` for its place among the items.
        width: Steps that the answer has for each item; 0 where it has as many as each item was sent with.
        beside_bytes: What the items keep in memory beside their own steps, where these are views of something larger.
    """

    model: Served
    items: Sequence[Item]
    attention: bool = False
    timeout_ms: float | None = None
    priority: int = 0
    pointer: str = "/sequences/{}"
    width: int = 0
    beside_bytes: int = 0

    @property
    def held_bytes(self) -> int:
        """What its sequences keep in memory."""
        held = self.beside_bytes
        for item in self.items:
            held += item.steps.nbytes
            if item.kept is not None:
                held += item.kept.nbytes
        return held


@dataclass(slots=True)
class Problems:
    """Collects what is wrong with a body: keeps the first, counts the others, and at `MOST_PROBLEMS` reads no further.

    To make a pointer and a sentence takes longer than to read a right value, so where problems may be many, they are
    made only while `listing`, and the others are counted with `count`.
    """

    listed: int = 20
    found: list[Problem] = field(default_factory=list)
    total: int = 0

    @property
    def listing(self) -> bool:
        """Whether the next one will be told, and not just counted."""
        return self.total < self.listed

    def add(self, pointer: str, detail: str) -> None:
        """Notes one; `pointer` is an RFC 6901 pointer into the body as sent.

        Raises:
            InvalidRequest: With it there are `MOST_PROBLEMS`.
        """
        if self.total < self.listed:
            self.found.append(Problem(pointer, detail))
        self.count()

    def count(self) -> None:
        """Counts one that is not told any more. Raises as `add` does."""
        self.total += 1
        if self.total >= MOST_PROBLEMS:
            raise self.refusal()

    def refusal(self) -> InvalidRequest:
        """The error that tells them."""
        return InvalidRequest(self.found, total=self.total, more=self.total >= MOST_PROBLEMS)


def answer_bytes(call: Call) -> int:
    """About how many bytes a call's answer will take, at most, as JSON, which is the longest form."""
    manifest = call.model.manifest
    items = call.items
    rows = len(items)
    entries = rows
    if manifest.long == "window":
        entries += sum([len(item.steps) // manifest.max_length for item in items])
    numbers = 0
    if call.attention or manifest.task == "per-step":
        steps = rows * call.width or sum([item.sent for item in items])
        if call.attention:
            numbers = steps
        if manifest.task == "per-step":
            entries = steps
    return entries * ENTRY_BYTES + (entries * manifest.classes + numbers) * NUMBER_BYTES
