"""Opens a graph in onnxruntime, with Lengthwise's kernels for its layers where they can run it.

A *plain* session runs the graph of the file in onnxruntime's kernels. A *replaced* graph has operators of Lengthwise's
kernels in the place of nodes (`onnx.fusion`, `integer_layers`, `kernel_shares`, `convolutions`, `summaries` or
`valid_attention`), or onnxruntime's own operator for attention (`onnx.attention`); it is in memory only. First come
the kernels for recurrent layers and int8, then those for fixed kernels, convolutions, summaries and attention, then
onnxruntime's operator for attention. Where none can run the graph, the plain session is used. Importing this module
switches onnxruntime's telemetry off, for the whole process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from lengthwise.errors import ModelError, as_model_errors
from lengthwise.padding import STATIC, PaddedBatch, RowInput, pad, rounded_width, step_mask
from lengthwise.runtime import fixed_kernels, placement, recurrent_kernels
from lengthwise.runtime.answers import by_row
from lengthwise.runtime.graph_inputs import feed, zero_batch
from lengthwise.runtime.installation import find
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.onnx import (
    attention,
    beginnings,
    convolutions,
    integer_layers,
    kernel_shares,
    nan_trial,
    summaries,
    valid_attention,
)
from lengthwise.runtime.onnx.pattern import NotFound, require
from lengthwise.runtime.provider import CPU_DEVICE, Device, Provider, check_packages

try:
    import onnxruntime
except ImportError:  # `provider.choose` says how to install it; commands that run no graph work without
    onnxruntime = None

if TYPE_CHECKING:
    from lengthwise.runtime.kernels._kernels import Numbers

log = logging.getLogger("lengthwise.session")

RUNTIME_VERSION: str = onnxruntime.__version__ if onnxruntime is not None else ""
INTEGER: Final = "int8 "
"""What comes before the instruction set of the integer kernels in `Session.kernels`, which describes all kinds."""
ATTENTION: Final = "attention"
"""`Session.kernels` where attention runs in onnxruntime's operator for it; own kernels name their set behind it."""

_ERRORS: Final = 3
"""The lowest severity of what onnxruntime prints. It would warn of nodes on the CPU and of copies: see `placement`."""

_SAME: Final = 1e-4
"""The largest relative difference of the answers of a replaced graph from those of the plain session."""
_LARGE: Final = 1e5
"""How large padding is in the trial: a layer may make it so, as a layer with weights does with zeros."""
_TRIAL_LENGTHS: Final = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89)
"""Lengths of the trial's sequences, where 1 stands for the model's `min_length`: different ones, as masks need."""
_FEW_LENGTHS: Final = (2, 34)
"""The same for a graph of recurrent layers, which take long for many steps."""
_SLOW_ON_CPU: Final = ("SkipLayerNormFusion",)
"""Rewrites of onnxruntime that its CPU provider is faster without. It computes a sum and a LayerNormalization that are
one operator value by value, and each of the two nodes with vectors: a fifth of the time."""
_NO_FOLDER: Final = f"{os.devnull}/none"
"""A folder that cannot exist."""

if onnxruntime is not None:
    onnxruntime.disable_telemetry_events()  # a service sends no data about its users to anybody unasked


@dataclass(frozen=True, slots=True)
class Source:
    """The graph from which sessions are opened."""

    graph: Path | bytes  # its file, or its bytes
    weights: Mapping[str, bytes]  # the content of the files with its weights, by name
    folder: Path | None = None  # where a graph given as bytes may have files with weights; None for nowhere

    def content(self) -> bytes:
        """The bytes of the graph."""
        return self.graph if isinstance(self.graph, bytes) else self.graph.read_bytes()

    def replaced(self, graph: bytes) -> Source:
        """The source of a replaced graph, which reads weights from the same files."""
        return Source(graph, self.weights, self.graph.parent if isinstance(self.graph, Path) else self.folder)


class Opened(NamedTuple):
    """An onnxruntime session, and what is known of it; see the fields of `session.Session`."""

    session: Any  # an `onnxruntime.InferenceSession`
    kernels: str
    is_recurrent: bool  # `Session.recurrent`


