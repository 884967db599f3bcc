"""Recognises the recurrent cell that a loop's body is, by what it computes.

    h' = o * tanh(c'),  c' = f * c + i * g        LSTM
    h' = z * h + (1 - z) * n                      GRU
    h' = tanh(...)                                RNN

Each gate is an activation of an affine function of the step and of `h`, and the layer has the weights of those. Whether
it equals the loop is shown by the proof of the mend.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from lengthwise_export.mending.cell_body import ACTIVATIONS, Affine, Body, ConstantArray, Leaf, NotACell

_TURNED: Final = {"Sigmoid": 0.0, "HardSigmoid": 1.0}
"""Activations with `1 - f(x) = f(c - x)`, and their c; of HardSigmoid with the alpha 1 and the beta 0."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A recurrent layer."""

    kind: str  # `LSTM`, `GRU` or `RNN`
    weights: NDArray[np.float32]  # `[1, gates * hidden, features]`, with the gates in ONNX's order
    recurrence: NDArray[np.float32]  # `[1, gates * hidden, hidden]`
    bias: NDArray[np.float32]  # `[1, 2 * gates * hidden]`
    attributes: dict[str, Any]
    state: str  # The name of the state that is also the output
    memory: str | None  # The name of an LSTM's other state
    states: frozenset[str]  # The names of the body's values that are the next state
    memories: frozenset[str]  # The names of those that are an LSTM's next other state


@dataclass(frozen=True, slots=True)
class _Gate:
    """`activation(inner)`; `after` is a function of the state alone that the reset gate multiplies (`reset_after`)."""

    activation: str
    numbers: tuple[tuple[str, float], ...]
    inner: Affine
    after: Affine | None = None


_Gates = list[_Gate]


def recognise(
    nodes: Sequence[NodeProto],
    step: tuple[str, int],
    states: Mapping[str, tuple[str, int]],
    known: Mapping[str, ConstantArray],
    others: Mapping[str, int],
) -> Cell:
    """The layer that a loop's body is. Names come with a number of features; `known` are constants of any shape.

    Raises:
        NotACell: It is none that is known.
    """
    body = Body(nodes, known)
    for name, width in others.items():
        body.input(name, width)
    step_leaf = body.input(*step)
    leaves = {name: body.input(name, width) for name, (_, width) in states.items()}
    nexts = {name: after for name, (next_name, _) in states.items() if (after := body.function(next_name)) is not None}
    for state, after in nexts.items():
        for memory, cell in nexts.items():
            gates = None if memory == state else _lstm(after, cell, leaves[memory])
            if gates is not None and (layer := _layer("LSTM", gates, step_leaf, leaves[state])) is not None:
                return Cell("LSTM", *layer, state, memory, body.names_of(after), body.names_of(cell))
        alone = _gate(after)
        for kind, gates in (("GRU", _gru(after, leaves[state])), ("RNN", None if alone is None else [alone])):
            if gates is not None and (layer := _layer(kind, gates, step_leaf, leaves[state])) is not None:
                return Cell(kind, *layer, state, None, body.names_of(after), frozenset())
    raise NotACell


def _gate(value: Affine | Leaf | None) -> _Gate | None:
    """A value as a gate: an activation, and the sum that it is of; None for another value."""
    leaf = value.only if isinstance(value, Affine) else value
    is_activation = leaf is not None and leaf.kind in ACTIVATIONS
    return _Gate(leaf.kind, leaf.numbers, leaf.operands[0]) if leaf is not None and is_activation else None


def _factors(leaf: Leaf | None) -> Iterator[tuple[Affine, Affine]]:
    """The factors of a product, in both orders; none if the leaf is no product."""
    if leaf is not None and leaf.kind == "product":
        one, other = leaf.operands
        yield one, other
        yield other, one


def _lstm(state: Affine, memory: Affine, old: Leaf) -> _Gates | None:
    """The gates i, o, f, c, and at the end the activation of the memory; `old` is the memory before the step.

    The state is `o * activation(memory)`, and the memory `f * old + i * c`, with the factors and terms in any order.
    """
    parts = memory.signs or {}
    if [*parts.values()] != [1, 1]:
        return None
    for (output, activated), (one, other) in product(_factors(state.only), permutations(parts)):
        for (forget, before), (taken, new) in product(_factors(one), _factors(other)):
            gates = [gate for value in (taken, output, forget, new, activated) if (gate := _gate(value)) is not None]
            is_cell = len(gates) == 5 and before.only is old and gates[-1].inner.same(memory)
            if is_cell and _same_activation(*gates[:3]):
                return gates
    return None


