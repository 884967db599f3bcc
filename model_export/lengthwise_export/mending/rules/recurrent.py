"""Recurrent layers: they get each row's length, which ends the forward direction and begins the backward one."""

from __future__ import annotations

from lengthwise_export.mending.mender import CROSSES_ROWS, Mender, rule
from lengthwise_export.mending.sizes import Size
from lengthwise_export.mending.values import Group, Numbers, Ragged, is_one, shown


@rule("LSTM", "GRU", "RNN")
def recurrent(mender: Mender) -> None:
    """Layers over `[time, rows, features]`."""
    value = mender.ragged(0)
    _refuse_other_forms(mender, value)
    time, group = value.groups[0][0], value.groups[1]
    names = mender.copy(_inputs(mender, value, _ends(mender, time, group)))
    directions = mender.fixed(2 if mender.attribute("direction", "forward") == "bidirectional" else 1)
    hidden = mender.fixed(int(mender.attribute("hidden_size")))
    all_steps = ((time,), (directions,), group, (hidden,))
    for place, name in enumerate(names):
        if name:
            groups = all_steps if place == 0 else all_steps[1:]
            if len(group) > 1:
                parts = [mender.writer.at_width(size) for axes in groups for size in axes]
                name = mender.emit("Reshape", [name, mender.emit("Concat", parts, axis=0)])
            mender.set(Ragged(name, value.dtype, groups, zeroed=place == 0 and time.is_time), place)


def _refuse_other_forms(mender: Mender, value: Ragged) -> None:
    """Refuses a layer that does not run over the steps, or over another axis of one size, row by row."""
    if mender.attribute("layout", 0):
        mender.refuse("has the layout 1, which no runtime takes: transpose around it")
    if value.row_added or len(value.groups[0]) != 1 or len(value.groups[2]) != 1:
        mender.refuse("runs over merged axes")
    time, group = value.groups[0][0], value.groups[1]
    if time.is_rows or group[0].is_time:
        order = f"{shown(value.groups[0])} as steps and {shown(group)} as rows"
        mender.refuse(f"runs over {order} (is batch_first forgotten?): {CROSSES_ROWS}")
    if not any(size.is_rows for size in group):
        mender.refuse("does not run over the rows of the batch")
    if not time.is_time and time.fixed is None:
        mender.refuse("runs over an axis that is no time")


def _ends(mender: Mender, time: Size, group: Group) -> str:
    """The value that says where each row ends; empty for none."""
    given = mender.node.input[4] if mender.value(4) is not None else ""
    if given and (not time.is_time or given in mender.from_lengths | mender.from_steps):  # its author says it
        return mender.values[given].name
    if not time.is_time:
        return ""
    if len(group) > 1 and any(size.is_time for size in group):
        mender.refuse(f"runs over {shown(group)} as rows, so each step of a sequence is one of its rows")
    mender.causes.append(
        "it runs through the padding, and backwards begins in it"
        if mender.attribute("direction", "forward") != "forward"
        else "it runs on through the padding, so its last state is of a padded step"
    )
    return _for_each(mender, mender.writer.lengths32(time), group)


def _inputs(mender: Mender, value: Ragged, ends: str) -> list[str]:
    inputs = list(mender.node.input) + [""] * (8 - len(mender.node.input))
    for place in (1, 2, 3, 7):
        if inputs[place]:
            mender.constant(place)
            inputs[place] = mender.values[inputs[place]].name
    inputs[0], inputs[4] = mender.merged(value), ends
    for place in (5, 6):
        if inputs[place]:
            inputs[place] = _state(mender, place, value.groups[1])
    while inputs and not inputs[-1]:
        inputs.pop()
    return inputs


def _for_each(mender: Mender, ends: str, group: Group) -> str:
    """The lengths of rows that the original merged with another axis: each row's own, again for each of its parts."""
    if len(group) == 1:
        return ends
    at = [size.is_rows for size in group].index(True)
    single = mender.unsqueezed(ends, [place for place in range(len(group)) if place != at])
    shape = mender.emit("Concat", [mender.writer.at_width(size) for size in group], axis=0)
    return mender.emit("Reshape", [mender.emit("Expand", [single, shape]), mender.writer.constant([-1])])


def _state(mender: Mender, place: int, group: Group) -> str:
    """An initial state `[directions, rows, hidden]`."""
    state = mender.ragged(place)
    if state.row_added or len(state.groups) != 3:
        mender.refuse("its initial state has merged axes")
    if is_one(state.groups[1]) and isinstance(mender.value(place), Numbers):
        shape = [mender.writer.constant([1]), mender.at_width(group), mender.writer.constant([1])]
        return mender.emit("Expand", [state.name, mender.emit("Concat", shape, axis=0)])
    if not mender.matches(state.groups[1], group):
        mender.refuse("its initial state has other rows than its input")
    return mender.merged(state)