def open_graph(source: Source, manifest: Manifest, threads: int, device: Device) -> Opened:
    """Opens a session that runs a graph on one device only, with Lengthwise's kernels if they can run it.

    Raises:
        ModelError: onnxruntime cannot load the graph. With too little memory for it, it is a NotVerified.
    """  # noqa: DOC502 - `as_model_errors` raises it
    # 1. The plain session
    if onnxruntime is None:
        check_packages(find())
    with as_model_errors(f"{manifest.key}: onnxruntime cannot load the graph"):
        plain = _open_in(source, _options(threads, device.provider), device)
    if device.provider != CPU_DEVICE.provider:
        _check_placement(plain, device.provider.execution_provider, manifest)
    # 2. A session with Lengthwise's kernels, if they can run the graph
    content = source.content()
    if device.provider.bound and b"DequantizeLinear" in content:
        log.info("%s: its int8 weights become float32 in every run: integer kernels are for the CPU", manifest.key)
    session, kernels = plain, recurrent_kernels.ONNXRUNTIME
    for open_with_kernels, layers in _KERNELS if device.recurrent_kernels else ():
        try:
            session, kernels = open_with_kernels(source, content, manifest, threads, device, plain)
            break
        except NotFound:
            continue
        except Exception as error:  # whatever failed, the graph works without them
            log.info("%s: onnxruntime's own %s: %s", manifest.key, layers, error)
    return Opened(session, kernels, _may_be_recurrent(content) or kernels.startswith(ATTENTION))


def open_without_states(source: Source, manifest: Manifest, threads: int, device: Device, streaming: Any) -> Any:
    """Opens a session of the graph of `onnx.beginnings`, for batches without states; None if there is none.

    There is none for a model that does not stream, and on devices; where a node is not known; and where the answers
    would have other bits than those of the session `streaming`, as other kernels run the graph.
    """
    if manifest.streaming is None or device.provider != CPU_DEVICE.provider:
        return None
    ordinary = manifest.like(streaming=None)
    try:
        graph = beginnings.without_states(source.content(), manifest)
        session, *_ = open_graph(source.replaced(graph), ordinary, threads, device)
        names = [output.name for output in session.get_outputs()]
        answers = [
            runtime.run(names, feed(manifest.graph, _trial(each)))
            for runtime, each in ((session, ordinary), (streaming, manifest))
        ]
        require(all(map(np.array_equal, *answers)))
    except Exception as error:  # of onnxruntime, too; the graph with its states answers as well
        log.info(
            "%s: sequences without states run with them: %s", manifest.key, str(error) or "they are read otherwise"
        )
        return None
    return session


_WithKernels = tuple[Any, str]
"""An onnxruntime session with Lengthwise's kernels, and the name of these."""


def _with_recurrent_kernels(
    source: Source, content: bytes, manifest: Manifest, threads: int, device: Device, plain: Any
) -> _WithKernels:
    """Opens a session with the kernels for recurrent layers.

    First it tries the graph with the operators of `fusion`. If that does not run, it opens the graph as it is, in which
    the kernels take the place of onnxruntime's LSTM and GRU. The arguments are those of `open_graph`, with the bytes of
    the graph (`content`) and the plain session.

    `NotFound` (`require`) if the graph has no such layers, or there are no kernels. An error of onnxruntime says that
    it cannot run the graph with the kernels.

    Raises:
        ModelError: NaN may reach the layers.
    """
    require(recurrent_kernels.INSTRUCTION_SETS or recurrent_kernels.INTEGER_SETS)
    require(_may_be_recurrent(content))
    opened, sequences = None, [further.graph for further in manifest.further.values()]
    # Steps of earlier chunks stand before those of the batch: its lengths are not those that the layers get
    looks_back = manifest.streaming is not None and manifest.streaming.look_ahead_steps > 0
    if (
        recurrent_kernels.INSTRUCTION_SETS
        and not looks_back
        and (replaced := integer_layers.with_packed_steps(content, manifest.graph, *sequences)) is not None
    ):
        try:
            session, kernels = _open_and_test(source.replaced(replaced.graph), manifest, threads, device)
            if b"DequantizeLinear" not in content:  # integer kernels round otherwise
                _require_same(session, plain, manifest, padding=1, lengths=_FEW_LENGTHS)
            opened = session, kernels + (recurrent_kernels.POOLING if replaced.pools else "")
        except Exception as error:  # of onnxruntime; the graph as it is may run
            log.debug("%s: the graph does not run with its operators replaced: %s", manifest.key, error)
    opened = opened or _open_and_test(source, manifest, threads, device)
    if manifest.missing == "handled" and not nan_trial.passes(content, opened[0], plain, manifest):
        raise ModelError(
            "NaN may reach them, and is kept by Lengthwise's; replace it before them, with IsNaN and Where"
        )
    return opened


