"""Runs a graph in onnxruntime: the only module that uses onnxruntime's sessions.

A `Session` runs padded batches. It gives the graph lengths, a mask or both, and checks at load that the graph's inputs
and outputs are those of the manifest. Several threads may run it at once: `run` releases the interpreter lock while
onnxruntime computes. On the CPU there is one onnxruntime session. With devices there is one for each, with slots for
the batches in flight; a batch uses the slot that has been free for longest.

Importing this module switches onnxruntime's telemetry off, for the whole process.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import ManifestError, ModelError
from lengthwise.padding import PaddedBatch, rounded_width, step_mask
from lengthwise.runtime import device_memory, integer_kernels, placement, recurrent_kernels
from lengthwise.runtime.binding import Shape, Slot
from lengthwise.runtime.installation import find
from lengthwise.runtime.manifest import GRAPH_FILE, GraphNames, Manifest
from lengthwise.runtime.onnx import computed_padding, integer_layers, nan_trial
from lengthwise.runtime.provider import CPU_DEVICE, Device, Provider, check_packages

try:
    import onnxruntime
except ImportError:  # `provider.choose` says how to install it; commands that run no graph work without
    onnxruntime = None

log = logging.getLogger("lengthwise.session")

OutputName = Literal["logits", "attention"]
"""The outputs that a graph may have, by the service's names."""

CPU_LABEL = CPU_DEVICE.label
"""`Session.provider` of a session on the CPU."""
RUNTIME_VERSION: str = onnxruntime.__version__ if onnxruntime is not None else ""

if onnxruntime is not None:
    onnxruntime.disable_telemetry_events()  # a service sends no data about its users to anybody unasked

_ELEMENTS = {
    "tensor(float)": "float32",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}


_INTEGER = "int8 "
"""What comes before the instruction set of the integer kernels."""
_NO_FOLDER = f"{os.devnull}/none"
"""A folder that cannot exist."""


@dataclass(frozen=True, slots=True)
class _Source:
    """The graph from which sessions are opened.

    Attributes:
        graph: Its file, or its bytes.
        weights: The content of the files with its weights, by name.
        folder: Where a graph given as bytes may have files with weights; None for nowhere.
    """

    graph: Path | bytes
    weights: Mapping[str, bytes]
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Outputs:
    """A graph's outputs for one padded batch.

    Attributes:
        logits: `[rows, classes]` float32; `[rows, width, classes]` of a per-step head.
        attention: `[rows, width]` float32; None if it was not requested.
    """

    logits: NDArray[np.float32]
    attention: NDArray[np.float32] | None = None

    def first(self, rows: int) -> Outputs:
        """The outputs of the first rows."""
        return Outputs(self.logits[:rows], None if self.attention is None else self.attention[:rows])


