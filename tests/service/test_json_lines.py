import gzip
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.datasets import dataset
from lengthwise.datasets.dataset import BadRecord, Record
from lengthwise.decoding import fast_json
from tests.fuzz import json_readers


def found(path: Path, kind: dataset.StepKind) -> list[tuple[object, ...]]:
    """What a file holds, in a form that can be compared."""
    read: list[tuple[object, ...]] = []
    for entry in dataset.entries(path, kind):
        if isinstance(entry, Record):
            read.append(
                (entry.id, entry.steps.dtype, entry.steps.shape, entry.steps.tobytes(), entry.label, entry.source_line)
            )
        else:
            read.append((entry.id, str(entry.error)))
    return read


@given(st.integers(0, 2**32), st.sampled_from(["values", "tokens"]))
def test_ordinary_lines_are_read_as_the_careful_reader_reads_them(
    tmp_path_factory: pytest.TempPathFactory, seed: int, kind: dataset.StepKind
) -> None:
    rng = random.Random(seed)
    kinds = ["tokens"] if kind == "tokens" else ["refuses missing", "takes missing", "one feature"]
    lines = [json_readers.record(rng, rng.choice(kinds)) for _ in range(20)]
    lines = [line.replace(b"\0", b"\1") for line in lines]  # a file that begins with NUL is no text
    path = tmp_path_factory.mktemp("lines") / "d.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_json, "COMPILED", False)
        careful = found(path, kind)
    assert found(path, kind) == careful


@pytest.mark.parametrize(
    ("record", "error"),
    [
        ('{"id":"long","steps":[%s,[1,"x"]]}', "step 40 holds the text 'x'"),
        ('{"id":"long","steps":[%s,[1]]}', "step 40 has 1 feature, step 0 has 2"),
        ('{"id":"long","steps":[%s,[1,1e39]]}', "step 40 holds a number that is not finite as float32"),
        ('{"id":"long","steps":[%s,[]]}', "step 40 has 0 features, and needs at least one"),
        ('{"id":"long","steps":[%s]', "ends in the middle"),
        ('{"id":"long","steps":[%s],"values":1}', "unknown field 'values'"),
    ],
)
def test_an_error_in_a_long_line_names_its_step_and_the_next_line_is_read(
    tmp_path: Path, record: str, error: str
) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(record % ",".join(["[0.5,1]"] * 40) + '\n{"id":"next","steps":[[1,2]]}\n')
    bad, good = dataset.entries(path)
    assert isinstance(bad, BadRecord)
    assert error in str(bad.error)
    assert str(bad.error).startswith(f"{path}:1: ")
    assert isinstance(good, Record)
    assert (good.id, good.source_line) == ("next", f"{path}:2")


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz"])
def test_a_line_of_many_megabytes_is_held_as_text_and_numbers_only(tmp_path: Path, name: str) -> None:
    steps, features = 60_000, 12
    text = b"[" + b",".join([b"-0.123456"] * features) + b"]"
    line = b'{"id":"a","steps":[' + b",".join([text] * steps) + b'],"label":"x"}\n'
    path = tmp_path / name
    path.write_bytes(gzip.compress(line * 2, 1) if name.endswith(".gz") else line * 2)
    values = steps * features * 4
    assert len(line) > 2 * values
    shares: list[float] = []
    tracemalloc.start()
    try:
        for record in dataset.entries(path, advance=shares.append):
            assert isinstance(record, Record)
            assert record.steps.shape == (steps, features)
            assert (record.steps == np.float32(-0.123456)).all()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The last record is still held while the next one's numbers are read. Python's objects would be six times the text.
    assert peak < 3 * values + 3 * len(line)
    assert shares == sorted(shares)
