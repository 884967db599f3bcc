"""Recognises the recurrent cell that a loop's body is, by what it computes.

    h' = o * tanh(c'),  c' = f * c + i * g        LSTM, with the gates i, o, f and the cell gate g
    h' = z * h + (1 - z) * n                      GRU, with the update gate z, and the reset gate r within n
    h' = tanh(...)                                RNN

A prime marks what a step gives. The body's *state* is h, its *memory* is an LSTM's c; n is the *new state* of a GRU
before it is mixed with the old one (ONNX: the hidden gate). Each gate is an activation (`Leaf`) of an affine function
(`Affine`) of the step and of h; the layer gets the weights of these functions. Whether the layer equals the loop is
shown by the proof of the mend. `Leaf`, `Affine` and the signs of its terms are those of `cell_body`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from lengthwise_export.mending.cell_body import ACTIVATIONS, Affine, Body, ConstantArray, Leaf
from lengthwise_export.mending.patterns import NotFound

_COMPLEMENTS: Final = {"Sigmoid": 0.0, "HardSigmoid": 1.0}
"""Activations with `1 - f(x) = f(c - x)`, and their c; of HardSigmoid with the alpha 1 and the beta 0."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A recurrent cell, as ONNX's operators LSTM, GRU and RNN describe it."""

    kind: str  # `LSTM`, `GRU` or `RNN`
    # With the gates in ONNX's order: the weights `[1, gates * hidden, features]`, the recurrence
    # `[1, gates * hidden, hidden]`, and the bias of the weights, then of the recurrence, `[1, 2 * gates * hidden]`
    weights: tuple[NDArray[np.float32], ...]
    attributes: dict[str, Any]  # The operator's attributes, such as `hidden_size` and `activations`
    # Names of values of the body:
    state: str  # The state h before a step
    memory: str | None  # An LSTM's memory c before a step; None for the others
    next_states: frozenset[str]  # All values that are the state after a step
    next_memories: frozenset[str]  # All values that are the memory after a step; empty if there is none


def recognise(
    nodes: Sequence[NodeProto],
    step: tuple[str, int],
    states: Mapping[str, tuple[str, int]],
    constants: Mapping[str, ConstantArray],
    other_inputs: Mapping[str, int],
) -> Cell:
    """Recognises the cell that a loop's body computes.

    Args:
        nodes: The nodes of the body.
        step: The name of the body's input with a step, and its number of features.
        states: The loop's states, h and of an LSTM c as well. By the name of a state before a step: its name after the
            step, and its number of features.
        constants: Constants of any shape that the body takes, by name.
        other_inputs: Other data `[rows, features]` that the body takes: by name, the number of features.

    Raises:
        NotFound: It is neither an LSTM, nor a GRU, nor an RNN.
    """
    body = Body(nodes, constants)
    for name, width in other_inputs.items():
        body.input(name, width)
    step_leaf = body.input(*step)
    leaves = {name: body.input(name, width) for name, (_, width) in states.items()}
    # Left out is what is no affine function of leaves after a step: an operator made it that no cell has. Products and
    # activations are leaves.
    after_step = {
        name: function for name, (next_name, _) in states.items() if (function := body.affine(next_name)) is not None
    }
    # Each state is tried as h, and beside it every other one as the memory of an LSTM.
    for state, next_state in after_step.items():
        for memory, next_memory in after_step.items():
            gates = None if memory == state else _lstm(next_state, next_memory, leaves[memory])
            if gates is not None and (layer := _layer("LSTM", gates, step_leaf, leaves[state])) is not None:
                return Cell("LSTM", *layer, state, memory, body.names_of(next_state), body.names_of(next_memory))
        only_gate = _gate(next_state)
        for kind, gates in (
            ("GRU", _gru(next_state, leaves[state])),
            ("RNN", None if only_gate is None else [only_gate]),
        ):
            if gates is not None and (layer := _layer(kind, gates, step_leaf, leaves[state])) is not None:
                return Cell(kind, *layer, state, None, body.names_of(next_state), frozenset())
    raise NotFound


def _gate(value: Affine | None) -> Leaf | None:
    """A value as a gate, if it is an activation of a function; else None."""
    leaf = None if value is None else value.only
    return leaf if leaf is not None and leaf.kind in ACTIVATIONS else None


def _factors(leaf: Leaf | None) -> Iterator[tuple[Affine, Affine]]:
    """The two factors of a product, in both orders; nothing if the leaf is no product."""
    if leaf is not None and leaf.kind == "product":
        first, second = leaf.operands
        yield first, second
        yield second, first


def _lstm(next_state: Affine, next_memory: Affine, memory: Leaf) -> list[Leaf] | None:
    """Finds the gates of an LSTM in the two functions that its body computes: the next state and the next memory.

    The equations, with the factors and terms in any order:

        next_memory = forget * memory + input * cell
        next_state  = output * activation(next_memory)

    Returns:
        The input, output, forget and cell gate, as ONNX orders them, then the activation of the memory; None if the
        functions are not those of an LSTM.
    """
    terms = next_memory.signs or {}
    if [*terms.values()] != [1, 1]:
        return None
    for (output, activated), (first, second) in product(_factors(next_state.only), permutations(terms)):
        for (forget, old_memory), (input_, cell) in product(_factors(first), _factors(second)):
            values = (input_, output, forget, cell, activated)
            gates = [gate for value in values if (gate := _gate(value)) is not None]
            is_lstm = len(gates) == 5 and old_memory.only is memory and gates[-1].operands[0].same(next_memory)
            if is_lstm and _have_same_activation(*gates[:3]):
                return gates
    return None


def _have_same_activation(*gates: Leaf) -> bool:
    """Whether gates have the same activation, with the same numbers."""
    return len({(gate.kind, gate.numbers) for gate in gates}) == 1


