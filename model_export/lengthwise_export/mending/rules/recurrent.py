"""Recurrent layers: they get each row's length, which ends the forward direction and begins the backward one."""

from __future__ import annotations

from lengthwise_export.mending.mender import CROSSES_ROWS, Mender, Rule, is_one, shown
from lengthwise_export.mending.values import Numbers, Ragged


def recurrent(mender: Mender) -> None:
    """LSTM, GRU and RNN: `[time, rows, features]`."""
    value, lengths = mender.ragged(0), mender.value(4)
    if mender.attribute("layout", 0):
        mender.refuse("has the layout 1, which no runtime takes: transpose around it")
    if value.is_merged or value.row_added:
        mender.refuse("runs over merged axes")
    time, rows = value.groups[0][0], value.groups[1][0]
    if time.is_rows or rows.is_time:
        order = f"{shown(value.groups[0])} as steps and {shown(value.groups[1])} as rows"
        mender.refuse(f"runs over {order} (is batch_first forgotten?): {CROSSES_ROWS}")
    if not rows.is_rows:
        mender.refuse("does not run over the rows of the batch")
    given = mender.node.input[4] if lengths is not None else ""
    if not time.is_time:
        if time.fixed is None:
            mender.refuse("runs over an axis that is no time")
        ends = mender.values[given].name if given else ""
    elif given in mender.from_lengths | mender.from_steps:  # its author says where each row ends
        ends = mender.values[given].name
    else:
        mender.causes.append(
            "it runs through the padding, and backwards begins in it"
            if mender.attribute("direction", "forward") != "forward"
            else "it runs on through the padding, so its last state is of a padded step"
        )
        ends = mender.writer.lengths32(time)
    inputs = list(mender.node.input) + [""] * (8 - len(mender.node.input))
    for place in (1, 2, 3, 7):
        if inputs[place]:
            mender.constant(place)
            inputs[place] = mender.values[inputs[place]].name
    inputs[0], inputs[4] = value.name, ends
    for place in (5, 6):
        if inputs[place]:
            inputs[place] = _state(mender, place)
    while inputs and not inputs[-1]:
        inputs.pop()
    names = mender.copy(inputs)
    directions = mender.fixed(2 if mender.attribute("direction", "forward") == "bidirectional" else 1)
    hidden = mender.fixed(int(mender.attribute("hidden_size")))
    all_steps = ((time,), (directions,), (rows,), (hidden,))
    for place, name in enumerate(names):
        if name:
            groups = all_steps if place == 0 else all_steps[1:]
            mender.set(Ragged(name, value.dtype, groups, zeroed=place == 0 and time.is_time), place)


def _state(mender: Mender, place: int) -> str:
    """An initial state `[directions, rows, hidden]`."""
    state = mender.ragged(place)
    if state.row_added or state.is_merged or len(state.groups) != 3:
        mender.refuse("its initial state has merged axes")
    if is_one(state.groups[1]) and isinstance(mender.value(place), Numbers):
        shape = [mender.writer.constant([1]), mender.writer.rows, mender.writer.constant([1])]
        return mender.emit("Expand", [state.name, mender.emit("Concat", shape, axis=0)])
    if not mender.matches(state.groups[1], (mender.rows,)):
        mender.refuse("its initial state has other rows than its input")
    return state.name


RULES: dict[str, Rule] = dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent)
