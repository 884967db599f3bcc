"""The server and its models as the Open Inference Protocol and Triton's extensions describe them, for HTTP and gRPC.

Tools such as perf_analyzer read from a model's configuration what they may send. A request is a batch of rows, so
shapes have no first axis there: `values` is `[-1, features]` with any number of steps. `lengths` is optional, because
one row needs none.

A model's statistics are the metrics of `/metrics` under the names of Triton's extension. `inference_stats` counts
requests, however many sequences each has; `batch_stats` counts batches, by their rows. An answered request is counted
in all of its stages at once: perf_analyzer reports an error where these counts differ.

| name | of a request | of a batch |
|---|---|---|
| `queue` | waiting for its batches | |
| `compute_input` | decoding its body | padding its sequences |
| `compute_infer` | its batches, with padding | running the graph, and scoring |
| `compute_output` | encoding its answer | encoding the answers that it completed |

Nothing is cached, so `cache_hit` and `cache_miss` stay 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import reduce
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any, Final

import orjson

from lengthwise.errors import ConfigurationError, Draining, Forbidden, InvalidRequest, NotReady, Problem
from lengthwise.protocols import kserve
from lengthwise.protocols.tensor_specs import TensorSpec, inputs_of, outputs_of
from lengthwise.repository.registry import ServedModel
from lengthwise.runtime.manifest import GRAPH_FILE, Manifest
from lengthwise.serving import Serving
from lengthwise.telemetry.metrics import ModelMetrics
from lengthwise.versions import Policy

EXTENSIONS: Final = (  # extensions of the protocol that this server has, by their official names
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "statistics",
)
# The parameters of the calls that change what is served.
PARAMETERS: Final[Mapping[str, frozenset[str]]] = {"load": frozenset(), "unload": frozenset({"unload_dependents"})}
_BROKEN: Final = "it does not work now, and is tried again on a schedule"
_FOLDERS: Final = re.compile(r"(?<![\w/.])(?:/[^\s/:,;'\"]+)+/")
_TYPES: Final = {"BYTES": "TYPE_STRING"}  # Triton's names of datatypes that are not `TYPE_` and the protocol's name


def server() -> dict[str, Any]:
    """The server's metadata."""
    return {"name": "lengthwise", "version": metadata.version("lengthwise"), "extensions": list(EXTENSIONS)}


def model(serving: Serving, served: ServedModel) -> dict[str, Any]:
    """The metadata of a model: its served versions, and its tensors, with -1 for an axis of any size."""

    def tensor(form: TensorSpec) -> dict[str, Any]:
        return {"name": form.name, "datatype": form.datatypes[0], "shape": list(form.shape)}

    manifest = served.manifest
    versions = sorted(
        candidate.manifest.version for candidate in serving.served if candidate.manifest.name == manifest.name
    )
    return {
        "name": manifest.name,
        "versions": [str(version) for version in versions],
        "platform": "onnx_onnxv1",
        "inputs": [tensor(form) for form in inputs_of(manifest)],
        "outputs": [tensor(form) for form in outputs_of(manifest)],
    }


def config(serving: Serving, served: ServedModel) -> dict[str, Any]:
    """The configuration of a model, in the JSON form of Triton's message `ModelConfig`."""

    def tensor(form: TensorSpec) -> dict[str, Any]:
        kind = _TYPES.get(form.datatypes[0], f"TYPE_{form.datatypes[0]}")
        return {"name": form.name, "data_type": kind, "dims": list(form.shape[1:])}  # empty: one entry for each row

    manifest, settings = served.manifest, serving.settings
    policy = Policy.parse(settings.versions)
    versions: dict[str, Any] = {"latest": {"num_versions": 1}} if policy.one_per_name else {"all": {}}
    if policy.named is not None:
        versions = {"specific": {"versions": sorted(key.version for key in policy.named if key.name == manifest.name)}}
    on_gpus = serving.choice.provider.bound
    instances = {
        "name": manifest.name,
        "kind": "KIND_GPU" if on_gpus else "KIND_CPU",
        "count": serving.runners,
        "gpus": [device.index for device in serving.choice.devices] if on_gpus else [],
    }
    return {
        "name": manifest.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": versions,
        "max_batch_size": serving.request_limits.sequences,
        "input": [tensor(form) | ({"optional": True} if form.optional else {}) for form in inputs_of(manifest)],
        "output": [tensor(form) for form in outputs_of(manifest)],
        "instance_group": [instances],
        "default_model_filename": GRAPH_FILE,
        "dynamic_batching": {"max_queue_delay_microseconds": round(settings.max_wait_ms * 1000)},
        "parameters": {name: {"string_value": value} for name, value in _parameters(manifest).items()},
    }


