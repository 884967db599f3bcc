"""A graph, ready to run: the module that knows onnxruntime.

A `Session` takes padded batches and gives outputs. It builds whichever the graph wants of lengths and mask, checks at
load that the graph's inputs are what the manifest says, and may be run from several threads at once: `run` releases the
interpreter lock while onnxruntime computes. On the CPU a batch is run as it is. On devices there is one onnxruntime
session each, with slots for the batches in flight, and a batch takes the slot that is free the longest.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import ManifestError, ModelError
from lengthwise.padding import PaddedBatch, step_mask
from lengthwise.runtime import device_memory, placement, recurrent_kernels
from lengthwise.runtime.binding import Shape, Slot
from lengthwise.runtime.installation import find
from lengthwise.runtime.manifest import GRAPH_FILE, GraphNames, Manifest
from lengthwise.runtime.provider import CPU_DEVICE, Device, Provider, check_packages

try:
    import onnxruntime
except ImportError:  # `provider.choose` says which extra brings it; what runs no graph works without
    onnxruntime = None

log = logging.getLogger("lengthwise.session")

OutputName = Literal["logits", "attention"]

CPU_LABEL = CPU_DEVICE.label
RUNTIME_VERSION: str = onnxruntime.__version__ if onnxruntime is not None else ""

if onnxruntime is not None:
    onnxruntime.disable_telemetry_events()  # a service says nothing of its users to anybody, unless they ask it to

_ELEMENTS = {
    "tensor(float)": "float32",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}


_NO_FOLDER = f"{os.devnull}/none"
"""A folder that cannot be."""


@dataclass(frozen=True, slots=True)
class _Source:
    """What sessions are made of.

    Attributes:
        graph: The file, or the graph's bytes.
        weights: What is in the files beside it, by name.
    """

    graph: Path | bytes
    weights: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a graph answers for one padded batch.

    Attributes:
        logits: `[rows, classes]` float32; of a per-step head `[rows, width, classes]`.
        attention: `[rows, width]` float32, or None where it was not asked for.
    """

    logits: NDArray[np.float32]
    attention: NDArray[np.float32] | None = None

    def first(self, rows: int) -> Outputs:
        """The same of the first rows."""
        return Outputs(self.logits[:rows], None if self.attention is None else self.attention[:rows])