def _same_activation(*gates: _Gate) -> bool:
    """Whether gates have the same activation."""
    return len({(gate.activation, gate.numbers) for gate in gates}) == 1


def _gru(state: Affine, old: Leaf) -> _Gates | None:
    """The gates z, r and the new state."""
    for keep, new in _mixed(state, old):
        for inner, reset, after in _reset(new.inner, old):
            if _same_activation(keep, reset):
                return [keep, reset, replace(new, inner=inner, after=after)]
    return None


def _mixed(state: Affine, old: Leaf) -> Iterator[tuple[_Gate, _Gate]]:
    """The update gate z and the new state n of a GRU, whose old state h is `old`.

    Exporters write its next state in two ways. Each is a sum of one term that is no product (`whole`), and of two
    products that differ by one factor and by their sign:

        n + z * h - z * n        `whole` is n
        h + z * n - z * h        `whole` is h, and z is `1 - z` of the other
    """
    signs = state.signs or {}
    whole = next((leaf for leaf, sign in signs.items() if leaf is not None and leaf.kind != "product"), None)
    plus, minus = ([leaf for leaf, sign in signs.items() if sign == own and leaf is not whole] for own in (1, -1))
    if whole is None or signs[whole] != 1 or len(plus) != 1 or len(minus) != 1:
        return
    for (share, other), (again, same) in product(_factors(plus[0]), _factors(minus[0])):
        if again.only is not share.only or same.only is not whole:
            continue
        keep, new = _gate(share), _gate(other if whole is old else whole)
        if whole is old and keep is not None:
            keep = _turned(keep)
        if keep is not None and new is not None and (whole is old or other.only is old):
            yield keep, new


def _turned(gate: _Gate) -> _Gate | None:
    """`1 - gate` as a gate."""
    if gate.activation not in _TURNED or (gate.numbers and gate.numbers != (("alpha", 1.0), ("beta", 0.0))):
        return None
    inner = gate.inner.scaled(-1.0)
    return replace(gate, inner=inner.plus(Affine({}, np.full(inner.width, _TURNED[gate.activation]))))


def _reset(inner: Affine, old: Leaf) -> Iterator[tuple[Affine, _Gate, Affine | None]]:
    """The inner value of a GRU's new state without the part that the reset gate multiplies, that gate, and the part."""
    for leaf, matrix in inner.terms.items():
        rest = Affine({each: own for each, own in inner.terms.items() if each is not leaf}, inner.bias)
        for one, other in _factors(leaf):
            reset = _gate(one)
            if reset is None:
                continue
            if other.only is old:  # (r * h) @ U
                yield rest.plus(Affine({old: matrix}, np.zeros(rest.width))), reset, None
            elif Affine({leaf: matrix}, np.zeros(rest.width)).only is leaf and [*other.terms] == [old]:
                yield rest, reset, other  # r * (h @ U + b)


_Layer = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], dict[str, Any]]


def _layer(kind: str, gates: _Gates, step_leaf: Leaf, state: Leaf) -> _Layer | None:
    """Weights, recurrence, bias, attributes; None if a gate depends on something else than the step and the state."""
    own = gates[:4]
    hidden, parts = state.width, []
    for gate in own:
        if not gate.inner.terms.keys() <= {step_leaf, state} or gate.inner.width != hidden:
            return None
        after = gate.after or Affine({}, np.zeros(hidden))
        recurrence = gate.inner.terms.get(state)
        if gate.after is not None and recurrence is not None:
            return None
        recurrence = after.terms.get(state, np.zeros((hidden, hidden))) if recurrence is None else recurrence
        step = gate.inner.terms.get(step_leaf, np.zeros((step_leaf.width, hidden)))
        parts.append((step.T, recurrence.T, gate.inner.bias, after.bias))
    weights, recurrences, biases, others = (
        np.concatenate(each).astype(np.float32) for each in zip(*parts, strict=True)
    )
    chosen = [gates[index] for index in {"LSTM": (1, 3, -1), "GRU": (0, -1), "RNN": (0,)}[kind]]
    attributes: dict[str, Any] = {"hidden_size": hidden, "activations": [gate.activation for gate in chosen]}
    for number in ("alpha", "beta"):
        if values := [value for gate in chosen for key, value in gate.numbers if key == number]:
            attributes[f"activation_{number}"] = values
    if kind == "GRU" and own[-1].after is not None:
        attributes["linear_before_reset"] = 1
    return weights[None], recurrences[None], np.concatenate([biases, others])[None], attributes
