"""Finds the convolutions of a graph up to their pooling over the steps, and puts one operator in their place.

    values -> Transpose -> Conv, BatchNormalization, Relu, Add, Concat, MaxPool -> sum, or maximum, of valid steps

becomes `values, lengths -> PooledConvolutions` (`kernels/_convolutions.c`), which runs each row at its own length. Then
a row has no steps past its end, so the masks of the graph are left out: a convolution pads a row with 0, and a maximum
with the lowest number, which is what these masks write there. The nodes that compute a mask are not understood: only
their operators and their inputs are checked. So `runtime.opening` runs both graphs on sequences of several lengths, and
uses the operator only if the answers agree.

| word here | meaning |
|---|---|
| value | a tensor `[rows, channels, width]` between two operators; it has a number, 0 for the sequences |
| step | of the plan: one operator of the kernels (`_Step`); elsewhere a step of a sequence |
| fill | the number that a mask writes past the end of each row (`Where(mask, value, fill)`) |
| slot | a buffer of the kernels, for one value at a time |
| padded channels | channels of a value, rounded up to a multiple of `_CHANNEL_MULTIPLE`, as the kernels compute them |
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.runtime.onnx import onnx_graph
from lengthwise.runtime.onnx.onnx_graph import Graph, Node
from lengthwise.runtime.onnx.pattern import NotFound, Pattern, require

DOMAIN: Final = "lengthwise.convolutions"
"""The domain of the operator PooledConvolutions. It occurs in no file."""
_CHANNEL_MULTIPLE: Final = 16
_LOWEST: Final = -3e38  # a fill of at most this is never the maximum
_CONVOLVE, _SCALE, _RECTIFY, _ADD, _POOL, _COPY = range(6)  # as in `_convolutions.c`


def fused(model: bytes, sequences: str, lengths: str, features: int) -> bytes:
    """Returns the graph with PooledConvolutions in it; `NotFound` (`require`) if it has no convolutions for it.

    Args:
        model: The ONNX file.
        sequences: The name of its input with the sequences, `[rows, width, features]`.
        lengths: The name of its input with the lengths, int32.
        features: Numbers of a step.
    """
    require(b"Conv" in model)
    return _Trunk(onnx_graph.read(model), sequences, lengths, features).replaced()


class _Step(NamedTuple):
    """One operator, as `struct Step` in `_convolutions.c` has it, but with numbers of values instead of slots."""

    kind: int  # `_CONVOLVE` to `_COPY`
    source: int  # the value that it reads
    target: int  # the value that it makes
    width: int  # padded channels of its source
    out_width: int  # padded channels of its target
    second_source: int  # the second value of a sum; of other operators the source
    taps: int = 1  # steps of a convolution's or pooling's window
    dilation: int = 1
    left: int = 0  # steps of padding before the row; of a copy, the channel of the target where it begins
    weights_begin: int = 0  # where its weights begin in `lengthwise.numbers`


class _Trunk(Pattern):
    """The part of a graph from the sequences to the pooling, as a list of operators for PooledConvolutions.

    From the pooling, `_value` follows each value back to the sequences. Each node on the way is read by the method for
    its operator (`_READERS`), which adds the `_Step` that computes it (for a Concat, several), and returns the number
    of the value that the node makes. Every method raises `NotFound` (`require`) where no kernel computes a node.
    """

    def __init__(self, graph: Graph, sequences: str, lengths: str, features: int) -> None:
        super().__init__(graph)
        self._sequences, self._lengths = sequences, lengths
        self._channels = [features]  # of each value, by its number
        self._values: dict[str, int] = {}  # the numbers of values, by their names in the graph
        self._steps: list[_Step] = []  # in the order in which they run
        self._numbers: list[NDArray[np.float32]] = []  # the weights of the steps, flat

    def replaced(self) -> bytes:
        """Returns the graph in which the operator replaces everything from the sequences to the only pooling."""
        # 1. The pooling, and all steps up to it
        poolings = [(node, pooled) for node in self.graph.nodes if (pooled := self._pooled_value(node)) is not None]
        require(len(poolings) == 1)
        pooling, name = poolings[0]
        result = self._value(name)
        require(any(step.kind == _CONVOLVE for step in self._steps))
        # 2. The plan, as the kernels read it: a head, and the steps with slots for values
        slots, count = self._slots(result)
        steps = [
            (
                *(step.kind, slots[step.source], slots[step.second_source], slots[step.target]),
                *(step.width, step.out_width, step.taps, step.dilation, step.left, step.weights_begin),
            )
            for step in self._steps
        ]
        head = [self._channels[0], count, self._channels[result], slots[result], int(pooling.operator == "ReduceMax")]
        # 3. The new graph
        self.graph.add_tensor("lengthwise.plan", np.array([*head, *np.ravel(steps)], np.int32))
        self.graph.add_tensor("lengthwise.numbers", np.concatenate(self._numbers))
        inputs = [self._sequences, self._lengths, "lengthwise.plan", "lengthwise.numbers"]
        self.replace(pooling, Node("PooledConvolutions", inputs, pooling.outputs, domain=DOMAIN), [])
        self.graph.remove_unused()
        # A convolution that is still used would be computed twice.
        require(not any(node.operator == "Conv" and node.outputs[0] in self._values for node in self.graph.nodes))
        return self.graph.write({DOMAIN: 1})

    def _pooled_value(self, node: Node) -> str | None:
        """Returns the name of the value that a node pools: by a sum, or a maximum, over the valid steps.

        None if the node does something else. The name is that of the value before its masks.
        """
        name = node.inputs[0] if node.inputs else ""
        try:
            if node.operator == "Gather":  # the first row of ones @ value^T: a sum with the same bits at every width
                require(node.attributes.get("axis") == 1)
                product = self.maker(name, "MatMul")
                self.maker(product.inputs[0], "ConstantOfShape")
                transposed = self.maker(product.inputs[1], "Transpose")
                require(transposed.attributes.get("perm") == (0, 2, 1))
                name = transposed.inputs[0]
            else:
                require(node.operator in ("ReduceSum", "ReduceMax") and node.attributes.get("keepdims", 1) == 0)
                require(self.axis(node) in (2, -1))
            source, fill = self._unmasked(name)
            require(fill <= _LOWEST if node.operator == "ReduceMax" else fill == 0)
        except NotFound:
            return None
        return source

    def _unmasked(self, name: str) -> tuple[str, float]:
        """Goes back from a value over its masks to the value before them.

        Squeeze and Unsqueeze, which add an axis for an operator of two dimensions and remove it, are passed over too.

        Returns:
            The name of the value before the masks, and which number is past the end of each row: the fill of the mask
            that is applied last. Without a mask it is 0 for the sequences, which are padded with zeros, and NaN for
            other values, where any number may be there.
        """
        fill = np.nan  # no mask yet
        while (node := self.makers.get(name)) is not None and node.operator in ("Unsqueeze", "Squeeze", "Where"):
            if node.operator != "Where":
                require(self.axis(node) == 2)
                name = node.inputs[0]
                continue
            constants = [value for value in node.inputs[1:] if len(self.graph.constants.get(value, ())) == 1]
            require(len(constants) == 1)
            self.require_mask_of_lengths(node.inputs[0], self._lengths)
            fill = self.constant(constants[0]) if np.isnan(fill) else fill  # the mask nearest to the value is the last
            name = next(value for value in node.inputs[1:] if value != constants[0])
        is_input = node is not None and node.operator == "Transpose" and node.inputs[0] == self._sequences
        return name, 0.0 if is_input and np.isnan(fill) else fill

    def _value(self, name: str) -> int:
        """Returns the number of a value; adds the steps that compute the value, unless they are there already."""
        name, _ = self._unmasked(name)
        if name not in self._values:
            node = self.maker(name, *self._READERS)
            self._values[name] = self._READERS[node.operator](self, node)
        return self._values[name]

    def _add_step(self, kind: int, source: int, channels: int, *weights: NDArray[Any], **fields: int) -> int:
        """Adds a `_Step` that makes a new value; returns the number of the new value.

        Args:
            kind: `_CONVOLVE` to `_COPY`.
            source: The number of the value that the step reads.
            channels: The channels of the new value.
            *weights: The weights of the step, in the order in which the kernels read them.
            **fields: Further fields of the step.
        """
        self._channels.append(channels)
        target = len(self._channels) - 1
        fields = {"second_source": source, "weights_begin": sum(map(len, self._numbers)), **fields}
        width, out_width = _padded_channels(self._channels[source]), _padded_channels(channels)
        self._steps.append(_Step(kind, source, target, width, out_width, **fields))
        self._numbers += [np.ravel(array).astype(np.float32) for array in weights]
        return target

    def _input(self, node: Node) -> int:
        """Reads the Transpose that brings the sequences to `[rows, features, width]`: value 0."""
        require(node.inputs[0] == self._sequences and node.attributes.get("perm") == (0, 2, 1))
        return 0

    def _window(self, node: Node, taps: int, *, least_fill: float, most_fill: float) -> dict[str, int]:
        """Reads the window of a convolution or a pooling that keeps the number of steps.

        Where the window reads past the end of a row, the graph reads the fill of its input, and the kernels read the
        number that they pad with. Both must have the same effect: so the fill must be from `least_fill` to `most_fill`.
        A window of one tap never reads past the end.

        Returns:
            The fields `taps`, `dilation` and `left` of its `_Step`.
        """
        dilation = self._last_integer(node, "dilations")
        pads = node.attributes.get("pads", (0, 0))
        require(isinstance(pads, tuple) and node.attributes.get("auto_pad", "NOTSET") == "NOTSET")
        assert isinstance(pads, tuple)  # for the type checker
        left, right = int(pads[len(pads) // 2 - 1]), int(pads[-1])
        require(sum(pads) == left + right == (taps - 1) * dilation and min(left, right) >= 0)
        _, fill = self._unmasked(node.inputs[0])
        require(self._last_integer(node, "strides") == 1 and (taps == 1 or least_fill <= fill <= most_fill))
        return {"taps": taps, "dilation": dilation, "left": left}

    def _last_integer(self, node: Node, name: str) -> int:
        """Returns the integer that an attribute has for the axis of steps, which is the last; 1 without the attribute.

        An operator of two dimensions has another integer before it, which must be 1.
        """
        integers = node.attributes.get(name, (1,))
        require(isinstance(integers, tuple) and all(integer == 1 for integer in integers[:-1]))
        return int(integers[-1])  # type: ignore[index]

    def _convolution(self, node: Node) -> int:
        """Adds a Conv that keeps the number of steps; returns the number of its value.

        A Conv of two dimensions must have a height of 1.
        """
        shape = self.graph.tensors[node.inputs[1]].shape if node.inputs[1] in self.graph.tensors else ()
        require(len(shape) in (3, 4) and shape[2:-1] in ((), (1,)) and node.attributes.get("group", 1) == 1)
        weights = self.numbers(node.inputs[1], *(-1 for _ in shape)).reshape(shape[0], shape[1], shape[-1])
        bias = self.numbers(node.inputs[2], shape[0]) if any(node.inputs[2:]) else np.zeros(shape[0])
        source = self._value(node.inputs[0])
        require(self._channels[source] == shape[1])
        window = self._window(node, shape[-1], least_fill=0.0, most_fill=0.0)
        matrix = np.zeros((shape[-1], _padded_channels(shape[1]), _padded_channels(shape[0])))  # taps, in, out
        matrix[:, : shape[1], : shape[0]] = weights.transpose(2, 1, 0)
        return self._add_step(_CONVOLVE, source, shape[0], _with_padded_channels(bias), matrix, **window)

    def _norm(self, node: Node) -> int:
        """Adds a batch normalisation, as one scale and one shift for each channel; returns the number of its value."""
        source = self._value(node.inputs[0])
        gamma, beta, mean, variance = (self.numbers(name, self._channels[source]) for name in node.inputs[1:5])
        epsilon = node.attributes.get("epsilon", 1e-5)
        require(not node.attributes.get("training_mode", 0))
        scale = gamma / np.sqrt(variance.astype(np.float64) + float(epsilon))  # type: ignore[arg-type]
        shift = beta - mean * scale
        return self._add_step(
            _SCALE, source, self._channels[source], _with_padded_channels(scale), _with_padded_channels(shift)
        )

    def _rectifier(self, node: Node) -> int:
        """Adds a Relu."""
        source = self._value(node.inputs[0])
        return self._add_step(_RECTIFY, source, self._channels[source])

    def _sum(self, node: Node) -> int:
        """Adds an Add of two values with the same number of channels; returns the number of the sum."""
        source, second_source = (self._value(name) for name in node.inputs)
        require(self._channels[source] == self._channels[second_source])
        return self._add_step(_ADD, source, self._channels[source], second_source=second_source)

    def _max_pool(self, node: Node) -> int:
        """Adds a MaxPool that keeps the number of steps; returns the number of its value."""
        source = self._value(node.inputs[0])
        require(len(node.outputs) == 1 and node.attributes.get("ceil_mode", 0) == 0)
        window = self._window(node, self._last_integer(node, "kernel_shape"), least_fill=-np.inf, most_fill=_LOWEST)
        require(window["dilation"] == 1)
        return self._add_step(_POOL, source, self._channels[source], **window)

    def _concatenation(self, node: Node) -> int:
        """Adds a Concat of channels, as one copy for each part to its channels of the target; returns the target."""
        parts = [self._value(name) for name in node.inputs]
        sizes = [self._channels[part] for part in parts]
        require(node.attributes.get("axis") == 1 and all(size % _CHANNEL_MULTIPLE == 0 for size in sizes))
        target = len(self._channels)
        self._channels.append(sum(sizes))
        for index, part in enumerate(parts):
            self._steps.append(_Step(_COPY, part, target, sizes[index], sum(sizes), part, left=sum(sizes[:index])))
        return target

    _READERS: Final = {
        "Transpose": _input,
        "Conv": _convolution,
        "BatchNormalization": _norm,
        "Relu": _rectifier,
        "Add": _sum,
        "MaxPool": _max_pool,
        "Concat": _concatenation,
    }

    def _slots(self, result: int) -> tuple[dict[int, int], int]:
        """Assigns a slot to each value, so that few slots are needed.

        A slot is free again after the last step that reads its value. The slot of `result`, the value that is pooled,
        stays in use to the end.

        Returns:
            The slots, by the numbers of the values; and how many different slots there are.
        """
        # The index of the last step that reads each value
        last_use = {
            value: index for index, step in enumerate(self._steps) for value in (step.source, step.second_source)
        }
        last_use[result] = len(self._steps)
        slots, free, count = {0: 0}, list[int](), 1  # slot 0 is that of the sequences
        for index, step in enumerate(self._steps):
            if step.target not in slots:  # several steps make the value of a Concat
                if not free:
                    free.append(count)
                    count += 1
                slots[step.target] = free.pop()
            free += {slots[value] for value in {step.source, step.second_source} if last_use[value] == index}
        return slots, count


def _padded_channels(channels: int) -> int:
    """The number of channels, rounded up to a multiple of `_CHANNEL_MULTIPLE`."""
    return -(-channels // _CHANNEL_MULTIPLE) * _CHANNEL_MULTIPLE


def _with_padded_channels(numbers: NDArray[Any]) -> NDArray[Any]:
    """One number for each channel, followed by zeros for the padded channels."""
    return np.pad(numbers, (0, _padded_channels(len(numbers)) - len(numbers)))
