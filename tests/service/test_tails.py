"""Padding in what comes is noticed at every way in, and cut off only where the caller names it."""

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pandas
import polars
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from rich.console import Console

import lengthwise
from lengthwise.batching.limits import BatchLimits
from lengthwise.commands.bench import bench
from lengthwise.commands.score import ScoringRun
from lengthwise.console import file_reader
from lengthwise.datasets import dataset
from lengthwise.datasets.input_sequences import InputSequence, Padding
from lengthwise.datasets.tails import doubts, without_padding
from lengthwise.errors import ConfigurationError, InvalidSequences
from lengthwise.scoring.opened import OpenModel
from lengthwise.scoring.prediction_file import PredictionFile
from tests.support.numpy_models import manifest, model, serving
from tests.support.small_server import SmallServer
from tests.support.small_server import serving as small_serving

WIDTH = 20
SAID = "every sequence has 20 steps, and 36 of 40 end in zeros: is this padding?"
random = np.random.default_rng(0)
LENGTHS = [WIDTH] * 4 + random.integers(5, WIDTH - 1, 36).tolist()
SEQUENCES = [random.integers(1, 99, (length, 2)).astype(np.float32) / 100 for length in LENGTHS]


def padded(fill: float = 0.0, *, left: bool = False, sequences: Any = SEQUENCES) -> list[np.ndarray]:
    whole = [np.full((WIDTH, *one.shape[1:]), fill, dtype=one.dtype) for one in sequences]
    for array, one in zip(whole, sequences, strict=True):
        array[WIDTH - len(one) :] = one
        if not left:
            array[:] = np.roll(array, len(one), axis=0)
    return whole


def repeated(sequences: Any) -> list[np.ndarray]:
    """The last step of each is repeated up to the common length."""
    return [np.pad(one, ((0, WIDTH - len(one)), *[(0, 0)] * (one.ndim - 1)), "edge") for one in sequences]


@pytest.mark.parametrize(
    ("sequences", "said"),
    [
        (padded(), f"{SAID} Such steps count as data: padding='zeros' (--padding zeros) cuts these tails off"),
        (padded(-0.0), "36 of 40 end in zeros"),
        (padded(np.nan), "36 of 40 end in missing values: is this padding? Such steps count as data: padding='nan'"),
        (padded(-1), "36 of 40 end in steps of -1: is this padding? Leave such steps out"),
        (
            [(one - np.float32([3, 5])) / 7 for one in padded()],
            "36 of 40 end in steps of -0.428571, -0.714286",
        ),
        (padded(left=True), "36 of 40 begin with zeros: is this padding? Leave such steps out"),
        (padded(sequences=[(100 * one[:, 0]).astype(np.int64) for one in SEQUENCES]), "36 of 40 end in zeros"),
        (
            padded(7, sequences=[(100 + 100 * one[:, 0]).astype(np.int64) for one in SEQUENCES]),
            "36 of 40 end in steps of 7",
        ),
        ([*padded(), SEQUENCES[9]], "nearly every sequence has 20 steps, and 36 of 40 end in zeros"),
        (padded(sequences=[np.round(one[:, :1]) for one in SEQUENCES]), "of 40 end in zeros"),  # half of them inside
        (padded(99), "36 of 40 end in steps of 99: is this padding? Leave such steps out"),
        (padded(99, sequences=[np.round(9 * one[:, :1]) for one in SEQUENCES]), "of 40 end in steps of 99"),
        (padded(1e6, left=True), "36 of 40 begin with steps of 1e+06: is this padding? Leave such steps out"),
        (repeated(SEQUENCES), "36 of 40 end in copies of their last step: is this padding? Leave such steps out"),
        ([one[::-1] for one in repeated(SEQUENCES)], "36 of 40 begin with copies of their first step"),
        (repeated([(1e4 * one[:, 0]).astype(np.int64) for one in SEQUENCES]), "36 of 40 end in copies of their last"),
    ],
    ids=[
        "zeros",
        "minus zero",
        "nan",
        "filler",
        "scaled",
        "left",
        "id 0",
        "another id",
        "one of another length",
        "counts",
        "99",
        "99 behind counts",
        "a million on the left",
        "last step",
        "first step",
        "last id",
    ],
)
def test_a_tail_of_padding_is_noticed(sequences: Any, said: str) -> None:
    (found,) = doubts(sequences)
    assert said in found


