"""Runs a graph in onnxruntime: the module that runs onnxruntime's sessions.

A `Session` runs padded batches. It gives the graph lengths, a mask or both, and checks at load that the graph's inputs
and outputs are those of the manifest. Several threads may run it at once: `run` releases the interpreter lock while
onnxruntime computes. On the CPU there is one onnxruntime session. With devices there is one for each, with slots for
the batches in flight; a batch uses the slot that has been free for longest.

`opening` makes onnxruntime's sessions, with the kernels for a graph.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import ManifestError
from lengthwise.files import bundled_models
from lengthwise.padding import PaddedBatch
from lengthwise.runtime import device_memory, recurrent_kernels
from lengthwise.runtime.binding import Slot
from lengthwise.runtime.graph_inputs import feed, zero_batch
from lengthwise.runtime.manifest import GRAPH_FILE, Manifest, StreamState
from lengthwise.runtime.opening import INTEGER, Source, inputs_on_device, open_graph, open_without_states
from lengthwise.runtime.provider import CPU_DEVICE, Device

log = logging.getLogger("lengthwise.session")

OutputName = Literal["logits", "attention", "clipped", "states"]
"""The outputs that a graph may have, by the service's names; the graph's names are in `Manifest.graph`. `states` is
an output for each state of a model that streams."""

_NAMED: Final[tuple[OutputName, ...]] = ("logits", "attention", "clipped")  # outputs whose names are in `GraphNames`
CPU_LABEL = CPU_DEVICE.label
"""`Session.provider` of a session on the CPU."""
_ELEMENT_TYPES = {
    "tensor(float)": "float32",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
    "tensor(double)": "float64",
}


@dataclass(frozen=True, slots=True)
class Outputs:
    """A graph's outputs for one padded batch; those that were not requested are None."""

    logits: NDArray[np.float32]  # [rows, classes]; [rows, width, classes] of a per-step head
    attention: NDArray[np.float32] | None = None  # [rows, width]
    clipped: NDArray[np.float32] | None = None  # [rows], how many values were clipped
    states: tuple[NDArray[Any], ...] = ()  # in the manifest's order, each [rows, *shape]: what follows the steps

    def first(self, rows: int) -> Outputs:
        """Logits, attention and states of the first `rows` rows, without the counts of clipped values."""
        attention = None if self.attention is None else self.attention[:rows]
        return Outputs(self.logits[:rows], attention, states=tuple(state[:rows] for state in self.states))


