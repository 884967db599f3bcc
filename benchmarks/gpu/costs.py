"""Section `costs`: seconds of a batch by rows and width, by the clock, with the copies to the device and back."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.gpu.figures import Figures
from benchmarks.gpu.stage import Stage
from lengthwise.batching.cost import CostTable
from lengthwise.batching.cost_measurement import measure as measure_table
from lengthwise.padding import PaddedBatch, rounded_width
from lengthwise.runtime.session import Session

MAX_COST_STEPS = 131_072


def measure(stage: Stage, figures: Figures) -> None:
    """Notes the `table`, and the figures that say what many rows and many steps are worth here."""
    for precision in stage.precisions():
        stage.say(f"cost table, {precision}")
        with figures.trying(precision):
            table = measured(stage, stage.session(precision), min(stage.pick(40.0, 1.0), stage.left / 3))
            figures.note(tables={precision: {**table.to_json(), **told(table)}})


def measured(stage: Stage, session: Session, seconds: float) -> CostTable:
    """A table up to `stage.max_rows` rows, by the clock."""
    manifest = stage.manifest("fp32")
    width = stage.pick(manifest.max_length, 64)

    def run(rows: int, width: int) -> None:
        values = np.zeros((rows, width, stage.features), dtype=np.float32)
        session.run(PaddedBatch(values, np.full(rows, width, dtype=np.int32)))

    return measure_table(
        run,
        max_rows=stage.max_rows,
        max_width=rounded_width(width, manifest.width_multiple),
        max_padded_steps=stage.pick(MAX_COST_STEPS, 2048),
        multiple=manifest.width_multiple,
        budget_seconds=seconds,
        clock=time.perf_counter,
    )


def table(stage: Stage) -> CostTable:
    """The table that the section found, or a short measurement of one where it did not run."""
    kept: Any = stage.earlier.get("costs", {}).get("tables", {}).get("fp32")
    if kept is not None:
        return CostTable(kept["rows"], kept["widths"], np.asarray(kept["seconds"]), clock=time.perf_counter)
    return measured(stage, stage.session(), stage.pick(10.0, 0.5))


def told(table: CostTable) -> dict[str, float]:
    """What a table says in a few figures: a small batch, a step of one row, and what rows cost beside the first."""
    widest = int(table.widths[-1])
    slope = (table.predict(1, widest) - table.predict(1, int(table.widths[0]))) / max(1, widest - int(table.widths[0]))
    return {
        "smallest_ms": 1e3 * table.predict(1, int(table.widths[0])),
        "step_of_one_row_us": 1e6 * slope,
        "rows_64_over_1_at_64": table.predict(64, 64) / table.predict(1, 64),
        "rows_256_over_1_at_64": table.predict(256, 64) / table.predict(1, 64),
    }