class Session:
    """One graph on one provider.

    Args:
        graph: The graph's file, or its bytes. A graph given as bytes reads no file.
        manifest: Describes the graph's inputs and outputs.
        weights: The content of the files that a graph given as bytes has its weights in, by the graph's names of them.
        threads: Threads inside one run. Serving uses 1, and runs several batches at once instead.
        devices: The CPU, or devices of one kind.

    Attributes:
        provider: The devices' label, as in manifests and cost tables.
        kernels: The kernels of recurrent layers: the instruction set of those of `runtime.recurrent_kernels`, or that
            of `runtime.integer_kernels` behind "int8", with `POOLING` if they also compute attention pooling; or
            "onnxruntime".
        computes_padding: Whether a layer goes through the whole rectangle of a batch; see `runtime.computed_padding`.
        recurrent: Whether the graph may have a recurrent layer, or at int8 another layer for this project's kernels.
        clock: The clock for costs, in seconds: processor time of the running thread on the CPU, wall time on devices.

    Raises:
        ConfigurationError: No onnxruntime is installed.
        ModelError: onnxruntime cannot load the graph, or would run a part of it on another provider.
        ManifestError: The graph's inputs or outputs are not those of the manifest.
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
        self._weights = source.weights  # kept in memory, because onnxruntime may still read from it
        opened = [_open(source, manifest, threads, device) for device in devices]
        self._sessions = [one.session for one in opened]
        self.kernels = opened[0].kernels
        self.computes_padding = opened[0].computes_padding
        self.recurrent = _is_recurrent(graph)
        self._session = self._sessions[0]
        self._check(manifest)
        self._outputs: dict[OutputName, str] = {"logits": manifest.graph.logits}
        if manifest.graph.attention is not None:
            self._outputs["attention"] = manifest.graph.attention
        # The outputs with a time axis. With a time-first graph it is their first axis.
        self._along_steps: frozenset[OutputName] = frozenset(
            {"attention", "logits"} if manifest.task == "per-step" else {"attention"}
        )
        self.provider = devices[0].label
        on_wall = devices[0].provider.wall_clock
        self.clock: Callable[[], float] = time.perf_counter if on_wall else recurrent_kernels.processor_seconds
        self._slots: list[Slot] = []
        self._free: SimpleQueue[Slot] = SimpleQueue()
        if devices[0].provider.bound:
            self._slots = self._make_slots(devices)
            for slot in self._slots:
                self._free.put(slot)

    @classmethod
    def load(
        cls, directory: Path, manifest: Manifest, *, threads: int = 1, devices: Sequence[Device] = (CPU_DEVICE,)
    ) -> Session:
        """The session of a model directory's graph."""
        return cls(directory / GRAPH_FILE, manifest, threads=threads, devices=devices)

    @property
    def integer(self) -> bool:
        """Whether layers run in the integer kernels."""
        return self.kernels.startswith(_INTEGER)

    @property
    def bound(self) -> bool:
        """Whether batches go through buffers of a device, so that few shapes are better than many."""
        return bool(self._slots)

    def run(self, batch: PaddedBatch, outputs: Sequence[OutputName] = ("logits",)) -> Outputs:
        """Runs the graph once.

        Args:
            batch: `steps [rows, width, features]` or `[rows, width]`, with `lengths [rows]`.
            outputs: The outputs to compute; those that the graph does not have are left out.

        Returns:
            The outputs, rows first.
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
        """Runs batches of zeros, because the first run of each shape on a device is slow.

        Every slot runs the first shape, which should be the largest, and each shape with more rows than those before,
        so that its buffers need not grow later. The other shapes run once on each device.

        Args:
            shapes: The (rows, width) of each.
            seconds: No further shape is started after this time; the first one always runs.

        Returns:
            How many shapes were run.
        """
        until = time.monotonic() + seconds
        wanted: list[OutputName] = [*self._outputs]
        count = most_rows = 0
        for rows, width in shapes:
            batch = _zero_batch(self._manifest, rows, width)
            inputs = feed(self._names, batch)
            for slot in self._slots if rows > most_rows else self._slots[: len(self._sessions)]:
                self._run_in(slot, inputs, batch, wanted)
            most_rows = max(most_rows, rows)
            count += 1
            if time.monotonic() > until:
                break
        return count

    def _make_slots(self, devices: Sequence[Device]) -> list[Slot]:
        """The slots of all devices, alternating between devices, so that batches are spread evenly."""
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
        results = slot.run(inputs, shapes)
        return [results[name] for name in shapes]

    def _shape(self, output: OutputName, batch: PaddedBatch) -> Shape:
        """An output's shape for a batch, in the graph's order of axes."""
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
        """An output in the order `[rows, ...]` or `[rows, width, ...]`, from the graph's own order of axes."""
        if output not in self._along_steps:
            return result
        if self._are_classes_first(output):
            return np.ascontiguousarray(result.swapaxes(1, 2))
        return np.ascontiguousarray(result.swapaxes(0, 1)) if self._names.time_first else result

    def _check(self, manifest: Manifest) -> None:
        """Checks the graph's inputs and outputs against the manifest."""
        names = manifest.graph
        tokens = manifest.input.kind == "tokens"
        expected = {names.sequences: ("int64", 2) if tokens else ("float32", 3 if names.features_axis else 2)}
        if names.lengths is not None:
            expected[names.lengths] = (names.lengths_type, 1)
        if names.mask is not None:
            expected[names.mask] = (names.mask_type, 2)
        actual = {
            node.name: (_ELEMENTS.get(node.type, node.type), len(node.shape)) for node in self._session.get_inputs()
        }
        if actual != expected:
            raise ManifestError(
                f"{manifest.key}: the graph's inputs are {_described(actual)}, the manifest says {_described(expected)}"
            )
        steps = self._session.get_inputs()[[*actual].index(names.sequences)]
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


class _Opened(NamedTuple):
    """An onnxruntime session, the kernels of its recurrent layers, and whether it computes padding."""

    session: Any
    kernels: str
    computes_padding: bool


