"""Proves that a graph streams: the answer after any chunks is the answer to the whole sequence so far.

Random sequences are cut at random: into single steps, empty chunks, chunks of random sizes, or not at all. Their chunks
run in batches with those of others, of any age. After each chunk the answer, and the attention of its steps, is
compared with that to the whole so far, by the streaming graph; and the last answer also with that of the model itself.

Some sequences are longer than the states reach back and the graph looks ahead: in a shorter one, no step leaves what
the states hold of the last steps, or none is committed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from lengthwise.exporter_api.contract import (
    ROUNDING,
    Manifest,
    PaddedBatch,
    RowInput,
    Sample,
    StreamPromise,
    answers,
    draw,
    largest_difference,
    pad,
    scale_of,
)
from lengthwise.exporter_api.verification import OutputName, Outputs, Reference, Session
from lengthwise_export.errors import VerificationError
from lengthwise_export.onnx_graphs.carried_states import NEXT

SEQUENCES: Final = 200
_LONGEST: Final = 40  # steps of a sequence beyond the shortest; longer ones are needed only if states reach back
_LONG_SEQUENCES: Final = 24  # further sequences, where states reach back
_ROWS: Final = 24  # streams that run together
_MOVES: Final = ("Transpose", "Unsqueeze", "Squeeze", "Cast", "Identity")  # give a state the form of a tensor

_Answer = tuple[NDArray[np.float32], ...]
"""The logits of a row, then the attention weights of its steps where the model has them."""


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
        shortest: The first chunk has at least so many steps.
    """
    form = random.integers(4)
    first = min(shortest, length)
    if form == 0:
        return [length]
    if form == 1:
        return [*range(first, length + 1)]
    count = int(random.integers(1, 6))
    return [*sorted(random.integers(first, length + 1, size=count).tolist()), length]


def reach(graph: ModelProto) -> int:
    """How many steps back the answer of a streaming graph depends on single steps, which its states hold.

    A node that joins a state in front of steps adds the number of steps in the state; along a path through the graph
    these numbers add up. In a graph that looks ahead, the last steps are a state of this kind.
    """
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in [*inferred.input, *inferred.value_info]}
    states = {value.name for value in graph.graph.input} & {
        value.name.removesuffix(NEXT) for value in graph.graph.output if value.name.endswith(NEXT)
    }
    reaches: dict[str, int] = {}
    for node in graph.graph.node:
        first = node.input[0] if node.input else ""
        steps = max((reaches.get(name, 0) for name in node.input), default=0)
        if node.op_type == "Concat" and first in states and first in shapes:
            (axis,) = (attribute.i for attribute in node.attribute if attribute.name == "axis")
            steps += shapes[first][axis].dim_value
        if node.op_type in _MOVES and first in states:
            states.update(node.output)
        reaches.update(dict.fromkeys(node.output, steps))
    return max(reaches.values(), default=0)


def prove(
    graph: ModelProto,
    manifest: Manifest,
    reference: Reference | None,
    *,
    seed: int,
    most: float = ROUNDING,
    notify: Callable[[str], object] = lambda _: None,
) -> StreamPromise:
    """Runs the proof, and returns what can be promised.

    Args:
        graph: The streaming graph.
        manifest: Its manifest, with its states.
        reference: The model itself; None if there is none to compare with.
        seed: The seed of sequences and cuts.
        most: The largest difference that is allowed, in units of max(1, |logit|): from the answer to the whole, and
            from the model itself.
        notify: Takes a line that says what was not proved, if the model accepts no sequence that is long enough.

    Raises:
        VerificationError: An answer after some chunks is not that to the whole.
    """  # noqa: DOC502 - `_difference` raises it
    session = Session(graph.SerializeToString(), manifest)
    random, back = np.random.default_rng(seed), reach(graph)
    lengths, ends = _lengths_and_ends(manifest, back, random)
    _notify_of_bound(manifest, max(lengths), back, notify)
    waiting = [*map(_ChunkedSequence, draw(manifest, lengths, seed), ends)]
    running: list[_ChunkedSequence] = []
    names: list[OutputName] = ["logits", "attention"] if manifest.graph.attention else ["logits"]
    largest, bits = 0.0, True
    while waiting or running:
        # Streams begin one by one, so that those in a batch are of any age
        while waiting and len(running) < _ROWS and (not running or random.random() < 0.5):
            running.append(waiting.pop())
        answers = _advance(session, manifest, running, names)
        wholes = _wholes(lambda batch: session.run(batch, names), manifest, running)
        for stream, answer, whole in zip(running, answers, wholes, strict=True):
            largest = max(largest, _difference(stream, answer, whole, manifest, most, "the whole sequence so far"))
            bits = bits and answer[0].tobytes() == _last(whole[0], answer[0]).tobytes()
        ended = [(stream, answer) for stream, answer in zip(running, answers, strict=True) if not stream.ends]
        if reference is not None and ended:
            _compare_with_model(reference, manifest, ended, most)
        running = [stream for stream in running if stream.ends]
    return StreamPromise(bits=bits, max_difference=0.0 if bits else largest)