class Session:
    """One graph on one provider.

    Args:
        graph: The graph's file, or its bytes. A graph given as bytes reads no file.
        manifest: Describes the graph's inputs and outputs.
        weights: The content of the files that a graph given as bytes has its weights in, by the graph's names of them.
        threads: Threads inside one run. Serving uses 1, and runs several batches at once instead.
        devices: The CPU, or devices of one kind.

    Raises:
        ConfigurationError: No onnxruntime is installed.
        ModelError: onnxruntime cannot load the graph, or would run a part of it on another provider.
        ManifestError: The graph's inputs or outputs are not those of the manifest.
    """

    provider: str
    """The devices' label, as in manifests and cost tables."""
    kernels: str
    """The kernels of layers: the instruction set of `recurrent_kernels`, with `POOLING` if they also compute
    poolings or products; "int8", "fixed", "convolutions" or "summaries" followed by the instruction set of these
    kernels; "attention" where onnxruntime's operator for attention runs; or "onnxruntime"."""
    recurrent: bool
    """Whether the graph may have a recurrent layer, or at int8 another layer for this project's kernels; or its
    attention runs in one operator. A promise of such a graph is of its kernels."""
    clock: Callable[[], float]
    """The clock for costs, in seconds: processor time of the running thread on the CPU, wall time on devices."""

    def __init__(
        self,
        graph: Path | bytes,
        manifest: Manifest,
        *,
        weights: Mapping[str, bytes] | None = None,
        threads: int = 1,
        devices: Sequence[Device] = (CPU_DEVICE,),
    ) -> None:
        self._manifest = manifest
        self._names = names = manifest.graph
        # 1. One onnxruntime session for each device; what is true of the first is true of all.
        source = Source(graph, weights or {})
        self._weights = source.weights  # kept in memory, because onnxruntime may still read from it
        opened = [open_graph(source, manifest, threads, device) for device in devices]
        self._sessions = [opened_graph.session for opened_graph in opened]
        self._session, self.kernels, self.recurrent = opened[0]
        # 2. The graph's names of its outputs; the axes of each output in the order of `Outputs`, and in the graph's.
        self._outputs = {output: name for output in _NAMED if (name := getattr(names, output)) is not None}
        self._states = {f"{state.name}_next": state for state in manifest.states}  # by the graph's name of the output
        self._without_states = open_without_states(source, manifest, threads, devices[0], self._session)
        self._check(manifest)
        self._axes: dict[OutputName, tuple[str, ...]] = {
            "logits": ("rows", "width", "classes") if manifest.task == "per-step" else ("rows", "classes"),
            "attention": ("rows", "width"),
            "clipped": ("rows",),
        }
        self._graph_axes = {output: self._in_graph_order(axes) for output, axes in self._axes.items()}
        self.provider = devices[0].label
        self.clock = time.perf_counter if devices[0].provider.wall_clock else recurrent_kernels.processor_seconds
        # 3. On devices, slots for the batches in flight, in turns between devices, so that batches are spread evenly
        self._slots: list[Slot] = []
        self._free: SimpleQueue[Slot] = SimpleQueue()
        if devices[0].provider.bound:
            for _ in range(devices[0].in_flight):
                for session, device in zip(self._sessions, devices, strict=True):
                    memory = device_memory.CudaMemory(device.index, device.provider.load_library)
                    slot = Slot(session, device, memory, inputs_on_device(session))
                    self._slots.append(slot)
                    self._free.put(slot)

    @classmethod
    def load(
        cls, directory: Path, manifest: Manifest, *, threads: int = 1, devices: Sequence[Device] = (CPU_DEVICE,)
    ) -> Session:
        """Opens a session of the graph in a model directory; the other arguments are those of the class."""
        return cls(directory / GRAPH_FILE, manifest, threads=threads, devices=devices)

    @property
    def integer(self) -> bool:
        """Whether layers run in the integer kernels."""
        return self.kernels.startswith(INTEGER)

    @property
    def bound(self) -> bool:
        """Whether batches go through buffers of a device, so that few shapes are better than many."""
        return bool(self._slots)

    def run(self, batch: PaddedBatch, outputs: Sequence[OutputName] = ("logits",)) -> Outputs:
        """Runs the graph once; returns the requested outputs with the axes of `Outputs`.

        An output is None if it was not requested, or if the graph does not have it. With devices, a run waits for a
        free slot.
        """
        names = [output for output in outputs if output in self._outputs]
        states = self._states if "states" in outputs else {}
        inputs = feed(self._names, batch)
        session = self._session
        if batch.begins and not states and self._without_states is not None:
            session = self._without_states
            for state in self._manifest.states:
                del inputs[state.name]
        if self._slots:
            slot = self._free.get()
            try:
                results = self._run_in(slot, inputs, batch, names, states)
            finally:
                self._free.put(slot)
        else:
            results = session.run([*(self._outputs[output] for output in names), *states], inputs)
        if self._names.time_first or self._names.classes_first:
            for index, output in enumerate(names):
                order = [self._graph_axes[output].index(axis) for axis in self._axes[output]]
                results[index] = np.ascontiguousarray(results[index].transpose(order))
        count = len(names)
        return Outputs(**dict(zip(names, results[:count], strict=True)), states=tuple(results[count:]))

    def warm_up(self, shapes: Iterable[tuple[int, int]], *, seconds: float) -> int:
        """Runs batches of zeros before the service is ready, because the first run of each shape on a device is slow.

        A shape with more rows than all shapes before it runs in every slot, so that no buffer needs to grow later;
        other shapes run once on each device.

        Args:
            shapes: The (rows, width) of each batch, the largest first.
            seconds: After this time no further shape is started; the first one always runs.

        Returns:
            How many of the shapes ran.
        """
        deadline = time.monotonic() + seconds
        names: list[OutputName] = [*self._outputs]
        count = most_rows = 0
        for rows, width in shapes:
            batch = zero_batch(self._manifest, rows, width)
            inputs = feed(self._names, batch)
            # The first slots are one of each device.
            for slot in self._slots if rows > most_rows else self._slots[: len(self._sessions)]:
                self._run_in(slot, inputs, batch, names, self._states)
            most_rows = max(most_rows, rows)
            count += 1
            if time.monotonic() > deadline:
                break
        return count

    def run_zeros(self, shape: tuple[int, int]) -> None:
        """Runs as many batches of zeros of a shape (rows, width) as there are devices; other batches may run meanwhile.

        Slots take turns between devices, so each device usually runs the shape.
        """
        for _ in self._sessions:
            self.run(zero_batch(self._manifest, *shape), [*self._outputs])

    def _in_graph_order(self, axes: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the axes of an output in the order that the graph has them in (`GraphNames`)."""
        if self._names.classes_first and axes == ("rows", "width", "classes"):
            return ("rows", "classes", "width")
        if self._names.time_first and axes[1:2] == ("width",):
            return ("width", "rows", *axes[2:])
        return axes

    def _run_in(
        self,
        slot: Slot,
        inputs: dict[str, NDArray[Any]],
        batch: PaddedBatch,
        names: Sequence[OutputName],
        states: Mapping[str, StreamState],
    ) -> list[NDArray[np.float32]]:
        """Runs the graph in a slot of a device; returns the outputs in the order of `names`, and then the `states`."""
        sizes = {"rows": batch.rows, "width": batch.width, "classes": self._manifest.classes}
        shapes = {self._outputs[output]: tuple(sizes[axis] for axis in self._graph_axes[output]) for output in names}
        shapes |= {name: (batch.rows, *state.shape) for name, state in states.items()}
        return list(slot.run(inputs, shapes).values())

    def _check(self, manifest: Manifest) -> None:
        """Checks that the graph's inputs and outputs are those of the manifest: names, types, ranks and sizes.

        Raises:
            ManifestError: They differ; the message says how.
        """
        # 1. Names, types and ranks of the inputs
        names = manifest.graph
        tokens = manifest.input.kind == "tokens"
        inputs = (
            (names.sequences, "int64" if tokens else "float32", 3 if names.features_axis and not tokens else 2),
            (names.lengths, names.lengths_type, 1),
            (names.mask, names.mask_type, 2),
        )
        expected = {name: (kind, rank) for name, kind, rank in inputs if name is not None} | manifest.inputs_beside
        actual = {
            node.name: (_ELEMENT_TYPES.get(node.type, node.type), len(node.shape))
            for node in self._session.get_inputs()
        }
        if actual != expected:
            raise ManifestError(
                f"{manifest.key}: the graph's inputs are {_texts(actual)}, the manifest says {_texts(expected)}"
            )
        # 2. The sizes of the steps: rows and width must be dynamic (no integers), features those of the manifest.
        steps = self._session.get_inputs()[[*actual].index(names.sequences)]
        sizes = [steps.shape[axis] for axis in names.open_axes]
        if any(isinstance(size, int) for size in sizes):
            raise ManifestError(f"{manifest.key}: rows and width of {names.sequences} are frozen at {sizes}")
        features = None if tokens or not names.features_axis else steps.shape[1 if names.channels_first else 2]
        if isinstance(features, int) and features != manifest.input.features:
            raise ManifestError(
                f"{manifest.key}: the graph wants {features} features a step, the manifest says "
                f"{manifest.input.features}"
            )
        if missing := {*self._outputs.values(), *self._states} - {node.name for node in self._session.get_outputs()}:
            raise ManifestError(f"{manifest.key}: the graph has no output {', '.join(sorted(missing))}")


def _texts(inputs: dict[str, tuple[str, int]]) -> str:
    """Inputs (type, rank) by name, for messages: `lengths (int32, rank 1), values (float32, rank 3)`."""
    return ", ".join(f"{name} ({kind}, rank {rank})" for name, (kind, rank) in sorted(inputs.items()))


def begin_devices(devices: Sequence[Device]) -> None:
    """Runs one row of the bundled model on each device, so that a graph which is opened after it starts fast.

    The first session of a process on a GPU makes a context there and loads CUDA's libraries, which takes about a
    second. The service does this in a thread of its own while other processes verify its models. The bundled model
    has a recurrent layer, products and a softmax, and is part of the installation, so it needs no verification. A
    failure is logged only: the load of a served model meets the same error, and says which model it concerns.
    """
    directory = bundled_models() / "japanese-vowels" / "1"
    try:
        manifest = Manifest.read(directory)
        Session.load(directory, manifest, devices=devices).warm_up([(1, manifest.min_length)], seconds=0.0)
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        log.info("%s: the first run failed: %s", devices[0].label, error)