def at_rest(count: int) -> list[np.ndarray]:
    """Recordings of which some end in a few zeros."""
    found = [random.normal(size=(WIDTH, 2)) for _ in range(40)]
    for place in range(count):
        found[place][WIDTH - 1 - place % 5 :] = 0
    return found


@pytest.mark.parametrize(
    "sequences",
    [
        SEQUENCES,
        at_rest(0),
        at_rest(20),
        [np.vstack([random.normal(size=(WIDTH - 1, 2)), np.zeros((1, 2))]) for _ in range(40)],
        [np.vstack([random.normal(size=(WIDTH - 4, 2)), np.zeros((4, 2))]) for _ in range(40)],
        [random.random((365, 1)) * (random.random((365, 1)) < 0.1) for _ in range(60)],  # rain
        [np.repeat(random.random(10) < 0.4, 10)[:, None] * random.random((100, 1)) for _ in range(40)],  # showers
        [(np.cumsum(random.random((60, 1)) < 0.1) % 2)[:, None] * random.random((60, 1)) for _ in range(40)],  # on, off
        [np.pad(random.normal(size=(n % 9 + 3, 1)), ((n % 7 + 10, 23 - n % 9 - n % 7), (0, 0))) for n in range(40)],
        [np.eye(3)[np.sort(random.integers(0, 3, WIDTH))] for _ in range(40)],  # states, the last one stays
        [np.sort(random.integers(0, 3, WIDTH))[:, None] + 1.0 for _ in range(40)],  # grades of wear
        [np.repeat(random.integers(1, 9, 10), 10)[:, None] * 1.0 for _ in range(40)],  # a machine's set points
        [np.cumsum(random.random((60, 1)) < 0.1, axis=0) * 1.0 for _ in range(40)],  # counted events
        [(np.cumsum(random.random((60, 1)) < 0.1, axis=0) % 2) * 5.0 + 2 for _ in range(40)],  # a valve: 2 or 7
        [
            np.pad(random.normal(size=(n % 9 + 3, 1)), ((n % 7 + 10, 23 - n % 9 - n % 7), (0, 0)), constant_values=4)
            for n in range(40)
        ],
        [np.pad(random.normal(size=(9, 1)), ((n % 3 + 2, 40 - n % 3), (0, 0))) for n in range(40)],
        [np.clip(random.uniform(0.02, 0.05) * np.arange(100.0), 0, 1)[:, None] for _ in range(40)],
        [np.vstack([random.normal(size=(WIDTH - 4, 2)), np.full((4, 2), 99)]) for _ in range(40)],
        [np.full((WIDTH, 2), float(n)) for n in range(9)],
        [np.zeros((WIDTH, 2))] * 9,
        [np.zeros((0, 2))] * 9,
        padded()[-1:],
        [],
    ],
    ids=[
        "lengths",
        "none",
        "half",
        "one each",
        "four each",
        "rain",
        "showers",
        "on and off",
        "pulses",
        "states",
        "grades",
        "set points",
        "counts",
        "valve",
        "pulses above 4",
        "early pulses",
        "up to 1",
        "four 99 each",
        "constants",
        "zeros",
        "no steps",
        "one",
        "nothing",
    ],
)
def test_real_sequences_are_no_padding(sequences: Any) -> None:
    assert [*doubts(sequences)] == []


