"""Section `throughput`: sequences a second at four distributions of lengths, beside three others and two limits.

Everything is measured in rounds, each asking everybody in turn, so that whatever else happens on the machine meets all
alike. float32 at each distribution; the other precisions at the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.gpu import contenders, costs, packed
from benchmarks.gpu.device import module
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.stage import DISTRIBUTIONS, Precision, Stage
from lengthwise.batching.plan import BatchLimits
from lengthwise.padding import Steps
from lengthwise.runtime.manifest import GRAPH_FILE

Run = Callable[[Sequence[Steps], float], dict[str, float]]
"""One measurement with some sequences, for some seconds: `sequences_per_second`, and what the batches were."""

LIMITS = {
    "service, 64 rows": BatchLimits(),
    "service, 256 rows": BatchLimits(rows=256, padded_steps=65_536),
    "service, 512 rows": BatchLimits(rows=512, padded_steps=131_072),
}
_LEAST_SECONDS = 60.0
"""What loading everybody and asking them in rounds takes."""
FAMILIES = ("service", "partition", "alone", "arrival", "torch")


def measure(stage: Stage, figures: Figures) -> None:
    """Notes `rates[distribution][precision][contender]`, one entry a round, and `best` by family."""
    figures.note(operations_per_step=operations_per_step(stage), in_flight=in_flight(stage))
    distributions = stage.pick(DISTRIBUTIONS, DISTRIBUTIONS[:2])
    wanted: list[tuple[Precision, str]] = [("fp32", distribution) for distribution in distributions]
    wanted += [(precision, DISTRIBUTIONS[0]) for precision in stage.precisions() if precision != "fp32"]
    everyone: dict[Precision, dict[str, Run]] = {}
    for precision, distribution in wanted:
        if stage.left < stage.pick(_LEAST_SECONDS, 0.0):
            figures.note(cut_short={f"{distribution} {precision}": "no time left"})
            continue
        stage.say(f"throughput, {distribution}, {precision}")
        if precision not in everyone:
            everyone[precision] = all_of(stage, precision, figures)
        runs = everyone[precision]
        sequences = stage.sequences(distribution, stage.pick(6000, 60))
        rounds = in_rounds(runs, sequences, stage.pick(3, 1), stage.pick(0.7, 0.05), figures)
        figures.note(mean_length={distribution: sum(map(len, sequences)) / len(sequences)})
        figures.note(rates={f"{distribution} {precision}": rounds})
        figures.note(best={f"{distribution} {precision}": best(rounds)})


def all_of(stage: Stage, precision: Precision, figures: Figures) -> dict[str, Run]:
    """Everybody who can be measured here; who cannot is noted under `failures`."""
    makers: dict[str, Callable[[], Mapping[str, Run]]] = {
        "service": lambda: {
            name: service(stage, precision, limits, figures) for name, limits in [*LIMITS.items()][: stage.pick(3, 1)]
        },
        "partition": lambda: {"partition": partition(stage, precision)},
        "alone": lambda: {peer.name: of_peer(peer) for peer in contenders.alone(stage, precision)},
        "arrival": lambda: {peer.name: of_peer(peer) for peer in contenders.arrival(stage, precision)},
        "torch": lambda: {peer.name: of_peer(peer) for peer in contenders.torch_packed(stage, precision)},
    }
    if precision not in packed.precisions(stage):
        makers.pop("torch")
        figures.note(left_out={f"torch {precision}": "torch is not installed, or has no such precision here"})
    found: dict[str, Run] = {}
    for name, make in makers.items():
        with figures.trying(f"{name} {precision}"):
            found.update(make())
    return found


def in_rounds(
    runs: Mapping[str, Run], sequences: Sequence[Steps], rounds: int, seconds: float, figures: Figures
) -> dict[str, list[dict[str, float]]]:
    """Each in turn, after a short run of each that does not count; who fails is left out from then on."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    failed: set[str] = set()
    for number in range(rounds + 1):
        for name, run in runs.items():
            if name in failed:
                continue
            failed.add(name)
            with figures.trying(name):
                seen = run(sequences, seconds if number else seconds / 3)
                failed.remove(name)
                if number:
                    found[name].append(seen)
    return {name: seen for name, seen in found.items() if seen}


def best(rounds: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, Any]]:
    """The best of each family, with the median of its rounds and their range."""
    found: dict[str, dict[str, Any]] = {}
    for name, seen in rounds.items():
        family = name.partition(",")[0]
        rates = [each["sequences_per_second"] for each in seen]
        if family not in found or median(rates) > found[family]["median"]:
            last = {key: value for key, value in seen[-1].items() if key != "sequences_per_second"}
            found[family] = {"of": name, "median": median(rates), "low": min(rates), "high": max(rates), **last}
    return found


def service(stage: Stage, precision: Precision, limits: BatchLimits, figures: Figures) -> Run:
    """The service without HTTP."""
    desk = stage.desk(precision, limits, figures)
    return lambda sequences, seconds: desk.closed(sequences, seconds, in_flight(stage))


def partition(stage: Stage, precision: Precision) -> Run:
    """The cheapest batches there are, by the cost table of the device."""
    session, multiple = stage.session(precision), stage.manifest(precision).width_multiple
    table, limits = costs.table(stage), LIMITS[[*LIMITS][stage.pick(2, 0)]]
    made: dict[int, Any] = {}

    def run(sequences: Sequence[Steps], seconds: float) -> dict[str, float]:
        if id(sequences) not in made:
            made.clear()
            made[id(sequences)] = contenders.best_partition(
                sequences, table, multiple=multiple, rows=limits.rows, cost_steps=limits.padded_steps, seed=stage.seed
            )
        batches = made[id(sequences)]
        cost, valid = sum(batch.padded_steps for batch in batches), sum(batch.valid_steps for batch in batches)
        return {
            "sequences_per_second": contenders.partition_rate(session, batches, seconds),
            "rows_per_batch": len(sequences) / len(batches),
            "padding_share": 1 - valid / cost,
        }

    return run


def of_peer(peer: contenders.Peer[Any]) -> Run:
    """A peer's run."""

    def run(sequences: Sequence[Steps], seconds: float) -> dict[str, float]:
        groups = peer.in_turn(sequences)
        return {"sequences_per_second": contenders.rate(peer.work, groups, seconds, peer.threads)}

    return run


def in_flight(stage: Stage) -> int:
    """Sequences that are always on their way in the closed load."""
    return stage.pick(4096, 32)


def operations_per_step(stage: Stage) -> int | None:
    """Multiplications and additions that the graph takes for one step of one sequence; None without onnx.

    Those of its recurrent layers and of its products with constants, which are all but all of them.
    """
    onnx = module("onnx")
    if onnx is None:
        return None
    graph = onnx.load(stage.directory("fp32") / GRAPH_FILE).graph
    sizes = {held.name: math.prod(held.dims) for held in graph.initializer if len(held.dims) > 1}
    kinds = {"LSTM": (1, 2), "GRU": (1, 2), "MatMul": (0, 1)}
    return sum(
        2 * sizes.get(node.input[place], 0)
        for node in graph.node
        for place in kinds.get(node.op_type, ())
        if place < len(node.input)
    )
