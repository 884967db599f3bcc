"""Recurrent layers written out as a Loop, as tf2onnx exports those of Keras; with other ways to write the same.

steps -> mask of their values -> Loop: Gather the step, the cell, hold the states where the mask is false -> last output
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

FEATURES, HIDDEN, CLASSES, VOCABULARY = 3, 5, 4, 20

CellName = Literal["lstm", "gru", "gru, reset before", "rnn"]
Array = NDArray[Any]

_GATES = {"lstm": 4, "gru": 3, "gru, reset before": 3, "rnn": 1}

_NUMBERS = {"zero_f": 0, "one_f": 1, "three": 3, "six": 6, "sixth": 1 / 6}
_PLACES = {"minus": -1, "first": 0, "second": 1, "third": 2}

_LSTM = """
    @x = MatMul (@step, @W)
    @r = MatMul (@h, @U)
    @s = Add (@x, @r)
    @b1 = Add (@s, @b)
    @i, @f, @g, @o = Split <axis = 1> (@b1)
    @ia = ACT (@i)
    @fa = ACT (@f)
    @ga = Tanh (@g)
    @oa = ACT (@o)
    @kept = Mul (@fa, @c)
    @new = Mul (@ia, @ga)
    @c_new = Add (@kept, @new)
    @shown = Tanh (@c_new)
    @h_new = Mul (@oa, @shown)
"""
_GRU = """
    @x = MatMul (@step, @W)
    @xb = Add (@x, @b)
    @xz, @xr, @xn = Split <axis = -1> (@xb)
    @r = MatMul (@h, @U)
    @rb = Add (@r, @rb0)
    @hz = Slice (@rb, from_z, to_z, both)
    @hr = Slice (@rb, from_r, to_r, both)
    @hn = Slice (@rb, from_n, to_n, both)
    @z1 = Add (@xz, @hz)
    @z = ACT (@z1)
    @r1 = Add (@xr, @hr)
    @ra = ACT (@r1)
    @n1 = Mul (@ra, @hn)
    @n2 = Add (@xn, @n1)
    @n = Tanh (@n2)
    @rest = Sub (one_f, @z)
    @old = Mul (@z, @h)
    @fresh = Mul (@rest, @n)
    @h_new = Add (@old, @fresh)
"""
_GRU_BEFORE = """
    @x = MatMul (@step, @W)
    @xb = Add (@x, @b)
    @xz, @xr, @xn = Split <axis = -1> (@xb)
    @uzr = Slice (@U, from_z, to_r, both)
    @un = Slice (@U, from_n, to_n, both)
    @rzr = MatMul (@h, @uzr)
    @hz, @hr = Split <axis = 1> (@rzr)
    @z1 = Add (@xz, @hz)
    @z = ACT (@z1)
    @r1 = Add (@xr, @hr)
    @ra = ACT (@r1)
    @rh = Mul (@ra, @h)
    @hn = MatMul (@rh, @un)
    @n2 = Add (@xn, @hn)
    @n = Tanh (@n2)
    @apart = Sub (@h, @n)
    @part = Mul (@z, @apart)
    @h_new = Add (@n, @part)
"""
_RNN = """
    @x = MatMul (@step, @W)
    @xb = Add (@x, @b)
    @r = MatMul (@h, @U)
    @s = Add (@xb, @r)
    @h_new = Tanh (@s)