class Session:
    """One graph on one provider.

    Args:
        graph: The file, or the graph's bytes. What is given as bytes takes nothing from any file.
        manifest: What the graph's inputs and outputs mean.
        weights: Contents of the files that a graph given as bytes takes weights from, by its names of them.
        threads: Threads inside one run. Serving uses 1 and runs several batches at once instead.
        devices: Where it runs: the CPU, or devices of one kind.

    Attributes:
        provider: The devices' label, which manifests and cost tables name.
        kernels: Whose kernels run recurrent layers: the instruction set of those of `runtime.recurrent_kernels`, or
            "onnxruntime".
        recurrent: Whether there may be a recurrent layer in it.
        clock: What a run's cost is measured by: the processor time of the thread that runs it, or, where a device does
            the work, the time on the wall.

    Raises:
        ConfigurationError: No onnxruntime is installed.
        ModelError: onnxruntime cannot load the graph, or would run some of it elsewhere.
        ManifestError: The graph's inputs or outputs are not what the manifest says.
    """

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
        self._names = manifest.graph
        source = _Source(graph, weights or {})
        self._weights = source.weights  # onnxruntime may go on reading there
        opened = [_opened(source, manifest, threads, device) for device in devices]
        self._sessions = [session for session, _ in opened]
        self.kernels = opened[0][1]
        self.recurrent = _is_recurrent(graph)
        self._session = self._sessions[0]
        self._check(manifest)
        self._outputs: dict[OutputName, str] = {"logits": manifest.graph.logits}
        if manifest.graph.attention is not None:
            self._outputs["attention"] = manifest.graph.attention
        # Only these have a time axis, and come with it first where the graph takes its steps so.
        self._along_steps: frozenset[OutputName] = frozenset(
            {"attention", "logits"} if manifest.task == "per-step" else {"attention"}
        )
        self.provider = devices[0].label
        self.clock: Callable[[], float] = time.perf_counter if devices[0].provider.wall_clock else time.thread_time
        self._slots: list[Slot] = []
        self._free: SimpleQueue[Slot] = SimpleQueue()
        if devices[0].provider.bound:
            self._slots = self._made_slots(devices)
            for slot in self._slots:
                self._free.put(slot)

    @classmethod
    def load(
        cls, directory: Path, manifest: Manifest, *, threads: int = 1, devices: Sequence[Device] = (CPU_DEVICE,)
    ) -> Session:
        """The session of a model directory's graph."""
        return cls(directory / GRAPH_FILE, manifest, threads=threads, devices=devices)

    @property
    def outputs(self) -> frozenset[OutputName]:
        """Which outputs the graph has."""
        return frozenset(self._outputs)

    @property
    def bound(self) -> bool:
        """Whether batches go through buffers of a device, so that few shapes are better than many."""
        return bool(self._slots)

    def run(self, batch: PaddedBatch, outputs: Sequence[OutputName] = ("logits",)) -> Outputs:
        """Runs the graph once.

        Args:
            batch: `steps [rows, width, features]` or `[rows, width]`, with `lengths [rows]`.
            outputs: Which to compute; an output that the graph does not have is left out.
        """
        wanted = [output for output in outputs if output in self._outputs]
        inputs = feed(self._names, batch)
        if self._slots:
            slot = self._free.get()
            try:
                results = self._run_in(slot, inputs, batch, wanted)
            finally:
                self._free.put(slot)
        else:
            results = self._session.run([self._outputs[output] for output in wanted], inputs)
        if self._names.time_first or self._names.classes_first:
            results = [self._rows_first(output, result) for output, result in zip(wanted, results, strict=True)]
        return Outputs(**dict(zip(wanted, results, strict=True)))

    def warm_up(self, shapes: Iterable[tuple[int, int]], *, seconds: float) -> int:
        """Runs batches of zeros, so that no caller waits for what a device makes at the first run of a shape.

        Every slot runs the first shape, which should be the largest, and one of the most rows: its buffers need not
        grow after that. All others are run once on each device.

        Args:
            shapes: Rows and width of each.
            seconds: When to stop, at the latest; the first shape is run whatever it takes.

        Returns:
            How many shapes were run.
        """
        until = time.monotonic() + seconds
        wanted: list[OutputName] = [*self._outputs]
        count = most_rows = 0
        for rows, width in shapes:
            batch = _zeros(self._manifest, rows, width)
            inputs = feed(self._names, batch)
            for slot in self._slots if rows > most_rows else self._slots[: len(self._sessions)]:
                self._run_in(slot, inputs, batch, wanted)
            most_rows = max(most_rows, rows)
            count += 1
            if time.monotonic() > until:
                break
        return count

    def _made_slots(self, devices: Sequence[Device]) -> list[Slot]:
        """The slots of all devices, in turn, so that batches spread evenly."""
        slots = []
        for _ in range(devices[0].in_flight):
            for session, device in zip(self._sessions, devices, strict=True):
                infos = zip(session.get_inputs(), session.get_input_memory_infos(), strict=True)
                on_device = [node.name for node, info in infos if _is_device_memory(info)]
                slots.append(Slot(session, device, device_memory.of(device), on_device))
        return slots

    def _run_in(
        self, slot: Slot, inputs: dict[str, NDArray[Any]], batch: PaddedBatch, wanted: Sequence[OutputName]
    ) -> list[NDArray[np.float32]]:
        shapes = {self._outputs[output]: self._shape(output, batch) for output in wanted}
        found = slot.run(inputs, shapes)
        return [found[name] for name in shapes]

    def _shape(self, output: OutputName, batch: PaddedBatch) -> Shape:
        """An output's shape, in the graph's order of axes."""
        axes: Shape = (batch.rows, batch.width) if output in self._along_steps else (batch.rows,)
        if self._names.time_first:
            axes = axes[::-1]
        if output != "logits":
            return axes
        if self._are_classes_first(output):
            return (batch.rows, self._manifest.classes, batch.width)
        return (*axes, self._manifest.classes)

    def _are_classes_first(self, output: OutputName) -> bool:
        return self._names.classes_first and output == "logits" and output in self._along_steps

    def _rows_first(self, output: OutputName, result: NDArray[np.float32]) -> NDArray[np.float32]:
        """An output `[rows, ...]` or `[rows, width, ...]`, from the graph's own order of axes."""
        if output not in self._along_steps:
            return result
        if self._are_classes_first(output):
            return np.ascontiguousarray(result.swapaxes(1, 2))
        return np.ascontiguousarray(result.swapaxes(0, 1)) if self._names.time_first else result

    def _check(self, manifest: Manifest) -> None:
        """Holds the graph's inputs and outputs against the manifest."""
        names = manifest.graph
        tokens = manifest.input.kind == "tokens"
        expected = {names.sequences: ("int64", 2) if tokens else ("float32", 3 if names.features_axis else 2)}
        if names.lengths is not None:
            expected[names.lengths] = (names.lengths_type, 1)
        if names.mask is not None:
            expected[names.mask] = (names.mask_type, 2)
        found = {
            node.name: (_ELEMENTS.get(node.type, node.type), len(node.shape)) for node in self._session.get_inputs()
        }
        if found != expected:
            raise ManifestError(
                f"{manifest.key}: the graph's inputs are {_said(found)}, the manifest says {_said(expected)}"
            )
        steps = self._session.get_inputs()[[*found].index(names.sequences)]
        opened = [steps.shape[axis] for axis in names.open_axes]
        if any(isinstance(size, int) for size in opened):
            raise ManifestError(f"{manifest.key}: rows and width of {names.sequences} are frozen at {opened}")
        features = None if tokens or not names.features_axis else steps.shape[1 if names.channels_first else 2]
        if isinstance(features, int) and features != manifest.input.features:
            raise ManifestError(
                f"{manifest.key}: the graph wants {features} features a step, the manifest says "
                f"{manifest.input.features}"
            )
        named = {names.logits} | ({names.attention} if names.attention else set())
        missing = named - {node.name for node in self._session.get_outputs()}
        if missing:
            raise ManifestError(f"{manifest.key}: the graph has no output {', '.join(sorted(missing))}")