def _may_be_recurrent(graph: bytes) -> bool:
    """Whether a graph may have a recurrent layer, or at int8 another layer for this project's kernels.

    Before its name, a node's operator has two more bytes. Without these, many weights would have those of a short name.
    """
    return any(b'"%c%b' % (len(name), name) in graph for name in (b"LSTM", b"GRU", b"DequantizeLinear"))


def _open_and_test(source: Source, manifest: Manifest, threads: int, device: Device) -> _WithKernels:
    """Opens a session with the kernels of `recurrent_kernels`, those for integers too if the graph has int8 layers.

    It runs the session once as a test: onnxruntime infers no shapes for these kernels, and some graphs need shapes. An
    error of onnxruntime is not caught.
    """
    options = _options(threads, device.provider)
    options.log_severity_level = 4  # fatal errors only: other errors are expected for some graphs
    names = []  # of the kernels; those for integers come first, as they say more of an int8 graph
    content = source.content()
    integer_graph = integer_layers.fused(content) if recurrent_kernels.INTEGER_SETS else None
    if integer_graph is not None:
        names.append(INTEGER + recurrent_kernels.register(options, "int8"))
        source = source.replaced(integer_graph)
    if recurrent_kernels.INSTRUCTION_SETS:
        names.append(recurrent_kernels.register(options))
    session = _open_in(source, options, device)
    width = rounded_width(manifest.min_length, manifest.width_multiple)
    session.run(None, feed(manifest.graph, zero_batch(manifest, 1, width)))
    return session, names[0]


