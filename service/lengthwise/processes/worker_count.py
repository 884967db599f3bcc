"""How many workers serve where `--workers` is `auto`: one for each core, or for a few cores where models are large.

A Python interpreter runs Python on one core at a time. A process with several runners stops growing when reading,
planning and answering fill that core, and before that its threads wait for each other (`python -m benchmarks.cores`).
Workers of one runner each do not. But each worker has a queue of its own: on many cores a request waits for the few
others of its worker, and the slowest ones wait longer than where several runners serve one queue. And each worker needs
memory.

A GPU, too, waits for Python: on an H200 two and four processes answered 1.2 to 3.2 times the requests/s of one, with
shorter tails, at 64, 256 and 1,024 connections (`benchmarks/results/nvidia-h200.md`). Each has a context and a copy of
the models there: 5 to 8 GiB with the models of that page.

So runners share a process where Python has little to do besides their runs. How long runs take is not known before the
models are loaded, but a step multiplies each weight once: the bytes of the graph estimate it roughly.

| where | workers |
|---|---|
| one core, by affinity and the container's quota | 1 |
| models run on GPUs | up to four: one for every three cores, and each with 16 GiB and twice the graphs on every GPU |
| GPUs with `gpu_memory_bytes` | the same, of so much memory: each has its share of it |
| `--runners N` | the cores over N |
| 8 cores and more, graphs of 4 MiB and more | four at least, of up to four runners: one more for every 4 MiB |
| a system that is not Linux | 1 |
| a small `max_model_bytes`, of which each has its share | as many as have room for twice the graphs |
| little memory, which is what the container has left, or half of the machine's | as many as fit |
"""

from __future__ import annotations

import os
import sys
from typing import Final, NamedTuple

from lengthwise.files import available_cores
from lengthwise.repository import folder
from lengthwise.repository.loading import directory_state, graph_bytes
from lengthwise.repository.modest import memory_left_bytes
from lengthwise.runtime.provider import choose
from lengthwise.settings import Settings
from lengthwise.versions import Policy

_WORKER_BYTES: Final = 256 * 2**20
"""Memory of each worker without its models: 115 MiB at rest (`benchmarks.workers`), and what calls need. With CUDA
eight times as much: an estimate, of its libraries and of page-locked buffers."""
_COPIES: Final = 2
"""A worker has a model's files twice in memory: as they are, and as onnxruntime arranges them."""
_MOST: Final = 256  # workers
_RUNNER_BYTES: Final = 4 * 2**20
"""Size of the smallest graph for each further runner of a worker: a million weights, some 15 us a step."""
_MOST_RUNNERS: Final = 4
"""Runners of a worker: with six, threads wait for each other (`benchmarks.cores`)."""
_LEAST: Final = 4
"""Workers on many cores, at least. On four cores, one for each makes the slowest requests as fast as any number."""


class WorkerCount(NamedTuple):
    """How many workers serve, and why."""

    number: int
    reason: str  # for the log and `/healthz`


ONE_PROCESS: Final = WorkerCount(1, "of this process alone")


def count_workers(settings: Settings) -> WorkerCount:
    """The number of workers that `--workers` asks for, or that `auto` means on this machine, with the reason.

    Raises:
        ConfigurationError: The model repository cannot be read, or the provider is not available.
    """  # noqa: DOC502 - what it calls raises them
    if settings.workers is not None:
        return WorkerCount(settings.workers, "as was asked for")
    devices = choose(settings.provider).devices
    if sys.platform != "linux":
        return WorkerCount(1, "on this system only --workers starts several")
    # By the cores, and the memory of a GPU.
    cores, sizes = available_cores(), _graph_sizes(settings)
    graphs, on_gpu = _COPIES * sum(sizes), devices[0].provider.bound
    if on_gpu:  # three cores: one for Python, and two on which threads wait for the GPU
        gib = min(settings.gpu_memory_bytes or sys.maxsize, *(device.memory_bytes for device in devices)) >> 30
        count, reason = min(4, cores // 3, gib // (16 + (graphs >> 30))), f"{cores} cores, and {gib} GiB of each GPU"
    elif "runners" in settings.model_fields_set:
        count, reason = cores // settings.runners, f"{cores} cores, for {settings.runners} runners each"
    else:
        runners = min(1 + min(sizes, default=0) // _RUNNER_BYTES, max(1, cores // _LEAST), _MOST_RUNNERS)
        count, reason = cores // runners, "one for each core"
        if runners > 1:
            reason = f"one for every {runners} of {cores} cores, as the models are large"
    # By the memory: how many workers have room, and the bytes that each needs.
    limit, needed = "memory", (8 * _WORKER_BYTES if on_gpu else _WORKER_BYTES) + graphs
    half_of_machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    left = memory_left_bytes()
    room_for = (half_of_machine if left is None else left) // needed
    # By `max_model_bytes`: each worker has its share of it, in which a model and its new version must fit.
    if settings.max_model_bytes is not None and (shares := settings.max_model_bytes // max(1, graphs)) < room_for:
        limit, needed, room_for = "max_model_bytes", graphs, shares
    if room_for < count:
        # The number that uses most cores: with eight cores and memory for five workers, four of two runners each. On a
        # GPU the largest number.
        reason = f"{cores} cores, but {limit} for {room_for}, at {needed // 2**20} MiB each"
        count = max(range(1, max(2, room_for + 1)), key=lambda number: (on_gpu or cores // number * number, number))
    return WorkerCount(min(max(1, count), _MOST), reason)


def _graph_sizes(settings: Settings) -> list[int]:
    """The bytes of each graph that the version policy serves; 0 for a graph that cannot be read."""
    policy = Policy.parse(settings.versions)
    directories = folder.read(settings.folder).directories
    versions = policy.candidates(directories)  # the highest of each name first
    served = versions[: len({key.name for key in versions})] if policy.one_per_name else versions
    return [graph_bytes(directory_state(directories[key])) for key in served]