def _parameters(manifest: Manifest) -> dict[str, str]:
    """The fields of the manifest that `ModelConfig` does not have, by name; values are JSON."""
    names = ("task", "labels", "min_length", "max_length", "long", "missing")
    step = manifest.input.model_dump(include={"vocabulary", "names", "static", "sequences"}, exclude_none=True)
    fields = {name: getattr(manifest, name) for name in names} | {name: value for name, value in step.items() if value}
    return {name: value if isinstance(value, str) else orjson.dumps(value).decode() for name, value in fields.items()}


def index(serving: Serving, *, ready: bool) -> list[dict[str, Any]]:
    """The entries of the repository index, each with `name`, `version`, `state` and `reason`.

    An entry is, without paths of this machine in its reason:

    - a served version: `READY`, or `UNAVAILABLE` while its breaker is open;
    - a refused version: `UNAVAILABLE`, with the reason of the refusal;
    - an unloaded model: `UNAVAILABLE`, without a version.

    With `ready` only the entries that are `READY` are returned.
    """
    repository = serving.repository
    reasons = {refusal.key: without_folders(refusal.reason, serving.source.folder) for refusal in repository.refused}
    broken = {version.model.key for version in serving.served if version.queue.breaker.open}
    served_keys = [model.key for model in repository]
    # Served versions. One that works may have a reason, too: why its newer files were refused.
    entries = []
    for key in served_keys:
        works = key not in broken
        state = "READY" if serving.ready and works else "UNAVAILABLE"
        newer_refused = f"the files that replaced it are not served: {reasons[key]}" if key in reasons else ""
        entries.append((key.name, str(key.version), state, newer_refused if works else _BROKEN))
    # Refused versions, and unloaded models.
    for key, reason in reasons.items():
        if key not in served_keys:
            entries.append((key.name, str(key.version), "UNAVAILABLE", reason))
    entries += [(name, "", "UNAVAILABLE", "unloaded") for name in sorted(repository.unloaded)]
    return [
        dict(zip(("name", "version", "state", "reason"), entry, strict=True))
        for entry in entries
        if not ready or entry[2] == "READY"
    ]


async def load(serving: Serving, name: str, parameters: Mapping[str, Any]) -> None:
    """Loads a model from the repository, or its new versions; returns when it is served.

    Raises:
        InvalidRequest: The highest version failed its verification; or the call has parameters, such as the files of a
            model, which are not accepted.
        NotReady: The model repository cannot be read now, or the server starts.
        RequestError: Such calls are switched off, there is no such model, or the server is shutting down.
    """  # noqa: DOC502 - what it calls raises them
    _check_changes(serving, parameters, PARAMETERS["load"])
    try:
        refusal = await serving.registry.load(name)
    except ConfigurationError as error:
        raise NotReady("the model repository cannot be read", retry_after_seconds=5) from error
    if refusal is not None:
        reason = without_folders(refusal.reason, serving.source.folder)
        raise InvalidRequest([Problem("", f"{refusal.key} is not served: {reason}")])


async def unload(serving: Serving, name: str, parameters: Mapping[str, Any]) -> None:
    """Unloads a model: new requests do not find it, and those that it has accepted are answered.

    Raises `RequestError` if such calls are switched off, there is no such model, the call has other parameters than
    allowed, or the server starts or is shutting down.
    """
    _check_changes(serving, parameters, PARAMETERS["unload"])
    await serving.registry.unload(name)


def _check_changes(serving: Serving, parameters: Mapping[str, Any], allowed: frozenset[str]) -> None:
    """Checks whether a load or unload call is possible now, and has only `allowed` parameters.

    Raises:
        Forbidden: These calls are switched off.
        Draining: The server is shutting down.
        NotReady: The server is starting.
        InvalidRequest: The call has unknown parameters.
    """
    if not serving.settings.admin_calls:
        raise Forbidden("load and unload are off; --admin-calls turns them on")
    if serving.batcher.draining:
        raise Draining("the server is shutting down", retry_after_seconds=1)
    if not serving.started:
        raise NotReady(serving.repository.reason or "the server is starting", retry_after_seconds=1)
    if unknown := sorted(parameters.keys() - allowed):
        detail = "is not accepted: a model comes from the repository as it is"
        raise InvalidRequest([Problem(f"/parameters/{name}", detail) for name in unknown[:20]], total=len(unknown))