def _compare_with_model(
    reference: Reference, manifest: Manifest, ended: Sequence[tuple[_ChunkedSequence, _Answer]], most: float
) -> None:
    """Compares the last answers of sequences with those of the model itself.

    Raises:
        VerificationError: One differs by more than `most`.
    """  # noqa: DOC502 - `_difference` raises it
    wholes = _wholes(lambda batch: Outputs(reference(batch)), manifest, [stream for stream, _ in ended])
    for (stream, answer), whole in zip(ended, wholes, strict=True):
        _difference(stream, answer, whole, manifest, most, "the model itself")


def _lengths_and_ends(manifest: Manifest, back: int, random: np.random.Generator) -> tuple[list[int], list[list[int]]]:
    """Draws the lengths of the sequences, and where their chunks end; the long ones are last.

    Args:
        manifest: The manifest of the model.
        back: How many steps back the answer depends on single steps.
        random: Is advanced.
    """
    assert manifest.streaming is not None
    shortest, most = manifest.min_length, min(manifest.max_length, manifest.streaming.max_steps)
    lengths = random.integers(shortest, min(most, shortest + _LONGEST) + 1, size=SEQUENCES).tolist()
    ends = [cuts(length, random, shortest) for length in lengths]
    long = [min(most, shortest + _LONGEST + 2 * back)] * (_LONG_SEQUENCES if back else 0)
    return lengths + long, ends + [_few_cuts(length, random, shortest) for length in long]


def _notify_of_bound(manifest: Manifest, longest: int, back: int, notify: Callable[[str], object]) -> None:
    """Calls `notify` if even the longest sequence is hardly longer than the states reach back."""
    if longest < manifest.min_length + back + min(back, _LONGEST):
        wanted = manifest.min_length + _LONGEST + 2 * back
        notify(
            f"streaming is proved for up to {longest} steps, and the states reach {back} steps back: pass "
            f"--max-length {wanted} to prove it for longer streams, too"
        )


def _few_cuts(length: int, random: np.random.Generator, shortest: int) -> list[int]:
    """As `cuts`, for a long sequence: a few chunks of random sizes, then single steps."""
    ends = [*random.integers(shortest, length + 1, size=5).tolist(), length - 2, length - 1, length]
    return sorted(max(end, shortest) for end in ends)


def _advance(
    session: Session, manifest: Manifest, streams: Sequence[_ChunkedSequence], names: Sequence[OutputName]
) -> list[_Answer]:
    """Runs the next chunk of each stream, all in one batch; returns their answers, and moves the streams on.

    Raises:
        VerificationError: A state comes out not finite.
    """
    assert manifest.streaming is not None
    chunks = [stream.next_chunk() for stream in streams]
    batch = pad(chunks, multiple=manifest.width_multiple, blank=manifest.blank)
    outputs = session.run(batch, (*names, "states"))
    states = [state.name for state in manifest.streaming.states]
    if not all(np.isfinite(values).all() for values in outputs.states):
        raise VerificationError(
            f"{manifest.key} does not stream: a state comes out that is not finite, which a service refuses. Replace "
            "missing values and infinities before a layer that mixes steps"
        )
    for index, stream in enumerate(streams):
        stream.state = {name: values[index] for name, values in zip(states, outputs.states, strict=True)}
    return _by_row(outputs, batch, manifest)


def _wholes(
    run: Callable[[PaddedBatch], Outputs], manifest: Manifest, streams: Sequence[_ChunkedSequence]
) -> list[_Answer]:
    """The answers to the sequences of some streams so far, each as a whole."""
    rows = [stream.row[: stream.sent] for stream in streams]
    batch = pad(rows, multiple=manifest.width_multiple, blank=manifest.blank)
    return _by_row(run(batch), batch, manifest)


def _by_row(outputs: Outputs, batch: PaddedBatch, manifest: Manifest) -> list[_Answer]:
    """The answer to each row of a batch, without padding."""
    columns = [answers.by_row(outputs.logits, batch.lengths, manifest)]
    if outputs.attention is not None:
        columns.append([row[:length] for row, length in zip(outputs.attention, batch.lengths, strict=True)])
    return list(zip(*columns, strict=True))


def _last(whole: NDArray[np.float32], answer: NDArray[np.float32]) -> NDArray[np.float32]:
    """The part of an answer to a whole sequence that its last chunk gets: the last steps, if each has an answer."""
    return whole[len(whole) - len(answer) :]


def _difference(
    stream: _ChunkedSequence, answer: _Answer, whole: _Answer, manifest: Manifest, most: float, of: str
) -> float:
    """The largest difference of the logits after some chunks from those to the whole; the attention is compared, too.

    Raises:
        VerificationError: A difference is larger than is allowed.
    """
    differences = []
    for kind, actual, of_whole in zip(("answer", "attention"), answer, whole, strict=False):
        expected = _last(of_whole, actual)
        differences.append(largest_difference(actual, expected) if len(actual) else 0.0)
        if differences[-1] > most * scale_of(expected):
            raise VerificationError(
                f"{manifest.key} does not stream: after {stream.sent} steps in {stream.chunks} chunks its {kind} "
                f"differs by {differences[-1]:.3g} from that of {of}; {most * scale_of(expected):.3g} is allowed"
            )
    return differences[0]