def _opened(source: _Source, manifest: Manifest, threads: int, device: Device) -> tuple[Any, str]:
    """Onnxruntime's session of a graph on one device, nothing of it elsewhere; and whose recurrent kernels it has."""
    if onnxruntime is None:
        check_packages(find())
    provider = device.provider
    try:
        session = _made(source, _options(threads, provider), device)
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise ModelError(f"{manifest.key}: onnxruntime cannot load the graph: {error}") from error
    if provider != CPU_DEVICE.provider:
        if session.get_providers()[0] != provider.execution_provider:
            raise ModelError(
                f"{manifest.key}: onnxruntime could not start {provider.execution_provider} for the graph, and took "
                f"{session.get_providers()[0]} in its place; it says why on stderr"
            )
        placement.check(_placed(session), provider.execution_provider, manifest.host_nodes, model=manifest.key)
    # Some of onnxruntime's kernels make a number of NaN, these do not: a graph that takes NaN may live by that.
    wanted = device.recurrent_kernels and manifest.missing != "handled"
    if wanted and recurrent_kernels.INSTRUCTION_SETS and _is_recurrent(source.graph):
        try:
            return _with_recurrent_kernels(source, manifest, threads, device)
        except Exception as error:  # whatever it is, the graph is good without them
            log.info("%s: onnxruntime's own kernels run its recurrent layers: %s", manifest.key, error)
    return session, recurrent_kernels.ONNXRUNTIME


def _is_recurrent(graph: Path | bytes) -> bool:
    """Whether there may be an LSTM or a GRU in a graph: its operators' names stand there as they are."""
    data = graph if isinstance(graph, bytes) else graph.read_bytes()
    return b"LSTM" in data or b"GRU" in data


