"""A decoded request, the same for all protocols and always valid: a `Call` with an `Item` for each sequence.

The *sent steps* of a sequence are all steps in its request. The *kept steps* are those that the model gets: a mask may
leave steps out, and a model may cut long sequences. Rules that all protocols check are here, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding.json_text import kind
from lengthwise.errors import IS_TRANSPOSED, InvalidRequest, Problem
from lengthwise.padding import RowInput, Steps, steps_of
from lengthwise.runtime.feature_names import listed, similar
from lengthwise.runtime.manifest import Manifest, StepInput
from lengthwise.wrong_values import counted

if TYPE_CHECKING:
    from lengthwise.repository.registry import ServedModel

MAX_TIMEOUT_MS = 86_400_000.0  # a day; longer timeouts are cut to it
MAX_ID_CHARACTERS = 256
NUMBER_BYTES: Final = 16  # memory of one number of an answer: as float32, and as text with a comma
ENTRY_BYTES: Final = 128  # memory of one prediction, or per-step entry, without its numbers: names, labels, lengths
MOST_PROBLEMS = 100_000  # at which reading a body stops: counting them takes no longer than parsing the body

TRANSPOSED: Final = f"{IS_TRANSPOSED} (in Python: layout='channels-first')"  # ends a message about features

_FIELD_OF_MLFLOW: Final = ", which is of MLflow; here the steps of each row are one of 'sequences'"
OTHER_BODIES: Final = {
    "instances": ", which is of KServe v1: POST /v1/models/NAME:predict takes it",
    "inputs": ", which is of v2: POST /v2/models/NAME/infer takes it",
    "dataframe_split": _FIELD_OF_MLFLOW,
    "dataframe_records": _FIELD_OF_MLFLOW,
}  # fields that other servers know, with advice
ADVICE_ON_TAILS: Final = (
    "steps of null behind the sequence are padding: leave them out (in Python: padding='nan'; of a file: --padding nan)"
)

Find: TypeAlias = "Callable[[str | None, str | None], ServedModel]"  # by name and version; raises `RequestError`


class Item(NamedTuple):
    """One sequence of a request."""

    # The kept steps: `[length, features]` float32, NaN for a missing value, or `[length]` int64; a sample if the model
    # takes more than them
    steps: RowInput
    sent_steps: int  # steps in the request: more than the length if a mask left some out
    step_indices: NDArray[np.intp] | None = None  # `[length]`: where each kept step was in the request; None for all
    id: str | None = None  # the caller's name for it, repeated in the answer
    seen: int | None = None  # of a sequence that goes on with a state: the steps before these; None for any other


def rounded(numbers: NDArray[Any]) -> NDArray[np.float32]:
    """Numbers of any shape rounded to float32 through float64, as those of JSON are; infinite if they are too large."""
    with np.errstate(over="ignore"):
        return numbers.astype(np.float64, copy=False).astype(np.float32)


StepFault: TypeAlias = Literal["no token", "not finite", "missing"]  # why a model does not accept a step


def first_fault(steps: Steps, *, vocabulary: int | None, takes_missing: bool) -> tuple[int, StepFault] | None:
    """The index of the first step that a model does not accept, and why; None if it accepts all steps.

    A token id may be outside the vocabulary ("no token"); a value may be infinite ("not finite"), or NaN where the
    model takes no missing values ("missing"). An infinite value anywhere comes before a missing one.
    """
    wrong: NDArray[np.bool_]
    if steps.ndim == 1:
        wrong = (steps < 0) | (steps >= (vocabulary or 1))
        return (int(wrong.argmax()), "no token") if wrong.any() else None
    if np.count_nonzero(np.isfinite(steps)) == steps.size:  # nearly always; else see what is not finite
        return None
    wrong = np.logical_or.reduce(np.isinf(steps), axis=1)
    if wrong.any():
        return int(wrong.argmax()), "not finite"
    if takes_missing:
        return None
    return int(np.logical_or.reduce(np.isnan(steps), axis=1).argmax()), "missing"


def why_refused(
    steps: Steps, manifest: Manifest, transposed: str = TRANSPOSED, *, seen: int | None = None
) -> str | None:
    """Why a model refuses the kept steps of a sequence, as a sentence about the first fault; None if it accepts them.

    `transposed` ends the sentence if the steps seem to be transposed: then their number is the model's number of
    features. `seen`: as in `length_problem`.
    """
    if manifest.input.has_more:
        more = "several sequences" if manifest.input.sequences else "static values"
        return f"the model {manifest.key} takes {more}, which are not here"
    if not len(steps) and not seen:
        return "a sequence has at least one step"
    if (length_fault := length_problem(len(steps), manifest, seen)) is not None:
        return length_fault
    step = manifest.input
    if step.kind == "values" and steps.shape[1] != step.features:
        return features_message(steps.shape[1], manifest) + (transposed if len(steps) == step.features else "")
    fault = first_fault(steps, vocabulary=step.vocabulary, takes_missing=manifest.missing != "refuse")
    if fault is None:
        return None
    messages: dict[StepFault, str] = {
        "no token": token_message(manifest),
        "not finite": "holds a number that is not finite as float32",
        "missing": f"lacks a value: {missing_message(manifest, in_tail=is_tail(steps, fault[0]))}",
    }
    # The feature of the first wrong value in that step, if the features have names.
    is_wrong = np.isnan if fault[1] == "missing" else np.isinf
    feature_text = "" if step.names is None else f" ({step.names[int(is_wrong(steps[fault[0]]).argmax())]})"
    return f"step {fault[0]}{feature_text} {messages[fault[1]]}"


def features_message(count: int, manifest: Manifest) -> str:
    """The message for a step with `count` values, where the model takes another number of features."""
    names = f" ({listed(manifest.input.names)})" if manifest.input.names else ""
    return f"the model takes {counted(manifest.input.features or 1, 'feature')} a step{names}, this one has {count}"


def token_message(manifest: Manifest) -> str:
    """The message of a token id outside the vocabulary."""
    return f"is not a token id: the vocabulary has 0 to {(manifest.input.vocabulary or 1) - 1}"


def id_problem(value: Any) -> str | None:
    """What is wrong with the id of a sequence or of a request, as a sentence; None if it is valid."""
    if not isinstance(value, str):
        return f"must be a string, got {kind(value)}"
    if len(value) > MAX_ID_CHARACTERS:
        return f"must have at most {MAX_ID_CHARACTERS} characters, it has {len(value)}"
    return None


def read_id(value: Any, pointer: str, problems: Problems) -> str | None:
    """The id of a sequence or of a request; None if it is wrong, which is added to `problems`."""
    problem = id_problem(value)
    if problem is None:
        return str(value)
    problems.add(pointer, problem)
    return None


def length_problem(length: int, manifest: Manifest, seen: int | None = None) -> str | None:
    """Why a model does not accept a sequence of `length` steps; None if it does.

    `seen`: the steps before them, of a sequence that is sent with states (0 where it begins); None for any other.
    """
    if length > manifest.max_length and manifest.long == "reject":
        return f"{length} steps; the model {manifest.key} takes at most {manifest.max_length}"
    total = length + (seen or 0)
    if total < manifest.min_length:
        return f"{counted(total, 'step')}; the model {manifest.key} needs at least {manifest.min_length}"
    if seen is not None and manifest.streaming is not None and total > manifest.streaming.max_steps:
        return (
            f"{total} steps so far; a sequence of the model {manifest.key} has at most {manifest.streaming.max_steps}"
        )
    return None


def no_steps(step: StepInput) -> Steps:
    """The steps of a chunk that has none: `[0, features]` float32, or `[0]` int64."""
    return np.zeros(0, np.int64) if step.features is None else np.zeros((0, step.features), np.float32)


def is_tail(steps: Steps, first: int) -> bool:
    """Whether all values are missing from the step `first` on."""
    return bool(np.isnan(steps[first:]).all())


def missing_message(manifest: Manifest, *, in_tail: bool = False) -> str:
    """The message for a missing value where the model accepts none, with advice.

    `in_tail`: no value follows it, so the missing ones are probably padding.
    """
    advice = (
        ADVICE_ON_TAILS
        if in_tail
        else "to allow them, export a model that takes NaN with --missing handled, or train it again with `missing` in "
        "its spec"
    )
    return f"the model {manifest.key} refuses missing values; {advice}"


def make_item(
    steps: RowInput,
    manifest: Manifest,
    *,
    sent_steps: int,
    step_indices: NDArray[np.intp] | None = None,
    id: str | None = None,
) -> Item:
    """Makes the item of a sequence, which is cut if it is longer than the model's max length.

    By the model's policy for long sequences (`manifest.long`):

    - `head` keeps the first `max_length` steps, `tail` the last, as if a mask had removed the others. The kept steps
      are a copy: a view would keep the whole sequence in memory while it waits.
    - `window` keeps all steps: the sequence is split when it is queued.
    - `reject`: the caller has refused such a sequence, or refuses it later.

    Args:
        steps: `[length, features]`, or `[length]` token ids, without steps that a mask leaves out.
        manifest: Of the model.
        sent_steps: The number of steps in the request.
        step_indices: `[length]`: where each of `steps` was among the sent steps; None if no mask leaves any out.
        id: The caller's name for the sequence.
    """
    if len(steps) > manifest.max_length and manifest.long in ("head", "tail"):
        kept = slice(manifest.max_length) if manifest.long == "head" else slice(-manifest.max_length, None)
        indices = np.arange(sent_steps, dtype=np.intp) if step_indices is None else step_indices
        return Item(steps[kept].copy(), sent_steps, indices[kept].copy(), id)
    return Item(steps, sent_steps, step_indices, id)


def split(array: Steps, bounds: Sequence[int], ids: Iterable[str | None], manifest: Manifest) -> list[Item]:
    """Splits an array of concatenated sequences into their items; `bounds` are their starts, and the end of the last.

    If the model keeps the head or the tail of long sequences (`manifest.long`), they are cut (`make_item`). Else long
    ones stay whole: they were refused before, or are split into windows when they are queued.
    """
    items = [
        Item(array[start:end], end - start, None, identifier)
        for start, end, identifier in zip(bounds, bounds[1:], ids, strict=False)
    ]
    if manifest.long in ("reject", "window"):
        return items
    return [make_item(item.steps, manifest, sent_steps=item.sent_steps, id=item.id) for item in items]


def _is_view(item: Item) -> bool:
    """Whether the steps of an item are a part of a larger array."""
    return steps_of(item.steps).base is not None


def compact(items: list[Item], tensor: NDArray[Any]) -> tuple[list[Item], int]:
    """Copies the steps of items if they use less than half of the array of which they are views, so that it is freed.

    Returns the items, with copies or as they are, and how many bytes of the array stay in memory although no item uses
    them: 0 if the steps were copied.
    """
    # The object that owns the memory of the array (which may be a view itself), and its bytes.
    owner: Any = tensor
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    if isinstance(owner, memoryview):  # may be a part of its object only
        owner = owner.obj
    owner_bytes = owner.nbytes if isinstance(owner, np.ndarray) else memoryview(owner).nbytes
    steps_bytes = sum([item.steps.nbytes for item in items if _is_view(item)])
    if 2 * steps_bytes < owner_bytes:
        return [item._replace(steps=item.steps.copy()) if _is_view(item) else item for item in items], 0
    return items, owner_bytes - steps_bytes


class Call(NamedTuple):
    """One decoded request."""

    model: ServedModel
    items: Sequence[Item]  # at least one, in request order
    attention: bool = False
    timeout_ms: float | None = None  # None: the server's default
    priority: int = 0  # 0 to 9, higher first
    pointer: str = "/sequences/{}"  # JSON pointer of an item in the body, {} for its index
    width: int = 0  # entries of a per-step answer of each item; 0: as many as steps were sent
    extra_bytes: int = 0  # memory besides the steps, if the steps are views of a larger array
    states: bool = False  # whether the answer has the states after these steps

    @property
    def chunks(self) -> int:
        """How many of the items came with a state, or ask for one."""
        return len(self.items) if self.states else sum(item.seen is not None for item in self.items)

    @property
    def memory_bytes(self) -> int:
        """The bytes of memory that the sequences keep."""
        size = self.extra_bytes
        for item in self.items:  # a loop: nearly all calls have one item
            size += item.steps.nbytes
            if item.step_indices is not None:
                size += item.step_indices.nbytes
        return size


@dataclass(slots=True)
class Problems:
    """What is wrong with a body: the first problems with their texts, and the number of all.

    Only the first `most_listed` get a text, because to write one takes longer than to read a valid value.
    """

    most_listed: int = 20
    kind: type[InvalidRequest] = InvalidRequest  # the class of the error
    first: list[Problem] = field(default_factory=list)
    total: int = 0
    left_out: int = 0  # values that are missing in steps that are objects, in the whole body

    def add(self, pointer: str, detail: str | Callable[[], str]) -> None:
        """Adds a problem at a JSON pointer (RFC 6901); if enough have a text, it is only counted.

        `detail` is the text, or a function that returns it: it is only called for a problem that gets its text. Raises
        `InvalidRequest` if there are `MOST_PROBLEMS` now.
        """
        if self.total < self.most_listed:
            self.first.append(Problem(pointer, detail if isinstance(detail, str) else detail()))
        self.count()

    def count(self, number: int = 1) -> None:
        """Counts `number` problems without a text.

        Raises:
            InvalidRequest: There are `MOST_PROBLEMS` now; the rest of the body is not read.
        """  # noqa: DOC502 - `error` makes it
        self.total = min(self.total + number, MOST_PROBLEMS)
        if self.total == MOST_PROBLEMS:
            raise self.error()

    def require_none(self) -> None:
        """Raises an error with all problems, if there are any.

        Raises:
            InvalidRequest: There are problems.
        """  # noqa: DOC502 - `error` makes it
        if self.total:
            raise self.error()

    def error(self) -> InvalidRequest:
        """The error with these problems."""
        return self.kind(self.first, total=self.total, more=self.total >= MOST_PROBLEMS)


def escaped(name: str) -> str:
    """A name as a part of a JSON pointer: `~` and `/` are escaped (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


def unknown_fields(document: Mapping[str, Any], known: frozenset[str], at: str, problems: Problems) -> None:
    """Adds a problem for each field of an object that is not known; long names are cut, so that answers stay short."""
    for name in document:
        if name not in known:
            shown = name if len(name) <= MAX_ID_CHARACTERS else f"{name[:MAX_ID_CHARACTERS]}..."
            problems.add(f"{at}/{escaped(shown)}", partial(_unknown_field_message, name, known))


def _unknown_field_message(name: str, known: frozenset[str]) -> str:
    """The message for a field that is not one of the `known` ones, with the one that may be meant."""
    names = sorted(known)
    # Fields of other servers, only at the root of a body of `POST /predict`.
    hint = (OTHER_BODIES if "sequences" in known else {}).get(name) or similar(name, names)
    if name == "inputs" and "instances" in known:  # a body in columns, not a misspelt `outputs`: its own advice is told
        hint = ""
    return f"unknown field{hint}; known are {listed(names)}"


def answer_bytes(call: Call) -> int:
    """An upper estimate of the bytes of a call's answer as JSON, which is its longest form.

    An answer has *entries*, each with a probability for every label: one for each sequence or window, or, of a per-step
    model, one for each step. With attention it has a further number for each step.
    """
    manifest = call.model.manifest
    items = call.items
    entries = len(items)
    if manifest.long == "window":
        entries += sum([len(item.steps) // manifest.max_length for item in items])
    numbers = 0  # besides the probabilities
    if call.attention or manifest.task == "per-step":
        # In tensors every item has `width` steps.
        steps = len(items) * call.width or sum([item.sent_steps for item in items])
        if call.attention:
            numbers = steps
        if manifest.task == "per-step":
            entries = steps
    states = (
        len(items) * manifest.streaming.state_bytes * 3 // 2 if call.states and manifest.streaming else 0
    )  # as text
    return entries * ENTRY_BYTES + (entries * manifest.classes + numbers) * NUMBER_BYTES + states
