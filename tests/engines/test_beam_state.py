"""Apache Beam, with the recipe of examples/stream_beam.py: the state of a key is Beam's own."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.support.streaming_models import LABELS, gru, model, place, sequences, whole

beam = pytest.importorskip("apache_beam", reason="Apache Beam is not installed: make engines installs it")

RECIPE = Path(__file__).parents[2] / "examples" / "stream_beam.py"


def test_each_chunk_is_answered_with_what_the_whole_so_far_is(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("stream_beam", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    keys = dict(zip(("pump-1", "pump-2", "fan-1"), sequences([17, 9, 23]), strict=True))
    chunks = [(name, steps[begin : begin + 4].tolist()) for begin in range(0, 23, 4) for name, steps in keys.items()]
    chunks = [(name, steps) for name, steps in chunks if steps]
    directory = place(tmp_path / "models", gru)
    with beam.Pipeline() as pipeline:
        found = recipe.answers(pipeline | beam.Create(chunks, reshuffle=False), str(directory))
        _ = found | beam.Map(json.dumps) | beam.io.WriteToText(str(tmp_path / "answers"))
    lines = [json.loads(line) for file in tmp_path.glob("answers-*") for line in file.read_text().splitlines()]
    loaded = model(gru)
    assert len(lines) == len(chunks)
    for name, steps, label, score in lines:
        probabilities = whole(loaded, keys[name][:steps])
        assert label == LABELS[int(probabilities.argmax())]
        assert score == pytest.approx(float(probabilities.max()))