def _with_fixed_kernels(
    source: Source, content: bytes, manifest: Manifest, threads: int, device: Device, plain: Any
) -> _WithKernels:
    """Opens a session with the operator of `fixed_kernels`; `NotFound` (`require`) if the graph has no fixed kernels.

    The arguments are those of `open_graph`, with the bytes of the graph (`content`) and the plain session.

    `_require_same_bits` raises a ModelError; other errors are onnxruntime's.
    """
    require(fixed_kernels.INSTRUCTION_SETS and manifest.graph.lengths_type == "int32" and manifest.streaming is None)
    replaced = kernel_shares.fused(content, manifest.graph.lengths or "")
    options = _options(threads, device.provider)
    kernels = f"fixed {recurrent_kernels.register(options, 'shares')}"
    session = _open_in(source.replaced(replaced.graph), options, device)
    for steps in kernel_shares.trial_sequences(replaced, manifest.input.features or 1, manifest.max_length):
        first_half = steps[: (len(steps) + 1) // 2]  # so that the batch has padding
        _require_same_bits(session, plain, manifest, [steps, first_half], "fixed kernels are not those of MiniRocket")
    return session, kernels


def _require_same_bits(session: Any, plain: Any, manifest: Manifest, sequences: Sequence[RowInput], what: str) -> None:
    """Requires that a replaced graph answers a batch of these sequences with the bits of the plain session.

    Raises:
        ModelError: It does not; the message says `what`.
    """
    batch = pad(sequences, multiple=manifest.width_multiple, blank=manifest.blank)
    inputs = feed(manifest.graph, _with_static(batch, manifest, np.random.default_rng(0)))
    logits = [runtime.run([manifest.graph.logits], inputs)[0].tobytes() for runtime in (session, plain)]
    if logits[0] != logits[1]:
        raise ModelError(f"its {what}")


def _with_convolutions(
    source: Source, content: bytes, manifest: Manifest, threads: int, device: Device, plain: Any
) -> _WithKernels:
    """Opens a session with the operator of `onnx.convolutions`.

    The arguments are those of `open_graph`, with the bytes of the graph (`content`) and the plain session. `NotFound`
    (`require`) if the graph has no convolutions that fit the operator; and for a model that accepts NaN, or rows
    without steps, as no trial shows how the operator treats them. `_require_same` raises a ModelError; other errors are
    onnxruntime's.
    """
    names, features = manifest.graph, manifest.input.features or 0
    require(recurrent_kernels.CONVOLUTION_SETS and names.lengths_type == "int32")
    require(features and manifest.missing != "handled" and manifest.streaming is None)
    graph = convolutions.fused(content, names.sequences, names.lengths or "", features)
    options = _options(threads, device.provider)
    kernels = f"convolutions {recurrent_kernels.register(options, 'convolutions')}"
    session = _open_in(source.replaced(graph), options, device)
    _require_same(session, plain, manifest, padding=0)
    return session, kernels


def _with_summaries(
    source: Source, content: bytes, manifest: Manifest, threads: int, device: Device, plain: Any
) -> _WithKernels:
    """Opens a session with the operator of `onnx.summaries`; `NotFound` (`require`) if the graph has no summaries.

    The arguments are those of `open_graph`, with the bytes of the graph (`content`) and the plain session.

    `_require_same_bits` raises a ModelError; other errors are onnxruntime's.
    """
    names = manifest.graph
    require(summaries.INSTRUCTION_SETS and names.lengths_type == "int32" and names.mask is None)
    require(manifest.blank is None)  # the trial has nothing beside the steps
    graph = summaries.fused(content, names.sequences, names.lengths or "")
    options = _options(threads, device.provider)
    kernels = f"summaries {recurrent_kernels.register(options, 'summaries')}"
    session = _open_in(source.replaced(graph), options, device)
    sequences = [*summaries.trial_sequences(manifest.input.features or 1, manifest.max_length)]
    _require_same_bits(session, plain, manifest, sequences, "summaries are not those that it names")
    return session, kernels


def _with_valid_attention(
    source: Source, content: bytes, manifest: Manifest, threads: int, device: Device, plain: Any
) -> _WithKernels:
    """Opens a session with the operators of `onnx.valid_attention`; else as `_with_attention`."""
    require(valid_attention.INSTRUCTION_SETS and recurrent_kernels.INSTRUCTION_SETS)
    require(manifest.min_length < manifest.max_length)  # a trial of one length would be one row
    graph = valid_attention.fused(content, *manifest.graph.length_inputs)
    return _open_attention(source.replaced(graph), manifest, threads, device, plain, "attention")


def _with_attention(
    source: Source, content: bytes, manifest: Manifest, threads: int, device: Device, plain: Any
) -> _WithKernels:
    """Opens a session with onnxruntime's operator for attention, on the CPU.

    The arguments are those of `open_graph`, with the bytes of the graph (`content`) and the plain session. `NotFound`
    (`require`) if the graph has no attention that is known. `_require_same` raises a ModelError if it is not what it
    was taken for; other errors are onnxruntime's.
    """
    return _open_attention(source.replaced(attention.fused(content)), manifest, threads, device, plain)


def _open_attention(
    source: Source, manifest: Manifest, threads: int, device: Device, plain: Any, *numbers: Numbers
) -> _WithKernels:
    """Opens a session of a graph with one operator for attention, which is of the kernels for `numbers`, if any."""
    # The trial draws one sequence a row, and no NaN, and compares no states.
    require(not manifest.further and manifest.streaming is None and manifest.missing != "handled")
    require(device.provider == CPU_DEVICE.provider)
    options = _options(threads, device.provider)
    options.log_severity_level = 4  # an operator that does not fit is no error: see below
    if numbers:
        recurrent_kernels.register(options)
    kernels = " ".join([ATTENTION, *(recurrent_kernels.register(options, each) for each in numbers)])
    session = _open_in(source, options, device)
    _require_same(session, plain, manifest, padding=_LARGE)
    return session, kernels


def _require_same(
    session: Any, plain: Any, manifest: Manifest, *, padding: float, lengths: Sequence[int] = _TRIAL_LENGTHS
) -> None:
    """Requires that the answers of a replaced graph are those of the plain session but for rounding (`_SAME`).

    Batches of two widths are compared: a number of the width may be that of a head's features at one. Of answers per
    step those of padding are not: nobody gets them.

    Raises:
        ModelError: They are not.
    """
    names = manifest.graph
    swapped = (1, 2) if names.classes_first else (0, 1) if names.time_first and manifest.task == "per-step" else (0, 0)
    for batch in (_trial(manifest, padding, lengths), _trial(manifest, padding, _TRIAL_LENGTHS[:5])):
        logits = (runtime.run([names.logits], feed(names, batch))[0] for runtime in (session, plain))
        rows_first = (each.swapaxes(*swapped) for each in logits)
        actual, expected = (np.concatenate(by_row(each, batch.lengths, manifest)) for each in rows_first)
        if not np.allclose(actual, expected, rtol=_SAME, atol=_SAME * np.abs(expected).max()):
            raise ModelError("its masks are not of valid steps, or its axes are in another order")


def _trial(manifest: Manifest, padding: float = 0, of_lengths: Sequence[int] = _TRIAL_LENGTHS) -> PaddedBatch:
    """A batch of random sequences, of several lengths. Their padding is `padding` times as large.

    Beside them are random static values, zeros of further sequences, or states where a sequence begins.
    """
    random = np.random.default_rng(0)
    lengths = sorted({min(manifest.min_length - 1 + length, manifest.max_length) for length in of_lengths})
    zeros = zero_batch(manifest, len(lengths), rounded_width(lengths[-1], manifest.width_multiple))
    batch, steps = replace(zeros, lengths=np.array(lengths, np.int32)), zeros.steps
    if manifest.input.kind == "tokens":
        steps[:] = random.integers(0, manifest.input.vocabulary or 1, steps.shape)
    else:
        steps[:] = random.standard_normal(steps.shape)
        steps[~step_mask(batch.lengths, batch.width)] *= padding
    return _with_static(batch, manifest, random)


def _with_static(batch: PaddedBatch, manifest: Manifest, random: np.random.Generator) -> PaddedBatch:
    """A batch with random static values, if the model takes any: zeros could hide the steps in a product with them."""
    if (static := manifest.input.static) is None:
        return batch
    return replace(batch, beside={**batch.beside, STATIC: np.array([static.drawn(random) for _ in batch.lengths])})


_KERNELS: Final = (
    (_with_recurrent_kernels, "kernels run its recurrent layers"),
    (_with_fixed_kernels, "operators run its fixed kernels"),
    (_with_convolutions, "operators run its convolutions"),
    (_with_summaries, "operators run its summaries"),
    (_with_valid_attention, "kernels run its attention"),
    (_with_attention, "nodes run its attention"),
)
"""The functions that open a session with kernels, in the order in which they are tried, and a text for the log."""


def _options(threads: int, provider: Provider) -> Any:
    """Makes the session options for onnxruntime; `threads` is the number of threads inside one run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS
    # Threads that wait must not spin on a core that the event loop needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for key, value in provider.session.items():
        options.add_session_config_entry(key, value)
    options.enable_mem_pattern = False  # it would keep a memory plan for every shape that occurred
    return options


def _open_in(source: Source, options: Any, device: Device) -> Any:
    """Opens an onnxruntime session; adds what the source needs to `options`.

    onnxruntime may place the session on the CPU instead of the device: the caller has to check that.
    """
    provider_with_options = (device.provider.execution_provider, device.options)
    graph: str | bytes = source.graph if isinstance(source.graph, bytes) else str(source.graph)
    if isinstance(graph, bytes):
        # onnxruntime must not find a file of the same name elsewhere.
        folder = _NO_FOLDER if source.folder is None else str(source.folder)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    if source.weights:
        options.add_external_initializers_from_files_in_memory(
            list(source.weights), list(source.weights.values()), [len(content) for content in source.weights.values()]
        )
    if device.provider.bound:
        # It warns that no plugin has the device, and takes the provider that was asked for. Errors are still printed.
        onnxruntime.set_default_logger_severity(_ERRORS)
    # With the fallback, onnxruntime would open the session on the CPU if the provider fails.
    session = onnxruntime.InferenceSession(
        graph,
        options,
        providers=[provider_with_options],
        enable_fallback=0,
        disabled_optimizers=_SLOW_ON_CPU if device.provider == CPU_DEVICE.provider else None,
    )
    session._model_bytes = None  # only the fallback needs it; frees the memory
    return session


def _check_placement(session: Any, provider: str, manifest: Manifest) -> None:
    """Checks that a provider runs all nodes of the graph, except the manifest's `host_nodes`, which the CPU may run.

    Raises:
        ModelError: onnxruntime could not start the provider for the graph. `placement.check` raises it for a node that
            runs on another provider.
    """
    if session.get_providers()[0] != provider:
        raise ModelError(
            f"{manifest.key}: onnxruntime could not start {provider} for the graph, and took "
            f"{session.get_providers()[0]} in its place; it says why on stderr"
        )
    nodes = [
        placement.PlacedNode(node.name, node.op_type, part.ep_name)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]
    placement.check(nodes, provider, manifest.host_nodes, model=manifest.key)


def inputs_on_device(session: Any) -> list[str]:
    """The names of the inputs that a session reads from the device's memory; it reads the others from the host's."""
    device_memory = onnxruntime.OrtDeviceMemoryType.DEFAULT
    infos = zip(session.get_inputs(), session.get_input_memory_infos(), strict=True)
    return [node.name for node, info in infos if info.name != "Cpu" and info.device_mem_type == device_memory]