@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 3)), elements=st.floats(-9, 9, width=32)),
    st.integers(0, 9),
    st.sampled_from(["zeros", "nan"]),
)
def test_what_is_cut_off_is_exactly_the_tail(steps: np.ndarray, more: int, padding: Padding) -> None:
    steps[-1, 0] = 1
    fill = 0 if padding == "zeros" else np.nan
    whole = np.vstack([steps, np.full((more, steps.shape[1]), fill, np.float32)])
    mask, labels = [True] * len(whole), [*range(len(whole))]
    found = without_padding(InputSequence(whole, step_mask=mask, label=labels), padding)
    assert isinstance(found, InputSequence)
    np.testing.assert_array_equal(found.steps, steps)
    assert (found.step_mask, found.label) == (mask[: len(steps)], labels[: len(steps)])
    other: Padding = "nan" if padding == "zeros" else "zeros"
    assert isinstance(kept := without_padding(InputSequence(whole), other), InputSequence)
    assert len(kept.steps) == len(whole)


def loaded(**rules: Any) -> lengthwise.Model:
    return lengthwise.Model(OpenModel(model(manifest(**rules)), BatchLimits(), 1))


def table(sequences: Any) -> pandas.DataFrame:
    steps = [pandas.DataFrame(one, columns=["x", "y"]).assign(id=f"s{n:02}") for n, one in enumerate(sequences)]
    return pandas.concat(steps)