def _with_recurrent_kernels(source: _Source, manifest: Manifest, threads: int, device: Device) -> tuple[Any, str]:
    """The session of a graph, known to be good, in the kernels of `recurrent_kernels`; and their instruction set.

    It has run once: of its own operators onnxruntime infers shapes, which some graphs live by; of these it does not.
    """
    options = _options(threads, device.provider)
    options.log_severity_level = 4  # they may well refuse it
    kernels = recurrent_kernels.register(options)
    session = _made(source, options, device)
    session.run(None, feed(manifest.graph, _zeros(manifest, 1, manifest.width_multiple)))
    return session, kernels


def _zeros(manifest: Manifest, rows: int, width: int) -> PaddedBatch:
    """A full batch of zeros that the model takes."""
    wants = manifest.input
    lengths = np.full(rows, min(width, manifest.max_length), dtype=np.int32)
    if wants.kind == "tokens":
        return PaddedBatch(np.zeros((rows, width), dtype=np.int64), lengths)
    return PaddedBatch(np.zeros((rows, width, wants.features or 1), dtype=np.float32), lengths)


def _options(threads: int, provider: Provider) -> Any:
    """Onnxruntime's options of a session."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A runner that waits must not burn the core that the event loop needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for key, value in provider.session.items():
        options.add_session_config_entry(key, value)
    options.enable_mem_pattern = False  # it keeps a plan of memory for every shape that it has seen
    return options


def _made(source: _Source, options: Any, device: Device) -> Any:
    """A session on that device, or where onnxruntime's own rules put it."""
    named = (device.provider.execution_provider, device.options)
    graph: str | bytes = source.graph if isinstance(source.graph, bytes) else str(source.graph)
    if isinstance(graph, bytes):
        # Weights are in the graph or among those given here: a file of that name elsewhere is not to be found.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NO_FOLDER)
    if source.weights:
        if not hasattr(options, "add_external_initializers_from_files_in_memory"):
            raise ModelError(f"onnxruntime {RUNTIME_VERSION} cannot take weights beside a graph from memory; update it")
        contents = list(source.weights.values())
        options.add_external_initializers_from_files_in_memory(
            list(source.weights), contents, [len(content) for content in contents]
        )
    # Its fallback opens the session on the CPU where the provider fails, and prints a line about it.
    session = onnxruntime.InferenceSession(graph, options, providers=[named], enable_fallback=0)
    if hasattr(session, "_model_bytes"):
        session._model_bytes = None  # kept for that fallback alone, for as long as the session
    return session


def _is_device_memory(info: Any) -> bool:
    """Whether an input is read where only the device can: not on the host, page-locked or other."""
    return bool(info.name != "Cpu" and info.device_mem_type == onnxruntime.OrtDeviceMemoryType.DEFAULT)


def _placed(session: Any) -> list[placement.PlacedNode]:
    """Where onnxruntime put each node; needs onnxruntime 1.24."""
    return [
        placement.PlacedNode(node.name, node.op_type, part.ep_name)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]


def feed(names: GraphNames, batch: PaddedBatch) -> dict[str, NDArray[Any]]:
    """The graph's inputs for a batch, under the graph's own names and in its own forms."""
    inputs: dict[str, NDArray[Any]] = {}
    if names.mask is not None:
        valid = step_mask(batch.lengths, batch.width)
        mask = (valid if names.mask_marks == "valid" else ~valid).astype(names.mask_type, copy=False)
        inputs[names.mask] = np.ascontiguousarray(mask.T) if names.time_first else mask
    if names.lengths is not None:
        inputs[names.lengths] = batch.lengths.astype(names.lengths_type, copy=False)
    inputs[names.sequences] = _arranged(names, batch.steps)
    return inputs


def _arranged(names: GraphNames, steps: NDArray[Any]) -> NDArray[Any]:
    """Steps `[rows, width, ...]` in the graph's own order of axes."""
    if not names.features_axis:
        steps = steps[:, :, 0]
    if names.channels_first:
        return np.ascontiguousarray(steps.swapaxes(1, 2))
    return np.ascontiguousarray(steps.swapaxes(0, 1)) if names.time_first else steps


def _said(inputs: dict[str, tuple[str, int]]) -> str:
    return ", ".join(f"{name} ({kind}, rank {rank})" for name, (kind, rank) in sorted(inputs.items()))
