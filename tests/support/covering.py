"""A pairwise covering set of the spec: any two values of any two keys that may stand together do so in one spec."""

import functools
from itertools import combinations, product
from typing import Any

from lengthwise_export.architecture.spec import Spec

CONV_STACKS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "one": [{"channels": 6, "kernel": 3, "norm": "batch"}],
    "even and dilated": [{"channels": 5, "kernel": 4, "dilation": 2, "norm": "layer"}],
    "branches": [
        {"channels": 6, "kernel": [3, 11], "bottleneck": 2, "pool": 3},
        {"channels": 8, "kernel": [2], "bottleneck": 2, "residual": 2},
    ],
    "two": [{"channels": 7, "kernel": 5, "norm": "none"}, {"channels": 4, "kernel": 1, "norm": "batch"}],
}

CHOICES: dict[str, tuple[Any, ...]] = {
    "kind": ("values", "tokens", "tokens with padding_id"),
    "missing": ("refuse", "zero", "mean", "indicator"),
    "normalize": ("training", "sequence", "both", "none"),
    "conv": tuple(CONV_STACKS),
    "rnn": ("lstm", "gru", "none"),
    "layers": (1, 2, 3),
    "bidirectional": (True, False),
    "self_attention_heads": (0, 2),
    "pooling": ("attention", "mean", "max", "mean-max", "last"),
    "task": ("single-label", "multi-label", "per-step"),
}

Choice = dict[str, Any]
Pair = frozenset[tuple[str, Any]]


def build(choice: Choice) -> Spec:
    """The spec of a choice; a key that does not go with the others is left out, as a user would."""
    if choice["kind"] == "values":
        step = {"features": 3, "missing": choice["missing"], "normalize": choice["normalize"]}
    else:
        step = {"vocabulary": 11} | ({"padding_id": 4} if choice["kind"].endswith("padding_id") else {})
    model = {key: choice[key] for key in ("rnn", "layers", "bidirectional", "self_attention_heads", "pooling")}
    if choice["rnn"] == "none":
        del model["bidirectional"]
    if choice["task"] == "per-step":
        del model["pooling"]
    return Spec.model_validate(
        {
            "input": step | {"max_length": 70},
            "model": model | {"hidden": 8, "conv": CONV_STACKS[choice["conv"]]},
            "output": {"labels": ["a", "b", "c"], "task": choice["task"]},
        }
    )


def meaningful(first: tuple[str, Any], second: tuple[str, Any]) -> bool:
    """Whether two settings can both have an effect in one spec."""
    both = dict([first, second])
    if both.get("kind", "values") != "values" and ("missing" in both or "normalize" in both):
        return False
    if both.get("rnn") == "none" and "bidirectional" in both:
        return False
    return not (both.get("task") == "per-step" and "pooling" in both)


@functools.cache
def covering_set() -> list[Choice]:
    """Greedily: the next choice is the one that covers most of the pairs that are still open."""
    open_pairs: set[Pair] = {
        frozenset((first, second))
        for (one, ones), (other, others) in combinations(CHOICES.items(), 2)
        for first, second in product([(one, value) for value in ones], [(other, value) for value in others])
        if meaningful(first, second)
    }
    chosen: list[Choice] = []
    while open_pairs:
        choice: Choice = dict(min(open_pairs, key=lambda pair: sorted(map(str, pair))))
        for key, values in CHOICES.items():
            if key not in choice:
                choice[key] = max(values, key=lambda value: len(open_pairs & _pairs(choice | {key: value})))
        choice = {key: choice[key] for key in CHOICES}
        chosen.append(choice)
        open_pairs -= _pairs(choice)
    return chosen


def _pairs(choice: Choice) -> set[Pair]:
    return {frozenset(pair) for pair in combinations(choice.items(), 2) if meaningful(*pair)}
