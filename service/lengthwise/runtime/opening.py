"""Opens a graph in onnxruntime, with the kernels that run its recurrent layers, or its fixed kernels.

The kernels of this project are tried first, on the graph with the operators of `fusion`, `integer_layers` or
`kernel_shares`; where they do not run it, onnxruntime's own do. Importing this module switches onnxruntime's telemetry
off, for the whole process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import ModelError
from lengthwise.padding import PaddedBatch, pad, rounded_width
from lengthwise.runtime import fixed_kernels, integer_kernels, placement, recurrent_kernels
from lengthwise.runtime.graph_inputs import feed, zero_batch
from lengthwise.runtime.installation import find
from lengthwise.runtime.manifest import GraphNames, Manifest
from lengthwise.runtime.onnx import data_dependence, integer_layers, kernel_shares, nan_trial
from lengthwise.runtime.provider import CPU_DEVICE, Device, Provider, check_packages

try:
    import onnxruntime
except ImportError:  # `provider.choose` says how to install it; commands that run no graph work without
    onnxruntime = None

log = logging.getLogger("lengthwise.session")

RUNTIME_VERSION: str = onnxruntime.__version__ if onnxruntime is not None else ""
INTEGER: Final = "int8 "
"""What comes before the instruction set of the integer kernels."""
FIXED: Final = "fixed "
"""What comes before the instruction set of `fixed_kernels`."""
_NO_FOLDER: Final = f"{os.devnull}/none"
"""A folder that cannot exist."""

if onnxruntime is not None:
    onnxruntime.disable_telemetry_events()  # a service sends no data about its users to anybody unasked


@dataclass(frozen=True, slots=True)
class Source:
    """The graph from which sessions are opened.

    Attributes:
        graph: Its file, or its bytes.
        weights: The content of the files with its weights, by name.
        folder: Where a graph given as bytes may have files with weights; None for nowhere.
    """

    graph: Path | bytes
    weights: Mapping[str, bytes]
    folder: Path | None = None


class Opened(NamedTuple):
    """An onnxruntime session, the kernels of its recurrent layers, and whether it computes padding."""

    session: Any
    kernels: str
    computes_padding: bool


def _opened(session: Any, kernels: str, source: Source, names: GraphNames) -> Opened:
    """A session of a graph as it runs."""
    lengths = [name for name in (names.lengths, names.mask) if name is not None]
    own = kernels != recurrent_kernels.ONNXRUNTIME
    padding = data_dependence.computes_padding(_content(source.graph), names.sequences, lengths, own_kernels=own)
    return Opened(session, kernels, padding)


def open_graph(source: Source, manifest: Manifest, threads: int, device: Device) -> Opened:
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
    if device.recurrent_kernels and built and is_recurrent(source.graph):
        try:
            own = _with_recurrent_kernels(source, manifest, threads, device)
            if manifest.missing != "handled" or _keeps_nan_from_layers(source, manifest, own.session, session):
                return own
            why = "NaN may reach them, and is kept by Lengthwise's; replace it before them, with IsNaN and Where"
        except Exception as error:  # whatever failed, the graph works without them
            why = str(error)
        log.info("%s: onnxruntime's own kernels run its recurrent layers: %s", manifest.key, why)
    if device.recurrent_kernels and fixed_kernels.INSTRUCTION_SETS and manifest.graph.lengths_type == "int32":
        found = _with_fixed_kernels(source, manifest, threads, device, session)
        if found is not None:
            return found
    return _opened(session, recurrent_kernels.ONNXRUNTIME, source, manifest.graph)


def _with_fixed_kernels(source: Source, manifest: Manifest, threads: int, device: Device, plain: Any) -> Opened | None:
    """A session with the operator of `fixed_kernels`; None if the graph has no place for it, or other bits with it."""
    counted = kernel_shares.fused(_content(source.graph), manifest.graph.lengths or "")
    if counted is None:
        return None
    options = _options(threads, device.provider)
    kernels = f"{FIXED}{fixed_kernels.register(options)}"
    folder = source.graph.parent if isinstance(source.graph, Path) else source.folder
    source = Source(counted.graph, source.weights, folder)
    try:
        session = _open_in(source, options, device)
        for steps in kernel_shares.trial(counted, manifest.input.features or 1, manifest.max_length):
            given = feed(manifest.graph, pad([steps, steps[: (len(steps) + 1) // 2]], multiple=manifest.width_multiple))
            own, onnxruntimes = (each.run([manifest.graph.logits], given)[0] for each in (session, plain))
            if own.tobytes() != onnxruntimes.tobytes():
                raise ModelError("its fixed kernels are not those of MiniRocket")
    except Exception as error:  # whatever failed, the graph works without them
        log.info("%s: onnxruntime's own operators run its fixed kernels: %s", manifest.key, error)
        return None
    return _opened(session, kernels, source, manifest.graph)


def _keeps_nan_from_layers(source: Source, manifest: Manifest, own: Any, plain: Any) -> bool:
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


def is_recurrent(graph: Path | bytes) -> bool:
    """Whether a graph may have a layer for the kernels: searches its bytes for the operators' names."""
    data = _content(graph)
    return any(name in data for name in (b"LSTM", b"GRU", b"DequantizeLinear"))


