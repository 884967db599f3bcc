"""Checks what a graph carries to the next steps: padding must not reach a state, and each must change something."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from lengthwise_export.checking.check import check_subject
from lengthwise_export.checking.leaks import Leak
from lengthwise_export.checking.recording import Subject
from lengthwise_export.checking.report import Report, TrialResult
from lengthwise_export.checking.rule import rules
from lengthwise_export.checking.trials import Sampler
from lengthwise_export.layouts import pad

_NUMBERS: Final = (0.0, 1.0, 1000.0, -1000.0)  # that a state begins with; 0: its own. An extreme does not move with all


@dataclass(frozen=True)
class CarriedStates:
    """The states of a graph, as a check sees them."""

    names: Sequence[str]
    joined: Subject  # Its answers, followed by its next states
    # By a state and the number that it begins with (0: its own): the answers and the other next states
    begun: Callable[[str, float], Subject]


def check_states(states: CarriedStates, report: Report, **settings: Any) -> Report:
    """The report of a graph whose answers are sound, after its states were checked as well.

    Args:
        states: The states.
        report: The report on the answers.
        **settings: Those of `check_subject`.
    """
    of_states = check_subject(states.joined, **settings)
    if of_states.verdict == "leak":
        leaks = tuple(
            replace(leak, cause=rules()["LW307"].cause({"operator": leak.operator}, fix=leak.cause.fix))
            for leak in of_states.leaks
        )
        reason = of_states.reason.replace("the answer to a sequence changes", "a state that it carries on changes")
        return replace(of_states, leaks=leaks[:1], reason=reason)
    if of_states.verdict == "uncheckable":
        report = replace(report, notes=(*report.notes, f"what it carries was not checked: {of_states.reason}"))
    sampler = Sampler(states.joined.steps, seed=settings.get("seed", 0))
    batch = pad([sampler.sequence(max(length, report.min_length)) for length in (5, 3, 1)], multiple=1)
    for name in states.names:
        answers = [states.begun(name, number).answer(batch).logits for number in _NUMBERS]
        if all(np.array_equal(answers[0], other, equal_nan=True) for other in answers[1:]):
            cause = rules()["LW308"].cause({"state": name})
            leak = Leak(name, "state", None, cause, None, 0.0, f"another number in the state {name}")
            result = TrialResult(leak.trial, "order", 0.0, passed=False)
            reason = f"no answer and no other state moves with the state {name}"
            return replace(report, verdict="leak", reason=reason, leaks=(leak,), trials=(*report.trials, result))
    return report
