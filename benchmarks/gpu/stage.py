"""Where and on what a section measures: the provider, the graphs, the sequences, and how long it may take."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from benchmarks.gpu.figures import Figures
from benchmarks.gpu.in_process import InProcessService
from benchmarks.lengths import LENGTHS, draw
from lengthwise.batching import buckets
from lengthwise.batching.buckets import BucketedCosts
from lengthwise.batching.limits import BatchLimits
from lengthwise.bench.workload import Input, make_sequences
from lengthwise.errors import VerificationError
from lengthwise.padding import Steps
from lengthwise.repository.loading import WARM_UP, LoadedModel, load
from lengthwise.repository.stopping import Stopping
from lengthwise.repository.verifier import measure_cost
from lengthwise.runtime.installation import find
from lengthwise.runtime.manifest import GRAPH_FILE, Manifest
from lengthwise.runtime.provider import CPU_DEVICE, Device, choose
from lengthwise.runtime.session import Session

Precision = Literal["fp32", "tf32", "fp16"]
Graph = Literal["fp32", "tf32", "fp16", "bundled", "bundled tf32"]
"""The benchmark's graph at a precision, or the bundled model's, which is trained, so its logits are far apart."""
T = TypeVar("T")

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "runs" / "gpu-models"
"""Where `--prepare` puts the graphs."""
FOLDERS: dict[Graph, str] = {"fp32": "lognormal", "tf32": "lognormal", "fp16": "lognormal-fp16"}
ENCODER = "encoder"
"""The folder of a graph without recurrent layers, which is served over HTTP."""
BUNDLED = ROOT / "service" / "lengthwise" / "models" / "japanese-vowels"
WEIGHTS = "lognormal.safetensors"
DISTRIBUTIONS = tuple(LENGTHS)


@dataclass(frozen=True)
class Stage:
    """Where and on what a section measures."""

    provider: Literal["cuda", "cpu"]  # `cuda`, or `cpu` to see the code run
    models: Path = MODELS  # holds the graphs, `NAME/1`, and their weights
    quick: bool = False  # whether to measure briefly, to see that the code runs
    seed: int = 0  # of the sequences
    seconds: float = 600.0  # how long the section may take
    started: float = field(default_factory=time.monotonic)

    def pick(self, full: T, quick: T) -> T:
        """The amount for a full or for a quick measurement."""
        return quick if self.quick else full

    @property
    def left(self) -> float:
        """Seconds that the section may still take."""
        return self.seconds - (time.monotonic() - self.started)

    @property
    def features(self) -> int:
        """Numbers a step."""
        return self.manifest("fp32").input.features or 1

    def say(self, text: str) -> None:
        """Prints progress."""
        print(f"    {text}", file=sys.stderr, flush=True)

    def directory(self, graph: Graph) -> Path:
        """A graph's model directory."""
        return (self.models / FOLDERS[graph] if graph in FOLDERS else BUNDLED) / "1"

    def precisions(self) -> list[Precision]:
        """Those whose graph is there; TF32 is a GPU's own."""
        known: list[Precision] = ["fp32", "tf32", "fp16"] if self.provider == "cuda" else ["fp32", "fp16"]
        return [precision for precision in known if (self.directory(precision) / GRAPH_FILE).is_file()]

    def graphs(self) -> list[Graph]:
        """All of them: those of each precision, and the bundled model's."""
        bundled: list[Graph] = ["bundled", "bundled tf32"] if self.provider == "cuda" else ["bundled"]
        return [*self.precisions(), *bundled]

    def manifest(self, graph: Graph) -> Manifest:
        """A graph's manifest."""
        return Manifest.read(self.directory(graph))

    def device(self, graph: Graph = "fp32") -> Device:
        """Where a graph runs: the first device, with TF32 or without."""
        if self.provider == "cpu":
            return CPU_DEVICE
        # On a borrowed machine another onnxruntime may be installed behind the imported one.
        installation = replace(find(), packages={})
        return choose("cuda", tf32=graph.endswith("tf32"), installation=installation).devices[0]

    def session(self, graph: Graph = "fp32", *, on_cpu: bool = False) -> Session:
        """A graph, loaded as the service loads it."""
        return self.opened(self.directory(graph) / GRAPH_FILE, graph, on_cpu=on_cpu)

    def opened(self, file: Path | bytes, graph: Graph, *, on_cpu: bool = False) -> Session:
        """Another file in place of a graph's own."""
        device = CPU_DEVICE if on_cpu else self.device(graph)
        return Session(file, self.manifest(graph), devices=(device,))

    def service(self, precision: Precision, limits: BatchLimits, figures: Figures) -> InProcessService:
        """The service with a precision's graph, without HTTP.

        A graph that fails the service's verification is measured all the same, with a note under `failures`.
        """
        device = self.device(precision)
        try:
            model = load(self.directory(precision), limits, budget_seconds=self._load_seconds, devices=(device,))
        except VerificationError as error:
            figures.note(failures={f"{precision}, the service rejects it": str(error)})
            model = self._unverified(precision, limits, device)
        return InProcessService(model, limits, runners=device.in_flight if device.provider.bound else self.pick(2, 1))

    @property
    def _load_seconds(self) -> float:
        """For measuring costs at load, as the service does; on a device it then warms up, see `WARM_UP`."""
        return self.pick(0.4, 0.02)

    def _unverified(self, precision: Precision, limits: BatchLimits, device: Device) -> LoadedModel:
        """A model as the service would serve it after verification."""
        manifest = self.manifest(precision)
        session = Session.load(self.directory(precision), manifest, devices=(device,))
        cost = measure_cost(session, manifest, limits, stopping=Stopping(), budget_seconds=self._load_seconds)
        if not session.bound:
            return LoadedModel(manifest, session, cost)
        chosen = buckets.choose(
            cost,
            limits,
            max_length=manifest.max_length,
            min_length=manifest.min_length,
            multiple=manifest.width_multiple,
        )
        session.warm_up(chosen.shapes(), seconds=WARM_UP * self._load_seconds)
        return LoadedModel(manifest, session, BucketedCosts(cost, chosen), buckets=chosen)

    def sequences(self, distribution: str, count: int, *, max_length: int = 1024) -> list[Steps]:
        """Sequences with lengths of a distribution; the same ones for the same seed."""
        random = np.random.default_rng(self.seed)
        drawn = draw(distribution, count, max_length, random)
        return make_sequences(drawn, Input("values", self.features), random)

    def of_lengths(self, wanted: Sequence[int]) -> list[Steps]:
        """Sequences of these lengths."""
        return make_sequences(np.array(wanted), Input("values", self.features), np.random.default_rng(self.seed))