"""
_CELLS: dict[str, str] = {"lstm": _LSTM, "gru": _GRU, "gru, reset before": _GRU_BEFORE, "rnn": _RNN}


@dataclass(frozen=True, slots=True)
class KerasLoop:
    """One recurrent layer in a Loop."""

    cell: CellName = "lstm"
    masked: float | None = None
    tokens: bool = False
    each_step: bool = False
    where: bool = False
    limit: bool = True
    hard: bool = False
    doubled: bool = False
    sign: float = 1.0

    def model(self, seed: int = 0) -> onnx.ModelProto:
        """The graph, of the input `keras_tensor` and the output `dense`."""
        text = f"<ir_version: 8, opset_import: ['' : 17], producer_name: 'tf2onnx'>\n{self._graph()}".replace("'", '"')
        model: onnx.ModelProto = onnx.parser.parse_model(text)
        used = {name for graph in _graphs(model.graph) for node in graph.node for name in node.input}
        model.graph.initializer.extend(
            onnx.numpy_helper.from_array(array, name) for name, array in self._constants(seed).items() if name in used
        )
        onnx.checker.check_model(model)
        return model

    def _graph(self) -> str:
        given = "int32[rows,width] keras_tensor" if self.tokens else f"float[rows,width,{FEATURES}] keras_tensor"
        answer = f"float[rows,{'width,' if self.each_step else ''}{CLASSES}] dense"
        count = 2 if self.doubled else 1
        cells = [f"c{place}" for place in range(count)]
        states = [
            name for cell in cells for name in ([f"{cell}h", f"{cell}c"] if self.cell == "lstm" else [f"{cell}h"])
        ]
        held = ["prev", *states] if self.masked is not None else states
        body_in = ", ".join(
            ["int64 turn", "bool go", "int32 place", *(f"float[rows,{HIDDEN}] {name}" for name in held)]
        )
        body_in += ", int32 last"
        body_out = ", ".join(
            ["bool going", "int32 next_place", *(f"float[rows,{HIDDEN}] {name}_next" for name in held)]
        )
        body_out += f", int32 last_same, float[rows,{HIDDEN}] kept"
        starts = ["zeros_like" if name == "prev" else "zeros" for name in held]
        outs = ", ".join(["place_end", *(f"{name}_end" for name in held), "last_end", "every"])
        limit = "turns" if self.limit else '""'
        loop = f"""
            {outs} = Loop <body = body ({body_in}) => ({body_out}) {{
                next_place = Add (place, one_i)
                c0step = Gather (time_first, place)
                {"mask_now = Gather (mask_first, place)" if self.masked is not None else ""}
                {self._cells(cells)}
                {self._held(held, cells)}
                last_same = Identity (last)
                turned = Cast <to = 1> (next_place)
                wanted = Cast <to = 1> (last)
                going = Less (turned, wanted)
            }}> ({limit}, begins, zero_i, {", ".join(starts)}, width)
        """
        return f"g ({given}) => ({answer}) {{\n{self._front()}{loop}{self._back()}\n}}"

    def _front(self) -> str:
        lines = ["ids = Identity (keras_tensor)", "steps = Gather (table, ids)"] if self.tokens else []
        steps = "steps" if self.tokens else "keras_tensor"
        if self.masked is not None and self.tokens:
            lines += [
                "same = Equal (keras_tensor, hidden_id)",
                "mask2 = Not (same)",
                "mask3 = Unsqueeze (mask2, minus)",
            ]
            lines += ["mask_first = Transpose <perm = [1, 0, 2]> (mask3)"]
        elif self.masked is not None:
            lines += ["same = Equal (keras_tensor, hidden)", "other = Not (same)", "counts = Cast <to = 1> (other)"]
            lines += ["count = ReduceSum <keepdims = 1> (counts, minus)", "mask = Greater (count, zero_f)"]
            lines += ["mask_first = Transpose <perm = [1, 0, 2]> (mask)", "shown = Cast <to = 1> (mask)"]
            lines += ["kept_steps = Mul (keras_tensor, shown)"]
            steps = "kept_steps"
        lines += [f"time_first = Transpose <perm = [1, 0, 2]> ({steps})", "shape = Shape (time_first)"]
        lines += ["shape_i = Cast <to = 6> (shape)", "width1 = Slice (shape_i, first, second, first)"]
        lines += [
            "width = Squeeze (width1, first)",
            "width_f = Cast <to = 1> (width)",
            "begins = Less (zero_f, width_f)",
            "turns = Cast <to = 7> (width)",
        ]
        lines += ["rows1 = Slice (shape_i, second, third, first)"]
        lines += ["size = Concat <axis = 0> (rows1, hidden_size)", "size_l = Cast <to = 7> (size)"]
        lines += [
            "zeros = Expand (zero_f, size_l)",
            "size_of = Shape (zeros)",
            "zeros_like = ConstantOfShape (size_of)",
        ]
        return "\n".join(lines)

    def _cells(self, cells: list[str]) -> str:
        parts = []
        for place, cell in enumerate(cells):
            text = _CELLS[self.cell].replace("@", cell)
            if self.sign != 1:
                text = text.replace(f"{cell}h_new = ", f"{cell}h_near = ") + f"{cell}h_new = Mul ({cell}h_near, sign)\n"
            for number in range(4):
                name = f"hard{place}{number}"
                hard = f"{name}b = Clip ({name}a, zero_f, six)\n{{out}} = Mul ({name}b, sixth)"
                before, found, after = text.partition(" = ACT (")
                if not found:
                    break
                lines, _, out = before.rpartition("\n")
                argument, _, rest = after.partition(")")
                line = f"{out} = Sigmoid ({argument})"
                if self.hard:
                    line = f"{name}a = Add ({argument}, three)\n" + hard.format(out=out.strip())
                text = f"{lines}\n{line}{rest}"
            parts.append(text)
            if place + 1 < len(cells):
                parts.append(f"{cells[place + 1]}step = Identity ({cell}h_new)")
        return "\n".join(parts)

    def _held(self, held: list[str], cells: list[str]) -> str:
        lines = []
        for name in held:
            new = f"{cells[-1]}h_new" if name == "prev" else f"{name}_new"
            if self.masked is None:
                lines.append(f"{name}_next = Identity ({new})")
            elif self.where:
                lines.append(f"{name}_next = Where (mask_now, {new}, {name})")
            else:
                lines += [f"{name}_m = Cast <to = 1> (mask_now)", f"{name}_not = Not (mask_now)"]
                lines += [f"{name}_o = Cast <to = 1> ({name}_not)", f"{name}_1 = Mul ({name}_m, {new})"]
                lines += [f"{name}_2 = Mul ({name}, {name}_o)", f"{name}_next = Add ({name}_1, {name}_2)"]
        output = "prev_next" if self.masked is not None else f"{cells[-1]}h_next"
        return "\n".join([*lines, f"kept = Identity ({output})"])

    def _back(self) -> str:
        if self.each_step:
            return "rows_first = Transpose <perm = [1, 0, 2]> (every)\ndense = MatMul (rows_first, V)"
        return "end = Slice (every, minus, far, first)\nend1 = Squeeze (end, first)\ndense = MatMul (end1, V)"

    def _constants(self, seed: int) -> dict[str, Array]:
        random = np.random.default_rng(seed)

        def normal(*shape: int) -> Array:
            return (random.normal(size=shape) * 0.5).astype(np.float32)

        width = _GATES[self.cell] * HIDDEN
        cells: dict[str, Array] = {}
        for place in range(2):
            features = FEATURES if place == 0 else HIDDEN
            cells |= {f"c{place}W": normal(features, width), f"c{place}U": normal(HIDDEN, width)}
            cells |= {f"c{place}b": normal(width), f"c{place}rb0": normal(width)}
        far, hidden = np.iinfo(np.int32).max, self.masked or 0
        own = {"hidden": hidden, "sign": self.sign}
        ends = {"z": (0, HIDDEN), "r": (HIDDEN, 2 * HIDDEN), "n": (2 * HIDDEN, far)}
        slices: dict[str, Array] = {"both": np.array([0, 1])}
        for name, (begin, end) in ends.items():
            slices |= {f"from_{name}": np.array([0, begin]), f"to_{name}": np.array([far, end])}
        return {
            **cells,
            **slices,
            "V": normal(HIDDEN, CLASSES),
            "table": normal(VOCABULARY, FEATURES),
            **{name: np.array(value, np.float32) for name, value in {**_NUMBERS, **own}.items()},
            **{
                name: np.array(value, np.int32)
                for name, value in {"zero_i": 0, "one_i": 1, "hidden_id": hidden}.items()
            },
            **{name: np.array([value]) for name, value in {**_PLACES, "far": far}.items()},
            "hidden_size": np.array([HIDDEN], np.int32),
        }


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    inner = [each.g for node in graph.node for each in node.attribute if each.HasField("g")]
    return [graph, *(deep for each in inner for deep in _graphs(each))]