def _with_recurrent_kernels(source: Source, manifest: Manifest, threads: int, device: Device) -> Opened:
    """A session with the kernels of `recurrent_kernels`: of the graph with the operators of `fusion`.

    If that graph does not run, it is the graph as it is.
    """
    replaced = integer_layers.with_pooling(_content(source.graph)) if recurrent_kernels.INSTRUCTION_SETS else None
    if replaced is not None:
        folder = None if isinstance(source.graph, bytes) else source.graph.parent
        try:
            found = _tested(Source(replaced.graph, source.weights, folder), manifest, threads, device)
        except Exception as error:  # of onnxruntime; the graph as it is may run
            log.debug("%s: the graph runs as it is, with its operators replaced it does not: %s", manifest.key, error)
        else:
            return found._replace(kernels=found.kernels + recurrent_kernels.POOLING) if replaced.pools else found
    return _tested(source, manifest, threads, device)


def _tested(source: Source, manifest: Manifest, threads: int, device: Device) -> Opened:
    """A session with the kernels of `recurrent_kernels` and `integer_kernels`.

    It is run once as a test: onnxruntime infers no shapes for these kernels, and some graphs need them.
    """
    options = _options(threads, device.provider)
    options.log_severity_level = 4  # an error is expected for some graphs
    kernels = []
    integer = integer_layers.fused(_content(source.graph)) if integer_kernels.INSTRUCTION_SETS else None
    if integer is not None:
        kernels.append(f"{INTEGER}{integer_kernels.register(options)}")
        folder = source.graph.parent if isinstance(source.graph, Path) else source.folder
        source = Source(integer, source.weights, folder)
    if recurrent_kernels.INSTRUCTION_SETS:
        kernels.append(recurrent_kernels.register(options))
    session = _open_in(source, options, device)
    width = rounded_width(manifest.min_length, manifest.width_multiple)
    session.run(None, feed(manifest.graph, zero_batch(manifest, 1, width)))
    return _opened(session, kernels[0], source, manifest.graph)


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


def _open_in(source: Source, options: Any, device: Device) -> Any:
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


def _placed_nodes(session: Any) -> list[placement.PlacedNode]:
    """The provider that onnxruntime chose for each node; needs onnxruntime 1.24."""
    return [
        placement.PlacedNode(node.name, node.op_type, part.ep_name)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]


def inputs_on_device(session: Any) -> list[str]:
    """The inputs that are read in the device's own memory, and not in the host's (page-locked or other)."""
    own = onnxruntime.OrtDeviceMemoryType.DEFAULT
    infos = zip(session.get_inputs(), session.get_input_memory_infos(), strict=True)
    return [node.name for node, info in infos if info.name != "Cpu" and info.device_mem_type == own]
