"""Runs a model of the gallery alone and padded in several ways, and measures how far the answers lie apart."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto

from tests.gallery.index import Exhibit

TOLERANCE = 1e-5
LENGTHS = (7, 1, 11, 4, 9, 2)
ELEMENTS = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}

Array = NDArray[Any]
Model = Callable[[Array, Array], Array]
"""Padded steps, rows first, and their lengths, to logits, rows first."""


def sequences(exhibit: Exhibit) -> list[Array]:
    rng = np.random.default_rng(3)
    lengths = [max(length, exhibit.shortest) for length in LENGTHS]
    if exhibit.vocabulary is not None:
        return [rng.integers(1, exhibit.vocabulary, size=length) for length in lengths]
    steps = [rng.normal(size=(length, exhibit.features)).astype(np.float32) for length in lengths]
    steps[0][3] = 0.0  # a step of zeros is data
    return steps


def padded(rows: list[Array], width: int, padding: Callable[[tuple[int, ...]], Array]) -> tuple[Array, Array]:
    batch = padding((len(rows), width, *rows[0].shape[1:])).astype(rows[0].dtype)
    for target, steps in zip(batch, rows, strict=True):
        target[: len(steps)] = steps
    return batch, np.array([len(steps) for steps in rows])


def junk(exhibit: Exhibit) -> Callable[[tuple[int, ...]], Array]:
    rng = np.random.default_rng(5)
    if exhibit.vocabulary is not None:
        return lambda shape: rng.integers(0, exhibit.vocabulary, size=shape)
    return lambda shape: rng.normal(scale=3.0, size=shape)


def laid_out(exhibit: Exhibit, batch: Array) -> Array:
    """Steps `[rows, width, features]` in the model's own order of axes."""
    if exhibit.raw:
        batch = batch[:, :, 0]
    order = (0, 2, 1) if exhibit.channels_first else (1, 0, 2)[: batch.ndim]
    return batch.transpose(order).copy() if exhibit.channels_first or exhibit.time_first else batch.copy()


def rows_first(exhibit: Exhibit, logits: Array) -> Array:
    """Answers, those for each step as `[rows, width, classes]`."""
    return logits.swapaxes(1, 2) if exhibit.channels_first and exhibit.per_step else logits


def torch_model(exhibit: Exhibit) -> Model:
    module = exhibit.make().eval()

    def run(batch: Array, lengths: Array) -> Array:
        steps = torch.from_numpy(laid_out(exhibit, batch))
        ends = torch.from_numpy(lengths)
        mask = torch.arange(batch.shape[1]) < ends[:, None]
        seconds = {None: [], "lengths": [ends], "mask": [mask], "padding-mask": [~mask], "both": [ends, mask]}
        given = [steps, *seconds[exhibit.second]]
        with torch.no_grad():
            named = dict(zip(exhibit.arguments, given, strict=True)) if exhibit.arguments else {}
            answer = module(**named) if named else module(*given)
        logits = getattr(answer, "logits", answer)
        return rows_first(exhibit, (logits if exhibit.output is None else answer[exhibit.output]).numpy())

    return run


def onnx_model(exhibit: Exhibit) -> Model:
    return graph_model(exhibit, exhibit.make())


def graph_model(exhibit: Exhibit, graph: ModelProto) -> Model:
    """A graph with the inputs and the order of axes that the exhibit names."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    types = {node.name: ELEMENTS[node.type] for node in session.get_inputs()}
    outputs = None if exhibit.output is None else [exhibit.output]

    def run(batch: Array, lengths: Array) -> Array:
        mask = np.arange(batch.shape[1]) < lengths[:, None]
        feed = {exhibit.values: laid_out(exhibit, batch)}
        if exhibit.second in ("lengths", "both"):
            feed[exhibit.second_name] = lengths
        elif exhibit.second in ("mask", "padding-mask"):
            mask = ~mask if exhibit.second == "padding-mask" else mask
            feed[exhibit.second_name] = mask.T if exhibit.time_first else mask
        if exhibit.third is not None:
            feed[exhibit.third] = mask
        feed = {name: np.ascontiguousarray(array, dtype=types[name]) for name, array in feed.items()}
        return rows_first(exhibit, session.run(outputs, feed)[0])

    return run


def run_of(exhibit: Exhibit) -> Model:
    """How to run a model of either kind."""
    return torch_model(exhibit) if exhibit.is_torch else onnx_model(exhibit)


def difference(exhibit: Exhibit, expected: list[Array], logits: Array) -> float:
    """The largest difference to what each row answers alone, at valid positions; infinite where one is not finite."""
    worst = 0.0
    for alone, row in zip(expected, logits, strict=True):
        here = row[: len(alone)] if exhibit.per_step else row
        gap = np.abs(here - alone).max()
        worst = max(worst, float(gap) if np.isfinite(gap) else np.inf)
    return worst


def alone(model: Model, rows: list[Array]) -> list[Array]:
    return [model(*padded([steps], len(steps), np.zeros))[0] for steps in rows]


def finite_differences(exhibit: Exhibit, model: Model) -> dict[str, float]:
    rows = sequences(exhibit)
    expected = alone(model, rows)
    longest = max(len(steps) for steps in rows)
    filled = junk(exhibit)
    trials = {
        "company": padded(rows, longest, np.zeros),
        "one wider": padded(rows, longest + 1, np.zeros),
        "much wider": padded(rows, longest + 18, np.zeros),
        "junk": padded(rows, longest + 2, filled),
    }
    found = {name: difference(exhibit, expected, model(*batch)) for name, batch in trials.items()}
    pair = rows[:1] + [steps[::-1].copy() for steps in rows[2:3]]
    found["other neighbour"] = difference(exhibit, expected[:1], model(*padded(pair, longest + 3, filled))[:1])
    found["alone, wider"] = max(
        difference(exhibit, [answer], model(*padded([steps], len(steps) + 4, filled)))
        for steps, answer in zip(rows, expected, strict=True)
    )
    equally_long = [steps[: min(map(len, rows))] for steps in rows]
    found["all of one length"] = difference(
        exhibit, alone(model, equally_long), model(*padded(equally_long, longest, filled))
    )
    return found


def poison_difference(exhibit: Exhibit, model: Model) -> float:
    rows = sequences(exhibit)
    expected = alone(model, rows)
    return max(
        difference(exhibit, expected, model(*padded(rows, 13, lambda shape, fill=fill: np.full(shape, fill))))
        for fill in (np.nan, np.inf, -np.inf, 1e30, -1e30)
    )