def _gru(next_state: Affine, state: Leaf) -> list[Leaf] | None:
    """The update gate z, the reset gate r and the new state n of a GRU; None if the next state is not that of a GRU.

    The operands of n are what `_reset_gates` yields with r.
    """
    for update, new in _update_gates(next_state, state):
        for operands, reset in _reset_gates(new.operands[0], state):
            if _have_same_activation(update, reset):
                return [update, reset, replace(new, operands=operands)]
    return None


def _update_gates(next_state: Affine, state: Leaf) -> Iterator[tuple[Leaf, Leaf]]:
    """Yields the update gate z and the new state n that a GRU with this next state may have.

    Exporters write the next state in two ways, where h is `state`, the state before the step. Each is a sum of one term
    that is no product (`single`), and of two products that share the factor `gate`, one of them (`plus`) added and the
    other (`minus`) subtracted:

        n + z * h - z * n        `single` is n, and `gate` is z
        h + g * n - g * h        `single` is h, and `gate` is g, which is 1 - z
    """
    signs = next_state.signs or {}
    single = next((leaf for leaf in signs if leaf is not None and leaf.kind != "product"), None)
    plus, minus = ([leaf for leaf in signs if signs[leaf] == sign and leaf is not single] for sign in (1, -1))
    if single is None or signs[single] != 1 or len(plus) != 1 or len(minus) != 1:
        return
    for (gate, added), (same_gate, subtracted) in product(_factors(plus[0]), _factors(minus[0])):
        if same_gate.only is not gate.only or subtracted.only is not single:
            continue
        update, new = None, None
        if single is state:  # the second way
            update, new = _complement(_gate(gate)), _gate(added)
        elif added.only is state:  # the first way
            update, new = _gate(gate), _gate(Affine.of(single))
        if update is not None and new is not None:
            yield update, new


def _complement(gate: Leaf | None) -> Leaf | None:
    """`1 - gate` as a gate; None if there is no gate, or its activation has no such form (see `_COMPLEMENTS`)."""
    if gate is None or gate.kind not in _COMPLEMENTS or gate.numbers not in ((), (("alpha", 1.0), ("beta", 0.0))):
        return None
    constant = Affine({}, np.full(gate.width, _COMPLEMENTS[gate.kind]))
    return replace(gate, operands=(gate.operands[0].scaled(-1.0).plus(constant),))


def _reset_gates(inner: Affine, state: Leaf) -> Iterator[tuple[tuple[Affine, ...], Leaf]]:
    """Yields the reset gates r that the inner function of a GRU's new state may have, in either form of ONNX's GRU.

        x @ W + (r * h) @ U            `linear_before_reset` is 0
        x @ W + r * (h @ U + b)        `linear_before_reset` is 1

    Args:
        inner: The inner function.
        state: The state h before the step.

    Yields:
        1. The inner function without the gate: `x @ W + h @ U` in the first form. In the second form these are two:
           `x @ W`, and what the gate multiplies, `h @ U + b`.
        2. The gate r.
    """
    for leaf, matrix in inner.terms.items():
        rest = Affine({term: inner.terms[term] for term in inner.terms if term is not leaf}, inner.bias)
        is_plain_term = np.array_equal(matrix, np.eye(leaf.width))  # the product itself, without a matrix after it
        for first, second in _factors(leaf):
            reset = _gate(first)
            if reset is not None and second.only is state:
                yield (rest.plus(Affine({state: matrix}, np.zeros(rest.width))),), reset
            elif reset is not None and is_plain_term and [*second.terms] == [state]:
                yield (rest, second), reset


def _layer(
    kind: str, gates: list[Leaf], step: Leaf, state: Leaf
) -> tuple[tuple[NDArray[np.float32], ...], dict[str, Any]] | None:
    """The weights and attributes of ONNX's operator with these gates.

    Args:
        kind: `LSTM`, `GRU` or `RNN`.
        gates: The gates in ONNX's order; of an LSTM, also the activation of the memory as the fifth one.
        step: The step.
        state: The state h before the step.

    Returns:
        The fields `weights` and `attributes` of a `Cell`; None if the operator cannot have these gates, for example
        because one depends on anything but the step and the state.
    """
    gates_with_weights = gates[:4]
    hidden, parts = state.width, []
    for gate in gates_with_weights:
        inner, reset_part = (*gate.operands, Affine({}, np.zeros(hidden)))[:2]
        has_two_recurrences = state in reset_part.terms and state in inner.terms
        if not inner.terms.keys() <= {step, state} or inner.width != hidden or has_two_recurrences:
            return None
        recurrence = {**reset_part.terms, **inner.terms}.get(state, np.zeros((hidden, hidden)))
        weights = inner.terms.get(step, np.zeros((step.width, hidden)))
        parts.append((weights.T, recurrence.T, inner.bias, reset_part.bias))
    all_weights, recurrences, biases, reset_biases = (
        np.concatenate(arrays).astype(np.float32) for arrays in zip(*parts, strict=True)
    )
    # The gates of which ONNX's attribute lists the activation: it has one entry for gates that share theirs.
    listed = [gates[index] for index in {"LSTM": (1, 3, -1), "GRU": (0, -1), "RNN": (0,)}[kind]]
    attributes: dict[str, Any] = {"hidden_size": hidden, "activations": [gate.kind for gate in listed]}
    for number in ("alpha", "beta"):
        if values := [value for gate in listed for key, value in gate.numbers if key == number]:
            attributes[f"activation_{number}"] = values
    if kind == "GRU" and len(gates[-1].operands) == 2:
        attributes["linear_before_reset"] = 1
    return (all_weights[None], recurrences[None], np.concatenate([biases, reset_biases])[None]), attributes