def without_folders(reason: str, models: Path) -> str:
    """The text of a reason without the folders of this machine; file names stay."""
    for folder in {str(models), str(models.resolve())}:
        reason = reason.replace(f"{folder}/", "")
    return _FOLDERS.sub("", reason)


async def statistics(serving: Serving, name: str | None, version: str | None) -> dict[str, Any]:
    """The statistics of models: the sums over this worker and the others that answer.

    They are of one version; of all versions of the model, if `version` is None; of all models, if both are None. Raises
    `RequestError` if the model is not known or not ready.
    """
    own_stats = statistics_of_process(serving, name, version)
    stats_of_others = [] if serving.worker is None else await serving.worker.ask("statistics", name, version)
    by_version: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for stats in chain(own_stats, *stats_of_others):
        by_version.setdefault((stats["name"], stats["version"]), []).append(stats)
    return {"model_stats": [_sum(by_version[stats["name"], stats["version"]]) for stats in own_stats]}


def statistics_of_process(serving: Serving, name: str | None, version: str | None) -> list[dict[str, Any]]:
    """The statistics that this process has counted, an entry for each version.

    They are of one version; of all versions of the model, if `version` is None; of all models, if both are None.
    """
    models = list(serving.served)
    if name is not None or version is not None:
        model = kserve.find(serving, name, version)
        of_name = [served for served in models if served.manifest.name == model.manifest.name]
        models = of_name if version is None else [model]
    return [_statistics_of(served) for served in models]


def _sum(stats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The sum of the statistics that several workers have counted of one version.

    Counts and times are added. `batch_stats` has one entry for each number of rows. The other fields are no sums: name
    and version are the same everywhere, and `last_inference` is the latest.
    """
    total = reduce(_add, stats)
    # The lists of all workers are one list now: entries of the same number of rows are added.
    by_rows: dict[int, dict[str, Any]] = {}
    for batch in total["batch_stats"]:
        rows = batch["batch_size"]
        by_rows[rows] = _add(by_rows.get(rows, {}), batch) | {"batch_size": rows}
    return total | {
        "name": stats[0]["name"],
        "version": stats[0]["version"],
        "last_inference": max(worker_stats["last_inference"] for worker_stats in stats),
        "batch_stats": [by_rows[rows] for rows in sorted(by_rows)],
    }


def _add(first: Any, second: Any) -> Any:
    """Adds up two statistics: numbers to their sum, lists to one list, dicts to a dict with the sum for each name.

    A name that only one of the dicts has keeps its value.
    """
    if not isinstance(first, dict):
        return first + second
    return first | {name: _add(first[name], value) if name in first else value for name, value in second.items()}


def _statistics_of(served: ServedModel) -> dict[str, Any]:
    """The statistics of one served version, in the form of Triton's `ModelStatistics`."""
    manifest, metrics = served.manifest, served.metrics
    with metrics.lock:
        return {
            "name": manifest.name,
            "version": str(manifest.version),
            "last_inference": int(metrics.last_batch_time * 1000),
            "inference_count": int(metrics.batch_rows.total),
            "execution_count": metrics.batch_rows.count,
            "inference_stats": _request_stats(metrics),
            "batch_stats": [
                {
                    "batch_size": rows,
                    "compute_input": _duration(row_sums.batches, row_sums.padding_seconds),
                    "compute_infer": _duration(row_sums.batches, row_sums.running_seconds),
                    "compute_output": _duration(row_sums.batches, row_sums.writing_seconds),
                }
                for rows, row_sums in sorted(metrics.by_rows.items())
            ],
        }


def _request_stats(metrics: ModelMetrics) -> dict[str, Any]:
    """The `inference_stats` of a version: for each stage the count of requests and their nanoseconds."""
    answered, all_requests = metrics.answered, metrics.request_seconds
    stages = {
        "success": answered.seconds,
        "queue": answered.queue_seconds,
        "compute_input": answered.decode_seconds,
        "compute_infer": answered.inference_seconds,
        "compute_output": sum(row_sums.writing_seconds for row_sums in metrics.by_rows.values()),
    }
    return {name: _duration(answered.calls, seconds) for name, seconds in stages.items()} | {
        "fail": _duration(all_requests.count - answered.calls, all_requests.total - answered.seconds),
        "cache_hit": _duration(0, 0.0),
        "cache_miss": _duration(0, 0.0),
    }


def _duration(count: int, seconds: float) -> dict[str, int]:
    """A count and its time in nanoseconds. A difference of sums may be below 0 by rounding, and is set to 0."""
    return {"count": count, "ns": max(0, round(seconds * 1e9))}
