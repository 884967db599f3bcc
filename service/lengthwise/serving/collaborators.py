"""Functions that build the parts of a service (batcher, verifier, monitoring) from its settings and devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from lengthwise.batching.batcher import Batcher
from lengthwise.batching.buckets import DEVICE_ROWS, DEVICE_STEPS
from lengthwise.batching.limits import BatchLimits
from lengthwise.batching.queues import ModelQueue
from lengthwise.batching.runners import Cores
from lengthwise.files import available_cores, is_bundled
from lengthwise.repository import verifier
from lengthwise.repository.verification_process import SharedVerifier, VerificationProcess
from lengthwise.repository.verifier import Verifier
from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.provider import DeviceChoice, choose
from lengthwise.settings import Settings

if TYPE_CHECKING:
    from lengthwise.monitoring.monitoring import Monitoring
    from lengthwise.processes.worker import Worker
    from lengthwise.telemetry.tracing import Tracer

_BATCH_OPTIONS: Final = {"max_batch_rows", "max_batch_cost_steps"}


def device_choice(settings: Settings) -> DeviceChoice:
    """Chooses the devices on which models run, by the options and by what this machine has."""
    return choose(
        settings.provider,
        memory_limit_bytes=settings.gpu_memory_bytes,
        runners=settings.runners if "runners" in settings.model_fields_set else None,
        recurrent_kernels=settings.recurrent_kernels,
    )


def batch_limits(settings: Settings, choice: DeviceChoice, runners: int) -> BatchLimits:
    """Returns the limits of one batch: those of the options.

    Without such options each model's cost table has a say: on a device the limits are the largest, which it lowers; on
    a processor it allows more padded steps where padding is skipped (`ModelQueue.limits_within`).
    """
    # `share` is the part of the queue that one batch may take: all of it with one runner, or if `max_wait_ms` gathers a
    # batch. Several runners leave sequences for each other, and for the runner that is free next.
    share = 1.0 if settings.max_wait_ms or runners == 1 else 1 / (runners + 1)
    limits = BatchLimits(settings.max_batch_rows, settings.max_batch_cost_steps, share=share)
    if _BATCH_OPTIONS & settings.model_fields_set:
        return limits
    if choice.provider.bound:
        limits = replace(limits, rows=DEVICE_ROWS, padded_steps=min(DEVICE_STEPS, settings.max_queue_cost_steps))
    return replace(limits, by_table=True)


def batcher_of(
    settings: Settings,
    choice: DeviceChoice,
    runners: int,
    worker: Worker | None,
    tracer: Tracer | None,
    on_suspect: Callable[[ModelQueue], None],
) -> Batcher:
    """Makes the batcher of a service.

    Args:
        settings: The options.
        choice: The devices.
        runners: How many batches may run at once.
        worker: This process among several workers; None for a single one.
        tracer: Gets each batch; None for no traces.
        on_suspect: Called with a queue whose batches fail, to probe its model.
    """
    # On the CPU several workers share their cores, unless an option says how many runners each has.
    cores = Cores(available_cores())
    if worker is not None and not choice.provider.bound and "runners" not in settings.model_fields_set:
        cores = worker.cores(cores.local)
    return Batcher(
        runners=runners,
        max_queue_cost_steps=settings.max_queue_cost_steps,
        max_queue_seconds=settings.longest_wait_seconds,
        workers=1 if worker is None else worker.number,
        devices=len(choice.devices) if choice.provider.bound else 0,
        max_wait_seconds=settings.max_wait_ms / 1000,
        one_core=runners == cores.local == 1 and not choice.provider.bound,
        lend_cores=None if choice.provider.bound or cores.total == 1 else recurrent_kernels.lend_cores,
        cores=cores,
        on_batch=None if tracer is None else tracer.batch,
        on_suspect=on_suspect,
    )


def verifier_for(settings: Settings, verify: Verifier | None, worker: Worker | None) -> Verifier:
    """Makes the verifier of model directories.

    - It is `verify`, if that is given.
    - Otherwise each model is verified in a separate process; but the bundled ones in this process, because a person who
      can change those can change the program, too.
    - Several workers share it: each directory is verified once for all.
    """
    if verify is None:
        verify = (
            verifier.verify
            if is_bundled(settings.folder)
            else VerificationProcess(settings.judge_timeout_seconds, settings.judge_memory_bytes)
        )
    return verify if worker is None else SharedVerifier(verify, worker.ask_from_thread, worker.send_from_thread)


def monitoring_of(settings: Settings, choice: DeviceChoice, at_rest: Callable[[], bool]) -> Monitoring | None:
    """Makes the monitoring of calls; None if no option asks for it. `at_rest` says whether no request waits or runs.

    Answers are not checked on a GPU, whose memory one more run could exceed.
    """
    records = settings.record is not None and settings.record_share > 0
    checks = settings.verify_share > 0 and not choice.provider.bound
    if not (records or checks):
        return None
    from lengthwise.monitoring.monitoring import Monitoring  # nothing of it is loaded without such an option

    return Monitoring(settings, at_rest if checks else None)
