import gzip
import importlib.util
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lengthwise.datasets import dataset
from lengthwise.datasets.dataset import BadRecord, Record
from lengthwise.errors import ConfigurationError


def lines(tmp_path: Path, *records: object, name: str = "d.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records))
    return path


def series(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "d.ts"
    path.write_text(text, errors="surrogateescape")
    return path


def read(path: Path, kind: dataset.StepKind = "values") -> list[Record]:
    return list(dataset.read(path, kind))


def test_a_format_is_known_by_its_line_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_words(path: Path, *_: object) -> Iterator[Record]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            steps = np.array([[float(word)] for word in line.split()], dtype=np.float32)
            yield Record(str(number), steps, None, f"{path}:{number}")

    path, warnings = tmp_path / "D.WORDS", list[str]()
    path.write_text("1 2 0\n3\n")
    with pytest.raises(ConfigurationError, match="the name must end in one of"):
        read(path)
    monkeypatch.setattr(dataset, "FORMATS", (*dataset.FORMATS, dataset.DataFormat((".words",), False, read_words)))
    reading = dataset.Reading(dataset.ColumnNames(id="x"), padding="zeros", warn=warnings.append)
    assert [record.steps.tolist() for record in dataset.read(path, reading=reading)] == [[[1], [2]], [[3]]]
    assert warnings == [f"{path}: --column is ignored: it names columns of a table, and this file has none"]


def test_json_lines_are_records(tmp_path: Path) -> None:
    path = lines(
        tmp_path,
        *('\ufeff{"id": "x", "steps": [[1, 2.5], [null, 4]], "label": "up"}', ""),
        *({"steps": [1, None, 3], "label": ["a", 2]}, {"steps": [[1]], "label": 3}),
    )
    first, second, third = dataset.entries(path)
    assert isinstance(first, Record)
    assert isinstance(second, Record)
    assert isinstance(third, Record)
    np.testing.assert_array_equal(first.steps, np.array([[1, 2.5], [np.nan, 4]], dtype=np.float32))
    assert first.steps.dtype == np.float32
    assert (first.id, first.label, first.source_line) == ("x", "up", f"{path}:1")
    assert (second.id, second.label, second.source_line, second.steps.shape) == ("1", ("a", "2"), f"{path}:3", (3, 1))
    assert third.label == "3"


def test_tokens_are_whole_numbers(tmp_path: Path) -> None:
    (record,) = read(lines(tmp_path, {"steps": [0, 7, 3]}), "tokens")
    assert record.steps.dtype == np.int64
    assert record.steps.tolist() == [0, 7, 3]


@pytest.mark.parametrize(
    "bad",
    [
        *("{", [1], {"label": "a"}, {"steps": [[1]], "weight": 2}, {"values": [[1]]}, {"step": [[1]]}),
        *({"steps": [[1]], "class": 1}, {"steps": [[1]], "labels": ["a"]}, {"id": "x"}, [[1]]),
        *('{"steps": [[NaN]]}', '{"id": "NaN", "steps": [[1], [-Infinity]]}', '{"steps": [[1, Infinity]]}'),
        *("{steps: [[NaN]]}", {"steps": [[1]], "id": [1]}, {"steps": [[1]], "label": True}),
        *({"steps": [[1]], "label": [1.5]}, {"steps": []}, {"steps": 4}, {"steps": [[]]}, {"steps": [[1, 2], [1]]}),
        *({"steps": [["1"]]}, {"steps": [[True]]}, {"steps": [[1], [1e39]]}),
        *('{"steps": [[1, 2]], "id": "a", "id": "b"}', '{"label": "a", "steps": [[1, 2]], "label": "a"}'),
        *('{"steps": [[1, 2]], "steps": [[1, 2]]}', '{"steps" : [[1, 2]], "steps": [[1, 2]]}'),
        *('{"steps": [[1, 2]], "id": "a:b", "id": "c"}', '{"steps": [[1, 2]], "id": "c", "id": "a:b"}'),
        *('{"steps": [[1, 2]], "i\\u0064": "c", "id": "a"}', '{"steps": [[1, 2]], "id": "c", "id": "\\u003a"}'),
        *('{"steps": [[1, 2]], "label": {"a": 1, "a": 2}}', {"steps": [[1, 2, 3]]}),
        '{"steps": [[1, 1' + "0" * 400 + "]]}",
    ],
)
def test_a_bad_record_is_named_by_file_and_line(tmp_path: Path, bad: object) -> None:
    path = lines(tmp_path, {"steps": [[1, 2]]}, bad)
    with pytest.raises(ConfigurationError, match=r"d\.jsonl:2: "):
        read(path)


@pytest.mark.parametrize(
    "line",
    [
        {"steps": [[1, 2]], "id": "12:30:00"},
        {"steps": [[1, 2]], "id": '":"', "label": ["a:b", ":"]},
        {"steps": [[1, 2]], "id": "id", "label": "label"},
        {"label": "steps", "steps": [1, 2], "id": '"steps":'},
    ],
)
def test_a_key_that_stands_once_stands_not_twice_whatever_the_strings_hold(tmp_path: Path, line: object) -> None:
    assert len(read(lines(tmp_path, line))) == 1


@pytest.mark.parametrize("twice", ["id", "label", "steps"])
@pytest.mark.parametrize("nested", [True, False])
def test_a_long_line_may_have_no_key_twice_either(tmp_path: Path, twice: str, nested: bool) -> None:
    steps = json.dumps([[1, 2]] * 100 if nested else [1] * 100)
    good = f'{{"id": "a", "steps": {steps}, "label": "b"}}'
    again = {"id": '"c"', "label": '"d"', "steps": "[[1, 2]]"}[twice]
    path = lines(tmp_path, good, f'{good[:-1]}, "{twice}": {again}}}', f'{{"{twice}": {again}, {good[1:]}', good)
    found = list(dataset.entries(path))
    assert [isinstance(each, dataset.BadRecord) for each in found] == [False, True, True, False]
    for each in found[1:3]:
        assert isinstance(each, dataset.BadRecord)
        assert f"the key '{twice}' stands twice in one object" in str(each.error)


def test_what_goes_on_behind_bad_records_gets_them_in_their_places(tmp_path: Path) -> None:
    path = lines(
        tmp_path, {"steps": [[1]]}, "{", {"id": "x", "steps": []}, {"id": [], "steps": [[1]]}, {"steps": [[2]]}
    )
    good, broken, empty, strange, last = dataset.entries(path)
    assert isinstance(good, Record)
    assert isinstance(last, Record)
    assert (good.id, last.id) == ("0", "4")
    for entry, name, line in ((broken, "1", 2), (empty, "x", 3), (strange, "3", 4)):
        assert isinstance(entry, BadRecord)
        assert entry.id == name
        assert str(entry.error).startswith(f"{path}:{line}: ")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.ts"])
def test_the_share_of_the_file_that_was_read_is_told(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    body = HEADER.encode() + b"1:up\n" * 30_000 if name == "d.ts" else b'{"steps": [[1]]}\n' * 30_000
    path.write_bytes(gzip.compress(body) if name.endswith(".gz") else body)
    shares: list[float] = []
    assert sum(1 for _ in dataset.entries(path, advance=shares.append)) == 30_000
    assert shares == sorted(shares)
    assert 0 < shares[0] <= 1.0
    assert shares[-1] == 1.0


@pytest.mark.parametrize("bad", [[], [1, -1], [1.0], [None], ["a"], [True], 3])
def test_a_bad_token_is_named(tmp_path: Path, bad: object) -> None:
    with pytest.raises(ConfigurationError):
        read(lines(tmp_path, {"steps": bad}), "tokens")


HEADER = "# made\n@problemName x\n@timeStamps false\n@classLabel true up down\n@data\n"


def test_ts_holds_features_apart_by_colons(tmp_path: Path) -> None:
    first, bad, second = dataset.entries(series(tmp_path, HEADER + "1,2,3:4,?,NaN:up\n1,x:up\n\n5:6:down\n"))
    assert isinstance(first, Record)
    assert isinstance(bad, BadRecord)
    assert isinstance(second, Record)
    np.testing.assert_array_equal(first.steps, np.array([[1, 4], [2, np.nan], [3, np.nan]], dtype=np.float32))
    assert (first.label, second.label, second.steps.tolist()) == ("up", "down", [[5.0, 6.0]])
    assert (bad.id, second.id, second.source_line[-6:]) == ("1", "2", "d.ts:9")
    assert str(bad.error).endswith("d.ts:7: sequence 1: 'x' is not a number")


def test_ts_without_labels_has_none(tmp_path: Path) -> None:
    (record,) = read(series(tmp_path, "@classLabel false\n@data\n1,2:3,4\n"))
    assert record.label is None
    assert record.steps.shape == (2, 2)


@pytest.mark.parametrize(
    "text",
    [
        *("1,2:up\n", "@classLabel true up\n", "@timeStamps true\n@data\n", "@targetlabel true\n@data\n"),
        *(HEADER + "1,2:3:up\n", HEADER + "1,x:up\n", HEADER + "1,inf:up\n", HEADER + "1,2:\n", HEADER + "up\n"),
        *(HEADER + "1:up\n1:2:up\n", "@problemName \udcff\n"),
    ],
)
def test_a_bad_ts_file_is_named_by_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError):
        read(series(tmp_path, text))


def test_ts_holds_no_tokens(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        read(series(tmp_path, HEADER), "tokens")


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    for name, said in (("d.xlsx", r"d\.xlsx.* \.jsonl"), ("absent.jsonl", r"absent\.jsonl")):
        with pytest.raises(ConfigurationError, match=said):
            read(tmp_path / name)
    damaged = tmp_path / "d.jsonl.gz"
    damaged.write_bytes(gzip.compress(b'{"steps": [[1]]}\n' * 99)[:-9])
    with pytest.raises(ConfigurationError):
        read(damaged)


def test_what_needs_an_extra_says_which_install_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    parquet, demo = partial(read, tmp_path / "d.parquet"), partial(dataset.locate, "aeon:JapaneseVowels_TRAIN")
    for extra, call in (("parquet", parquet), ("demo", demo)):
        with pytest.raises(ConfigurationError, match=rf"lengthwise\[{extra}\]"):
            call()


def test_parquet_with_list_columns_is_records(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "d.parquet"
    table = {"steps": [[[1.0, None]], [[2.0, 3.0], [4.0, 5.0]]], "label": ["a", "b"], "other": [1, 2]}
    parquet.write_table(pyarrow.table(table), path)
    first, second = read(path)
    assert np.isnan(first.steps[0, 1])
    assert (second.steps.tolist(), second.label, second.id) == ([[2.0, 3.0], [4.0, 5.0]], "b", "1")
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ConfigurationError):
        read(path)


def test_a_set_of_aeons_wheel_is_found_by_name() -> None:
    records = read(dataset.locate("aeon:JapaneseVowels_TEST"))
    assert len(records) == 370
    assert {record.steps.shape[1] for record in records} == {12}
    assert (min(len(r.steps) for r in records), max(len(r.steps) for r in records)) == (7, 29)


def test_a_path_is_located_as_itself(tmp_path: Path) -> None:
    path = lines(tmp_path)
    assert dataset.locate(str(path)) == path
    for absent in (str(tmp_path / "absent.jsonl"), "aeon:Vowels_TRAIN"):
        with pytest.raises(ConfigurationError):
            dataset.locate(absent)
