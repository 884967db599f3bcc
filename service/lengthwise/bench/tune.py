"""Finds settings of `serve` that suit a load on this machine.

One option after the other, from the settings given: its candidates and the settings so far are measured in turns, so
that other work on the machine affects all of them alike. A candidate is chosen when it is better by 3 % at least and by
more than repeated measurements of one setting differ; otherwise the setting stays.

Better means more requests a second in a closed loop, and a lower 99th percentile of latency at a given rate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from lengthwise.bench.figures import Figures
from lengthwise.errors import ConfigurationError

ServeOptions = Mapping[str, str]
"""Options of `serve` by name; the others have their defaults."""

Measure = Callable[[ServeOptions], Figures]
"""Runs a service with these options under the load, once."""

_LEAST_GAIN = 0.03
_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class TunedOption:
    """The result for one option.

    Attributes:
        option: Its name.
        scores: By value, the median; "" is the value before.
        noise: The largest relative difference between measurements of one value.
        chosen: The better value, or None where the one before stays.
        reason: A sentence.
    """

    option: str
    scores: dict[str, float]
    noise: float
    chosen: str | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return {
            "option": self.option,
            "scores": self.scores,
            "noise": self.noise,
            "chosen": self.chosen,
            "reason": self.reason,
        }


def candidates(cores: int) -> dict[str, list[str]]:
    """The values to try, the most important option first."""
    return {
        "runners": [str(count) for count in range(1, cores + 1)],
        "max_batch_rows": ["16", "32", "128"],
        "max_wait_ms": ["1", "3"],
    }


def loads(tried: Mapping[str, Sequence[str]]) -> int:
    """The maximum number of loads that tuning runs."""
    return sum((len(values) + 1) * _ROUNDS for values in tried.values())


def tune(
    measure: Measure, tried: Mapping[str, Sequence[str]], given: ServeOptions
) -> tuple[dict[str, str], list[TunedOption]]:
    """The best options, and the result for each.

    Args:
        measure: Runs one load.
        tried: The candidates of each option.
        given: ServeOptions that are set already, and stay.
    """
    best = dict(given)
    steps = []
    for option, values in tried.items():
        if option in given:
            continue
        step = _try(measure, option, values, best)
        if step.chosen is not None:
            best[option] = step.chosen
        steps.append(step)
    return best, steps


def _try(measure: Measure, option: str, values: Sequence[str], before: ServeOptions) -> TunedOption:
    """Measures the values of one option in turns, and chooses."""
    settings: dict[str, ServeOptions] = {"": before} | {value: {**before, option: value} for value in values}
    rounds: dict[str, list[float]] = {value: [] for value in settings}
    unit = ""
    for _ in range(_ROUNDS):
        for value, options in settings.items():
            score, unit = _score(measure(options))
            rounds[value].append(score)
    scores = {value: median(seen) for value, seen in rounds.items()}
    noise = max((max(seen) - min(seen)) / max(seen) for seen in rounds.values())
    more_is_better = unit == "requests/s"
    ratios = {value: scores[value] / scores[""] for value in values}
    gains = {value: (ratio if more_is_better else 1 / ratio) - 1 for value, ratio in ratios.items()}
    leader = max(values, key=lambda value: gains[value])
    needed = max(_LEAST_GAIN, noise)
    chosen = leader if gains[leader] > needed else None
    figures = f"{_shown(scores[''], unit)} as it was, {_shown(scores[leader], unit)} with {leader}"
    reason = (
        f"{figures}: {gains[leader]:+.1%}, more than the noise of {noise:.1%}"
        if chosen is not None
        else f"no value is better by more than {needed:.1%}: {figures} at best"
    )
    return TunedOption(option, scores, noise, chosen, reason)


def _score(figures: Figures) -> tuple[float, str]:
    if figures.latency_ms is None or not figures.is_sound:
        raise ConfigurationError(f"the service did not answer every request at {figures.load}; nothing can be tuned")
    if figures.offered_rate is None:
        return figures.requests_per_second, "requests/s"
    return figures.latency_ms.p99, "ms at p99"


def _shown(score: float, unit: str) -> str:
    return f"{score:,.0f} {unit}" if unit == "requests/s" else f"{score:.2f} {unit}"


def table(steps: Sequence[TunedOption], *, title: str) -> Table:
    """A table with one row for each option."""
    drawn = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("option", "value", "why"):
        drawn.add_column(heading)
    for step in steps:
        drawn.add_row(step.option, step.chosen or "as it was", step.reason)
    return drawn