@pytest.mark.parametrize("form", [list, np.stack, table, lengthwise.sequences], ids=["list", "array", "table", "read"])
def test_predict_warns_once_and_cuts_where_it_is_told(
    form: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    given = form(padded())  # what was read is not said again
    loaded().predict(given)
    assert [one.getMessage().partition(" Such")[0] for one in caplog.records] == [SAID]
    caplog.clear()
    answers = loaded().predict(given, padding="zeros", attention=True)
    assert caplog.records == []
    plain = loaded().predict(SEQUENCES, attention=True)
    assert [one.length for one in answers] == LENGTHS
    for one, other in zip(answers, plain, strict=True):
        assert one.probabilities.tobytes() == other.probabilities.tobytes()
        assert one.attention.tobytes() == other.attention.tobytes()  # type: ignore[union-attr]  # both have it


def test_a_sequence_of_padding_alone_is_named() -> None:
    with pytest.raises(InvalidSequences) as told:
        loaded().predict([*padded(), np.zeros((WIDTH, 2))], padding="zeros")
    assert told.value.indices == (40,)
    assert "each of its 20 steps is padding (zeros), so no step is left" in str(told.value)


@pytest.mark.parametrize("call", [lengthwise.sequences, loaded().predict], ids=["sequences", "predict"])
def test_another_word_for_padding_is_refused(call: Callable[..., Any]) -> None:
    with pytest.raises(ConfigurationError, match="padding must be one of zeros, nan, None, got 'zero'"):
        call(padded(), padding="zero")


def test_missing_values_behind_a_sequence_are_told_from_a_gap() -> None:
    with pytest.raises(InvalidSequences, match="behind the sequence are padding: leave them out"):
        loaded().predict(padded(np.nan))
    assert [one.length for one in loaded().predict(padded(np.nan), padding="nan")] == LENGTHS
    with pytest.raises(InvalidSequences, match="a model that takes NaN with --missing handled") as told:
        loaded().predict([[[1, 2], [None, None], [3, 4]]])
    assert "padding" not in str(told.value)


@pytest.mark.parametrize("beside", [1, 100], ids=["small", "large"])  # a large body is read in C
async def test_the_service_says_what_rows_of_null_behind_a_sequence_are(beside: int) -> None:
    steps = [[1.0, 2.0], [None, None], [None, None]]
    async with serving(model(manifest())) as service:
        answer = await service.predict({"sequences": [steps, *[[[0.25, 0.5]] * 900] * beside]})
    assert answer.status_code == 422
    told = {one["pointer"]: one["detail"] for one in answer.json()["errors"]}
    assert [*told] == [f"/sequences/0/{step}/{value}" for step in (1, 2) for value in (0, 1)]
    assert all("steps of null behind the sequence are padding: leave them out" in detail for detail in told.values())
    assert all("within it, export a model that takes NaN with --missing handled" in detail for detail in told.values())
    async with serving(model(manifest())) as service:
        answer = await service.predict({"sequences": [[[1.0, None], [1.0, 2.0]]]})
    assert "padding" not in answer.text


async def test_steps_that_are_null_themselves_are_padding_too(tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text('{"steps": [[1, 2], [3, 4], null, null]}\n{"steps": [5, null]}\n')
    ways: dict[Padding | None, list[int]] = {None: [2], "nan": [2, 1]}
    for padding, lengths in ways.items():
        found = dataset.entries(data, reading=dataset.Reading(padding=padding))
        assert [len(one.steps) for one in found if isinstance(one, dataset.Record)] == lengths
    async with serving(model(manifest())) as service:
        answer = await service.predict({"sequences": [[[1, 2], None]]})
    (told,) = answer.json()["errors"]
    assert told["pointer"] == "/sequences/0/1"
    assert "got null; steps of null behind the sequence are padding: leave them out" in told["detail"]


GAP: list[Any] = [[0.25, 0.5], None, [0.75, 1.0]]


async def test_a_step_that_is_null_has_one_rule_everywhere(tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    served = model(manifest(missing="zero"))
    for names, step in ((None, [0.25, 0.5]), (("x", "y"), {"x": 0.25, "y": 0.5})):
        steps = [step, None, step]
        data.write_text(json.dumps({"steps": steps}))
        (found,) = dataset.entries(data)
        with pytest.raises(InvalidSequences) as told:
            lengthwise.sequences([steps])
        word = "step 1: a step must be an array of 2 numbers, got null; steps of null behind the sequence are padding"
        assert isinstance(found, dataset.BadRecord)
        assert word in str(found.error), names
        assert word in str(told.value), names
    async with serving(served) as service:
        answer = await service.predict({"sequences": [GAP]})
    assert word.removeprefix("step 1: ") in answer.json()["errors"][0]["detail"]


@pytest.mark.parametrize(
    "form",
    [
        lambda steps: [steps],
        lambda steps: pandas.DataFrame({"id": ["a"], "steps": [steps]}),
        lambda steps: pyarrow.table({"id": ["a"], "steps": [steps]}),
        lambda steps: pyarrow.table({"id": ["a"], "steps": [steps]}).to_pandas(),
        lambda steps: polars.DataFrame({"id": ["a"], "signal": [steps]}),
    ],
    ids=["list", "pandas", "arrow", "arrays", "polars"],
)
def test_null_steps_are_refused_inside_and_cut_off_the_end(form: Callable[[Any], Any]) -> None:
    ready = loaded(missing="zero")
    for steps in (GAP, [*GAP, None]):
        with pytest.raises(InvalidSequences, match="step 1: a step must be an array of 2 numbers, got null"):
            ready.predict(form(steps))
    (cut,) = ready.predict(form([[0.25, 0.5], [0.75, 1.0], None, [None, None]]), padding="nan")
    assert cut.length == 2


def test_of_one_feature_a_null_is_a_missing_value(tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    for steps in ([[0.5], None, [0.25]], [0.5, None, 0.25]):
        data.write_text(json.dumps({"steps": steps}))
        (found,) = dataset.read(data)
        (read,) = lengthwise.sequences([steps])
        for one in (found.steps.ravel(), read.steps.ravel()):
            np.testing.assert_array_equal(one, np.array([0.5, np.nan, 0.25], np.float32))


REINDEXED = "id,t,x,y,label\na,{0},1,2,p\na,,,,p\na,{1},3,4,p\na,,nan,,\nb,{0},5,6,q\nb,,,,q\n"


@pytest.mark.parametrize("times", [("0", "1"), ("2025-03-01 00:00:00", "2025-03-01 00:01:00"), ("23:30", "24:10")])
def test_rows_without_a_time_and_values_are_padding(times: tuple[str, str], tmp_path: Path) -> None:
    data = tmp_path / "d.csv"
    data.write_text(REINDEXED.format(*times))
    frame = pandas.read_csv(data)
    for read in (lambda: [*dataset.read(data)], lambda: file_reader.read(data, "values", 99)):
        with pytest.raises(ConfigurationError, match=r"line 3 has no time in the column 't'.*--padding nan"):
            read()
    with pytest.raises(ConfigurationError, match="row 1 has no time in the column 't'"):
        lengthwise.sequences(frame)
    steps = [[[1, 2], [3, 4]], [[5, 6]]]
    assert [one.steps.tolist() for one in dataset.read(data, reading=dataset.Reading(padding="nan"))] == steps
    uploaded = file_reader.read(data, "values", 99, padding="nan")["sequences"]
    assert [one["steps"].tolist() for one in uploaded] == steps
    for form in (frame, polars.from_pandas(frame), pyarrow.Table.from_pandas(frame), frame.groupby("id")):
        assert [one.steps.tolist() for one in lengthwise.sequences(form, padding="nan")] == steps
    data.write_text(REINDEXED.format(*times) + "b,,7,8,q\n")
    with pytest.raises(ConfigurationError, match="line 8 has no time"):
        [*dataset.read(data, reading=dataset.Reading(padding="nan"))]
    data.write_text(REINDEXED.format(*times) + "c,,,,q\n")
    with pytest.raises(ConfigurationError, match=r"d\.csv:8: each of its 1 steps is padding"):
        [*dataset.read(data, reading=dataset.Reading(padding="nan"))]


def test_a_table_of_padding_alone_is_told_so(tmp_path: Path) -> None:
    data = tmp_path / "d.csv"
    data.write_text("id,t,x\na,,\na,,\n")
    with pytest.raises(ConfigurationError, match="line 2 has no time in the column 't'"):
        [*dataset.read(data, reading=dataset.Reading(padding="nan"))]


def test_labels_of_steps_go_with_rows_that_are_padding(tmp_path: Path) -> None:
    data = tmp_path / "d.csv"
    data.write_text("id,t,x,label\na,,,p\na,1,2,q\na,0,1,p\nb,0,5,q\n")
    found = [*dataset.read(data, reading=dataset.Reading(padding="nan", per_step=True))]
    assert [(one.steps.ravel().tolist(), one.label) for one in found] == [([1, 2], ("p", "q")), ([5], ("q",))]


async def test_a_step_of_zeros_is_data_for_the_service(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "lengthwise.data")
    async with serving(model(manifest())) as service:
        answer = await service.predict({"sequences": [one.tolist() for one in padded()]})
    assert {one["length"] for one in answer.json()["predictions"]} == {WIDTH}
    assert not [one for one in caplog.records if one.name == "lengthwise.data"]


async def test_a_client_warns_and_cuts(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(model(manifest())) as service:
        transport = httpx2.ASGITransport(service.app)
        async with lengthwise.AsyncClient("http://service", transport=transport) as client:
            warned = await client.predict(padded())
            said = [one.getMessage() for one in caplog.records if one.name == "lengthwise.data"]
            assert [one.partition(" Such")[0] for one in said] == [SAID]
            caplog.clear()
            cut = await client.predict(padded(), padding="zeros")
            again = await client.predict(await client.prepare(padded(), padding="zeros"))
    assert "padding" not in caplog.text
    assert {one.length for one in warned} == {WIDTH}
    assert [one.length for one in cut] == [one.length for one in again] == LENGTHS


def json_lines(path: Path, sequences: Any) -> Path:
    lines = (json.dumps({"id": f"r{n}", "steps": one.tolist()}) for n, one in enumerate(sequences))
    path.write_text("\n".join(lines).replace("NaN", "null"))
    return path


def parquet(path: Path, sequences: Any) -> Path:
    columns = {"id": [f"r{n}" for n in range(len(sequences))], "steps": [one.tolist() for one in sequences]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def long_csv(path: Path, sequences: Any) -> Path:
    rows = [f"r{n},{t},{x:.2f},{y:.2f}" for n, one in enumerate(sequences) for t, (x, y) in enumerate(one)]
    path.write_text("\n".join(["id,t,x,y", *rows]))
    return path


def time_series(path: Path, sequences: Any) -> Path:
    lines = (":".join(",".join(map(str, row)) for row in one.T) for one in sequences)
    path.write_text("\n".join(["@classLabel false", "@data", *lines]).replace("nan", "NaN"))
    return path


FILES = pytest.mark.parametrize(
    ("write", "name"),
    [(json_lines, "d.jsonl"), (parquet, "d.parquet"), (long_csv, "d.csv"), (time_series, "d.ts")],
    ids=lambda one: one if isinstance(one, str) else "",
)


@FILES
@pytest.mark.parametrize("fill", [0.0, np.nan], ids=["zeros", "nan"])
def test_score_warns_and_cuts_files_of_every_kind(
    write: Callable[[Path, Any], Path], name: str, fill: float, tmp_path: Path
) -> None:
    padding: Padding = "nan" if np.isnan(fill) else "zeros"

    def lines(data: Path, said: io.StringIO, how: Padding | None = None) -> list[bytes]:
        opened = OpenModel(model(manifest(missing="zero")), BatchLimits(), 1)
        out = data.with_suffix(f".{how}.out")
        with PredictionFile(out, exact=False) as scored:
            run = ScoringRun(opened, attention=True, stop=True)
            run.score(data, scored, Console(file=said), resume=False, reading=dataset.Reading(padding=how))
        return out.read_bytes().splitlines()

    data, said, quiet = write(tmp_path / name, padded(fill)), io.StringIO(), io.StringIO()
    lines(data, said)
    assert said.getvalue().count("warning: ") == said.getvalue().count("36 of 40 end in") == 1
    (tmp_path / "plain").mkdir()
    plain = lines(write(tmp_path / "plain" / name, SEQUENCES), quiet)
    assert lines(data, quiet, padding) == plain
    assert quiet.getvalue() == ""


def test_a_record_of_padding_alone_is_named_by_its_line(tmp_path: Path) -> None:
    data = json_lines(tmp_path / "d.jsonl", [*padded(), np.zeros((WIDTH, 2))])
    with pytest.raises(ConfigurationError, match=r"d\.jsonl:41: each of its 20 steps is padding"):
        [*dataset.read(data, reading=dataset.Reading(padding="zeros"))]


@FILES
def test_the_console_says_what_looks_like_padding(
    write: Callable[[Path, Any], Path], name: str, tmp_path: Path
) -> None:
    found = file_reader.read(write(tmp_path / name, padded()), "values", 10_000_000)
    assert [one.partition(" Such")[0] for one in found["doubts"]] == [SAID]
    (tmp_path / "plain").mkdir()
    assert file_reader.read(write(tmp_path / "plain" / name, SEQUENCES), "values", 10_000_000)["doubts"] == []


def test_bench_warns_and_cuts(tmp_path: Path) -> None:
    server = SmallServer()
    data = json_lines(tmp_path / "d.jsonl", padded())
    with small_serving(server) as address:
        words = [address.url, "--data", str(data), "--request-count", "40"]
        warned = CliRunner().invoke(bench, words)
        assert SAID in warned.stderr, warned.output
        assert {len(json.loads(body)["sequences"][0]) for body in server.bodies} == {WIDTH}
        server.bodies.clear()
        assert "padding" not in CliRunner().invoke(bench, [*words, "--padding", "zeros"]).stderr
    assert {len(json.loads(body)["sequences"][0]) for body in server.bodies} == {*LENGTHS}
