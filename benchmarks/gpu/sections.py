"""What is measured, in this order: what everything rests on first, what takes longest last."""

from __future__ import annotations

from dataclasses import dataclass


class NotHere(Exception):
    """Something that a section needs is not on this machine; the message says what."""


@dataclass(frozen=True)
class Section:
    """One part of the measurement.

    Attributes:
        name: In results, on the command line, and of the module with its `measure`.
        question: What its figures answer.
        most_seconds: After so many it is ended, and what it had is kept.
    """

    name: str
    question: str
    most_seconds: float

    @property
    def module(self) -> str:
        """Where its `measure(stage, figures)` is."""
        return f"benchmarks.gpu.{self.name}"


SECTIONS = (
    Section("device", "what is measured on", 90),
    Section("placement", "does every node run where it should", 90),
    Section("parity", "how far are the answers from the CPU's", 150),
    Section("limits", "what can the device do at most", 90),
    Section("costs", "what does a batch cost by rows and width", 180),
    Section("throughput", "how many sequences a second, beside three others", 480),
    Section("isolation", "does company or padding change an answer", 180),
    Section("latency", "how long does an answer take at half load", 240),
    Section("busy", "how much of the time does the device compute", 120),
    Section("memory", "does memory stop growing", 240),
    Section("over_http", "what is left of it end to end", 180),
)