def _opened(session: Any, kernels: str, source: _Source, names: GraphNames) -> _Opened:
    """A session of a graph as it runs."""
    lengths = [name for name in (names.lengths, names.mask) if name is not None]
    own = kernels != recurrent_kernels.ONNXRUNTIME
    padding = computed_padding.computes_padding(_content(source.graph), names.sequences, lengths, own_kernels=own)
    return _Opened(session, kernels, padding)


def _open(source: _Source, manifest: Manifest, threads: int, device: Device) -> _Opened:
    """An onnxruntime session that runs a graph on one device only."""
    if onnxruntime is None:
        check_packages(find())
    provider = device.provider
    try:
        session = _open_in(source, _options(threads, provider), device)
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise ModelError(f"{manifest.key}: onnxruntime cannot load the graph: {error}") from error
    if provider != CPU_DEVICE.provider:
        if session.get_providers()[0] != provider.execution_provider:
            raise ModelError(
                f"{manifest.key}: onnxruntime could not start {provider.execution_provider} for the graph, and took "
                f"{session.get_providers()[0]} in its place; it says why on stderr"
            )
        placement.check(_placed_nodes(session), provider.execution_provider, manifest.host_nodes, model=manifest.key)
    built = recurrent_kernels.INSTRUCTION_SETS or integer_kernels.INSTRUCTION_SETS
    if device.recurrent_kernels and built and _is_recurrent(source.graph):
        try:
            own = _with_recurrent_kernels(source, manifest, threads, device)
            if manifest.missing != "handled" or _keeps_nan_from_layers(source, manifest, own.session, session):
                return own
            why = "NaN may reach them, and is kept by Lengthwise's; replace it before them, with IsNaN and Where"
        except Exception as error:  # whatever failed, the graph works without them
            why = str(error)
        log.info("%s: onnxruntime's own kernels run its recurrent layers: %s", manifest.key, why)
    return _opened(session, recurrent_kernels.ONNXRUNTIME, source, manifest.graph)


def _keeps_nan_from_layers(source: _Source, manifest: Manifest, own: Any, plain: Any) -> bool:
    """Whether NaN in a graph's values never reaches its recurrent layers, as far as a trial shows."""
    if manifest.input.kind == "tokens" or not nan_trial.replaces_nan(_content(source.graph)):
        return False

    def run(session: Any, batch: PaddedBatch) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run([manifest.graph.logits], feed(manifest.graph, batch))[0]
        if logits.ndim == 3 and manifest.graph.classes_first:
            return logits.swapaxes(1, 2)
        return logits.swapaxes(0, 1) if logits.ndim == 3 and manifest.graph.time_first else logits

    return nan_trial.passes(partial(run, own), partial(run, plain), manifest)


def _content(graph: Path | bytes) -> bytes:
    return graph if isinstance(graph, bytes) else graph.read_bytes()


def _is_recurrent(graph: Path | bytes) -> bool:
    """Whether a graph may have a layer for the kernels: searches its bytes for the operators' names."""
    data = _content(graph)
    return any(name in data for name in (b"LSTM", b"GRU", b"DequantizeLinear"))


def _with_recurrent_kernels(source: _Source, manifest: Manifest, threads: int, device: Device) -> _Opened:
    """A session with the kernels of `recurrent_kernels`: of the graph with the operators of `fusion`.

    If that graph does not run, it is the graph as it is.
    """
    replaced = integer_layers.with_pooling(_content(source.graph)) if recurrent_kernels.INSTRUCTION_SETS else None
    if replaced is not None:
        folder = None if isinstance(source.graph, bytes) else source.graph.parent
        try:
            found = _tested(_Source(replaced.graph, source.weights, folder), manifest, threads, device)
        except Exception as error:  # of onnxruntime; the graph as it is may run
            log.debug("%s: the graph runs as it is, with its operators replaced it does not: %s", manifest.key, error)
        else:
            return found._replace(kernels=found.kernels + recurrent_kernels.POOLING) if replaced.pools else found
    return _tested(source, manifest, threads, device)


