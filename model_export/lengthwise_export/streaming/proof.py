"""Proves that a graph streams: the answer after any chunks is the answer to the whole sequence so far.

Random sequences are cut at random: into single steps, empty chunks, chunks of random sizes, or not at all. Their chunks
run in batches with those of others, of any age. After each chunk the answer is compared with that to the whole so far,
by the streaming graph; and the last one also with that of the model itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import VerificationError
from lengthwise.padding import RowInput, Sample, pad
from lengthwise.runtime.answers import by_row
from lengthwise.runtime.manifest import Manifest, StreamPromise
from lengthwise.runtime.session import Session
from lengthwise.verification.measurement import Reference
from lengthwise.verification.random_sequences import ROUNDING, draw, largest_difference, scale_of

SEQUENCES: Final = 200
_LONGEST: Final = 40  # steps of a sequence: of a longer one, all that a graph does with a state was done before
_ROWS: Final = 24  # streams that run together


@dataclass
class _ChunkedSequence:
    """A sequence that is sent in chunks."""

    row: RowInput  # the sequence, with what stands beside it before the first step
    ends: list[int]  # where the chunks end that are still to be sent, ascending
    sent: int = 0  # steps
    chunks: int = 0
    state: dict[str, NDArray[Any]] = field(default_factory=dict)  # by name; empty before the first step

    def next_chunk(self) -> Sample:
        """The next chunk with the state, which counts as sent."""
        end = self.ends.pop(0)
        chunk = self.row[self.sent : end]
        assert isinstance(chunk, Sample)  # a model that streams takes states beside the steps
        self.sent, self.chunks = end, self.chunks + 1
        return replace(chunk, beside={**chunk.beside, **self.state})


def cuts(length: int, random: np.random.Generator, shortest: int = 1) -> list[int]:
    """Where the chunks of a sequence end, ascending; an end that stands twice is an empty chunk.

    Args:
        length: The number of its steps.
        random: Draws the form: single steps, chunks of random sizes with empty ones between, or one chunk.
        shortest: The number of steps in the first chunk at least.
    """
    form = random.integers(4)
    first = min(shortest, length)
    if form == 0:
        return [length]
    if form == 1:
        return [*range(first, length + 1)]
    count = int(random.integers(1, 6))
    return [*sorted(random.integers(first, length + 1, size=count).tolist()), length]


def prove(
    session: Session, manifest: Manifest, reference: Reference | None, *, seed: int, most: float = ROUNDING
) -> StreamPromise:
    """Runs the proof, and returns what can be promised.

    Args:
        session: Runs the streaming graph.
        manifest: Its manifest, with its states.
        reference: The model itself; None if there is none to compare with.
        seed: The seed of sequences and cuts.
        most: The largest difference that is allowed, in units of max(1, |logit|): from the answer to the whole, and
            from the model itself.

    Raises:
        VerificationError: An answer after some chunks is not that to the whole.
    """  # noqa: DOC502 - `_difference` raises it
    random = np.random.default_rng(seed)
    longest = min(manifest.max_length, manifest.min_length + _LONGEST)
    lengths = random.integers(manifest.min_length, longest + 1, size=SEQUENCES).tolist()
    waiting = [
        _ChunkedSequence(row, cuts(len(row), random, manifest.min_length)) for row in draw(manifest, lengths, seed)
    ]
    running: list[_ChunkedSequence] = []
    largest, bits = 0.0, True
    while waiting or running:
        # Streams begin one by one, so that those in a batch are of any age
        while waiting and len(running) < _ROWS and (not running or random.random() < 0.5):
            running.append(waiting.pop())
        answers = _advance(session, manifest, running)
        wholes = _wholes(lambda batch: session.run(batch).logits, manifest, running)
        for stream, answer, whole in zip(running, answers, wholes, strict=True):
            largest = max(largest, _difference(stream, answer, whole, manifest, most, "the whole sequence so far"))
            bits = bits and answer.tobytes() == _last(whole, answer).tobytes()
        done = [(stream, answer) for stream, answer in zip(running, answers, strict=True) if not stream.ends]
        if reference is not None and done:
            of_model = _wholes(reference, manifest, [stream for stream, _ in done])
            for (stream, answer), whole in zip(done, of_model, strict=True):
                _difference(stream, answer, whole, manifest, most, "the model itself")
        running = [stream for stream in running if stream.ends]
    return StreamPromise(bits=bits, max_difference=0.0 if bits else largest)


def _advance(session: Session, manifest: Manifest, streams: Sequence[_ChunkedSequence]) -> list[NDArray[np.float32]]:
    """Runs the next chunk of each stream, all in one batch; returns their answers, and moves the streams on.

    Raises:
        VerificationError: A state comes out not finite.
    """
    assert manifest.streaming is not None
    chunks = [stream.next_chunk() for stream in streams]
    batch = pad(chunks, multiple=manifest.width_multiple, blank=manifest.blank)
    outputs = session.run(batch, ("logits", "states"))
    names = [state.name for state in manifest.streaming.states]
    if not all(np.isfinite(values).all() for values in outputs.states):
        raise VerificationError(
            f"{manifest.key} does not stream: a state comes out that is not finite, which a service refuses. Replace "
            "missing values and infinities before a layer that mixes steps"
        )
    for index, stream in enumerate(streams):
        stream.state = {name: values[index] for name, values in zip(names, outputs.states, strict=True)}
    return list(by_row(outputs.logits, batch.lengths, manifest))


def _wholes(run: Reference, manifest: Manifest, streams: Sequence[_ChunkedSequence]) -> list[NDArray[np.float32]]:
    """The answers to the sequences of some streams so far, each as a whole."""
    rows = [stream.row[: stream.sent] for stream in streams]
    batch = pad(rows, multiple=manifest.width_multiple, blank=manifest.blank)
    return list(by_row(run(batch), batch.lengths, manifest))


def _last(whole: NDArray[np.float32], answer: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of the answer to a whole sequence, what is the answer to its last chunk: of a per-step model the last steps."""
    return whole[len(whole) - len(answer) :]


def _difference(
    stream: _ChunkedSequence,
    answer: NDArray[np.float32],
    whole: NDArray[np.float32],
    manifest: Manifest,
    most: float,
    of: str,
) -> float:
    """The largest difference of an answer after some chunks from that to the whole.

    Raises:
        VerificationError: It is larger than is allowed.
    """
    expected = _last(whole, answer)
    difference = largest_difference(answer, expected) if len(answer) else 0.0
    if difference > most * scale_of(expected):
        raise VerificationError(
            f"{manifest.key} does not stream: after {stream.sent} steps in {stream.chunks} chunks its answer differs "
            f"by {difference:.3g} from that of {of}; {most * scale_of(expected):.3g} is allowed"
        )
    return difference
