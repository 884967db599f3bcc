"""Sequences that do not end in Apache Beam: the state of a key is Beam's own, so its checkpoints make steps count once.

    readings (key, steps) ─> Answers, a stateful DoFn ─> (key, steps so far, label, score)

Each worker loads the model in its process: no server is needed. The state that Beam keeps for a key is the text of the
model's state, so a job may be stopped, moved to another runner's workers and go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.coders import StrUtf8Coder
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec

import lengthwise

Answer = tuple[str, int, str, float]
STATE = beam.DoFn.StateParam(ReadModifyWriteStateSpec("state", StrUtf8Coder()))


class Answers(beam.DoFn):  # type: ignore[misc]  # Beam has no types
    """Answers each chunk of steps with what the model says to all steps of its key so far.

    Args:
        path: A model directory, published with `--streaming`.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def setup(self) -> None:
        """Loads the model, once for each worker."""
        self._model = lengthwise.load(self._path)

    def process(self, element: tuple[str, Any], state: Any = STATE) -> Iterator[Answer]:
        """Answers the next steps of a key."""
        key, steps = element
        (answer,) = self._model.predict([steps], states=[state.read() or None], outputs=["state"])
        state.write(answer.state)
        yield key, answer.offset, answer.label, answer.score


def answers(readings: Any, path: str) -> Any:
    """The answers to a collection of (key, steps)."""
    return readings | "answer" >> beam.ParDo(Answers(path))