def _tested(source: _Source, manifest: Manifest, threads: int, device: Device) -> _Opened:
    """A session with the kernels of `recurrent_kernels` and `integer_kernels`.

    It is run once as a test: onnxruntime infers no shapes for these kernels, and some graphs need them.
    """
    options = _options(threads, device.provider)
    options.log_severity_level = 4  # an error is expected for some graphs
    kernels = []
    integer = integer_layers.fused(_content(source.graph)) if integer_kernels.INSTRUCTION_SETS else None
    if integer is not None:
        kernels.append(f"{_INTEGER}{integer_kernels.register(options)}")
        folder = source.graph.parent if isinstance(source.graph, Path) else source.folder
        source = _Source(integer, source.weights, folder)
    if recurrent_kernels.INSTRUCTION_SETS:
        kernels.append(recurrent_kernels.register(options))
    session = _open_in(source, options, device)
    width = rounded_width(manifest.min_length, manifest.width_multiple)
    session.run(None, feed(manifest.graph, _zero_batch(manifest, 1, width)))
    return _opened(session, kernels[0], source, manifest.graph)


def _zero_batch(manifest: Manifest, rows: int, width: int) -> PaddedBatch:
    """A batch of zeros `[rows, width, ...]` that is valid for the model."""
    wants = manifest.input
    lengths = np.full(rows, min(width, manifest.max_length), dtype=np.int32)
    if wants.kind == "tokens":
        return PaddedBatch(np.zeros((rows, width), dtype=np.int64), lengths)
    return PaddedBatch(np.zeros((rows, width, wants.features or 1), dtype=np.float32), lengths)


def _options(threads: int, provider: Provider) -> Any:
    """The session options for onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that wait must not spin on a core that the event loop needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for key, value in provider.session.items():
        options.add_session_config_entry(key, value)
    options.enable_mem_pattern = False  # it would keep a memory plan for every shape that occurred
    return options


def _open_in(source: _Source, options: Any, device: Device) -> Any:
    """An onnxruntime session; its rules may put it on the CPU instead of the device, which the caller checks."""
    named = (device.provider.execution_provider, device.options)
    graph: str | bytes = source.graph if isinstance(source.graph, bytes) else str(source.graph)
    if isinstance(graph, bytes):
        # onnxruntime must not find a file of the same name elsewhere.
        folder = _NO_FOLDER if source.folder is None else str(source.folder)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    if source.weights:
        if not hasattr(options, "add_external_initializers_from_files_in_memory"):
            raise ModelError(f"onnxruntime {RUNTIME_VERSION} cannot take weights beside a graph from memory; update it")
        contents = list(source.weights.values())
        options.add_external_initializers_from_files_in_memory(
            list(source.weights), contents, [len(content) for content in contents]
        )
    # With the fallback, onnxruntime would open the session on the CPU if the provider fails.
    session = onnxruntime.InferenceSession(graph, options, providers=[named], enable_fallback=0)
    if hasattr(session, "_model_bytes"):
        session._model_bytes = None  # only the fallback needs it; frees the memory
    return session


def _is_device_memory(info: Any) -> bool:
    """Whether an input is read in the device's own memory, and not in the host's (page-locked or other)."""
    return bool(info.name != "Cpu" and info.device_mem_type == onnxruntime.OrtDeviceMemoryType.DEFAULT)


def _placed_nodes(session: Any) -> list[placement.PlacedNode]:
    """The provider that onnxruntime chose for each node; needs onnxruntime 1.24."""
    return [
        placement.PlacedNode(node.name, node.op_type, part.ep_name)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]


def feed(names: GraphNames, batch: PaddedBatch) -> dict[str, NDArray[Any]]:
    """The graph's inputs for a batch, by the graph's own names, types and order of axes."""
    inputs: dict[str, NDArray[Any]] = {}
    if names.mask is not None:
        valid = step_mask(batch.lengths, batch.width)
        mask = (valid if names.mask_marks == "valid" else ~valid).astype(names.mask_type, copy=False)
        inputs[names.mask] = np.ascontiguousarray(mask.T) if names.time_first else mask
    if names.lengths is not None:
        inputs[names.lengths] = batch.lengths.astype(names.lengths_type, copy=False)
    inputs[names.sequences] = _in_graph_order(names, batch.steps)
    return inputs


def _in_graph_order(names: GraphNames, steps: NDArray[Any]) -> NDArray[Any]:
    """Steps `[rows, width, ...]`, in the graph's own order of axes."""
    if not names.features_axis:
        steps = steps[:, :, 0]
    if names.channels_first:
        return np.ascontiguousarray(steps.swapaxes(1, 2))
    return np.ascontiguousarray(steps.swapaxes(0, 1)) if names.time_first else steps


def _described(inputs: dict[str, tuple[str, int]]) -> str:
    return ", ".join(f"{name} ({kind}, rank {rank})" for name, (kind, rank) in sorted(inputs.items()))
