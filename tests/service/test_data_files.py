"""Files as people have them: one wrong line, other encodings, other forms, any size."""

import codecs
import gzip
import re
import shutil
import subprocess
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet
import pytest

import lengthwise
from lengthwise.connections.api_keys import Keys
from lengthwise.datasets import dataset, text_files
from lengthwise.datasets.column_roles import ColumnNames
from lengthwise.datasets.dataset import BadRecord, Reading, Record
from lengthwise.errors import ConfigurationError
from lengthwise.verification.golden import Golden
from tests.support.numpy_models import manifest

ROWS = [f"s{sequence},{step},{sequence}.{step},{'ab'[sequence % 2]}\n" for sequence in range(6) for step in range(4)]
WRONG = 14  # the third row of s3, and so in line 16


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(**changed: str) -> str:
    return "id,t,x,label\n" + "".join(changed.get(f"row{place}", row) for place, row in enumerate(ROWS))


def read(
    path: Path, kind: Any = "values", *, per_step: bool | None = False, **columns: Any
) -> tuple[list[Record], list[str]]:
    """The good records, and why others are bad."""
    found = [*dataset.entries(path, kind, reading=Reading(ColumnNames(**columns), per_step=per_step))]
    good = [one for one in found if isinstance(one, Record)]
    return good, [str(one.error).replace(str(path.parent), "") for one in found if isinstance(one, BadRecord)]


def test_one_wrong_label_is_named_once_and_no_other_sequence_is(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", table(row14="s3,2,3.2,a\n"))
    good, bad = read(path)
    assert [one.id for one in good] == ["s0", "s1", "s2", "s4", "s5"]
    (said,) = bad
    assert said.startswith("/d.csv:16: sequence 's3' has the label 'a', and 'b' in its other rows")
    with pytest.raises(ConfigurationError, match=r"d\.csv:16: sequence 's3'") as told:
        list(dataset.read(path, reading=Reading(per_step=False)))
    assert "more like it" not in str(told.value)


@pytest.mark.parametrize("row", ["s3,2,3.2\n", "s3,2,7,3.2,b\n", "q,s3,2,3.2,b\n", "3.2,b\n", "s3\n", ",2,,3.2,a\n"])
def test_a_line_with_another_number_of_cells_is_named_once(tmp_path: Path, row: str) -> None:
    good, bad = read(write(tmp_path / "d.csv", table(row14=row)))
    assert [one.id for one in good] == ["s0", "s1", "s2", "s4", "s5"]
    (said,) = bad
    assert said == f"/d.csv:16: {row.count(',') + 1} columns, and the first line has 4"


def test_labels_of_steps_stay_labels_of_steps(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", table(row14="s3,2,3.2,a\n"))
    good, bad = read(path, per_step=True)
    assert [one.label for one in good][2:4] == [("a",) * 4, ("b", "b", "a", "b")]
    assert bad == []
    mixed = write(
        tmp_path / "m.csv", "id,x,label\n" + "".join(f"{i},{t},{'ab'[t]}\n" for i in range(4) for t in (0, 1))
    )
    assert [one.label for one in read(mixed)[0]] == [("a", "b")] * 4
    assert {one.label for one in read(path, per_step=None)[0]} > {("b", "b", "a", "b")}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("s3,noon,3.2,b\n", "'noon' in the column 't' (line 16)"),
        (",2,3.2,b\n", "line 16 has no id"),
    ],
)
def test_an_error_about_times_and_ids_has_the_line(tmp_path: Path, row: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as told:
        read(write(tmp_path / "d.csv", table(row14=row)))
    assert said in str(told.value)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["2025-03-01", "2025-03-02", "7", "2025-03-03"], "'7' in the column 't' (line 4) is a number, unlike most"),
        (["0", "1", "2025-03-02", "3"], "'2025-03-02' in the column 't' (line 4) has no time zone, unlike most"),
        (["00:10", "24:30", "7", "48:00"], "'7' in the column 't' (line 4) is a number, unlike most"),
        (["00:10", "24:30", "00:75", "48:00"], "'00:75' in the column 't' (line 4) is neither a number nor a date"),
        (["2025-03-01", "2025-03-02", " ", "2025-03-03"], "line 4 has no time in the column 't'"),
        (
            ["22:00", "23:50", "00:10", "01:00"],
            "00:10 in the column 't' (line 4) comes after 23:50: is it the next day?",
        ),
    ],
)
def test_the_line_of_the_odd_time_is_named(cells: list[str], said: str, tmp_path: Path) -> None:
    rows = "".join(f"a,{cell},1\n" for cell in cells)
    with pytest.raises(ConfigurationError) as told:
        read(write(tmp_path / "d.csv", f"id,t,x\n{rows}"))
    assert said in str(told.value)


@pytest.mark.parametrize(
    "times",
    [
        ["00:10", "9:05", "24:01", "100:00"],
        ["00:00:09", "00:01:00.5", "23:59:59", "101:00:00"],
        ["0 days 00:10:00", "0 days 23:00:00", "1 days 00:00:00", "2 days 01:00:00.5"],
        ["-1 day, 23:50:00", "0:00:00", "0:00:01", "1 day, 0:00:00"],
        ["-00:10", "00:00", "00:10", "00:20"],
    ],
)
def test_hours_and_minutes_are_durations(times: list[str], tmp_path: Path) -> None:
    order = [2, 0, 3, 1]
    rows = "".join(f'a,"{times[place]}",{place}\n' for place in order)
    ((found,), bad) = read(write(tmp_path / "d.csv", f"id,t,x\n{rows}"))
    assert found.steps.ravel().tolist() == [0, 1, 2, 3]
    assert bad == []


def test_minutes_and_seconds_that_run_into_hours_are_asked_about(tmp_path: Path) -> None:
    for times, said in (
        (["58:30", "59:30", "1:00:30", "1:01:30"], "'58:30' (line 2), which is read as hours and minutes, and"),
        (["1:00:30", "noon", "59:30"], "'59:30' (line 4), which is read as hours and minutes, and '1:00:30' (line 2)"),
    ):
        rows = "".join(f"a,{time},{place}\n" for place, time in enumerate(times))
        with pytest.raises(ConfigurationError) as told:
            read(write(tmp_path / "d.csv", f"id,t,x\n{rows}"))
        assert said in str(told.value)
        assert "write three parts in each row, 0:36:15 for minutes and seconds" in str(told.value)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("a 23:50,a 23:55,a 00:05,a 00:10,b 10:00,b 9:50", "00:05 in the column 't' (line 4) comes after 23:55"),
        ("a 23:50,b 10:00,a 00:05,b 10:10", "00:05 in the column 't' (line 4) comes after 23:50"),
        ("a 20:00,a 22:00,a 11:00,a 12:00", "11:00 in the column 't' (line 4) comes after 22:00"),
        ("a 20:00:00,a 11:00:00.5,b 10:00:00", "11:00:00.5 in the column 't' (line 3) comes after 20:00:00"),
    ],
)
def test_a_time_of_the_day_that_falls_in_a_sequence_is_asked_about(rows: str, said: str, tmp_path: Path) -> None:
    cells = "".join(f"{row.replace(' ', ',')},1\n" for row in rows.split(","))
    with pytest.raises(ConfigurationError) as told:
        read(write(tmp_path / "d.csv", f"id,t,x\n{cells}"))
    assert f"{said}: is it the next day? Write dates" in str(told.value)


def test_times_that_fall_otherwise_are_sorted(tmp_path: Path) -> None:
    for rows in (
        "a,23:50,0\na,23:55,1\nb,00:05,0\nb,00:10,1\n",
        "a,0 days 12:00:00,1\na,0 days 01:00:00,0\nb,0 days 00:05:00,0\nb,0 days 00:10:00,1\n",
        "a,20:00,0\na,24:00,1\nb,12:00,1\nb,11:00,0\n",
    ):
        good, bad = read(write(tmp_path / "d.csv", f"id,t,x\n{rows}"))
        assert [one.steps.ravel().tolist() for one in good] == [[0, 1], [0, 1]]
        assert bad == []


@pytest.mark.parametrize("cell", ["inf", "-1e39"])
def test_a_number_past_float32_is_named_with_its_line(cell: str, tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", f"id,t,x,y\na,1,2,{cell}\na,0,1,1\nb,0,3,4\n")
    good, bad = read(path)
    assert bad == ["/d.csv:2: step 1 holds a number that is not finite as float32"]
    assert [one.id for one in good] == ["b"]


# Any size: in blocks, where the rows of an id stand together.


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (text_files, dataset):
        monkeypatch.setattr(module, "BLOCK_CELLS", 20)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("rows", [ROWS, ROWS[::-1], sorted(ROWS, key=lambda row: row.split(",")[1])])
@pytest.mark.parametrize("wrong", [None, "s3,2,3.2,a\n", "s3,2,3.2\n"])
def test_blocks_give_the_same_records(
    tmp_path: Path, rows: list[str], wrong: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [wrong if wrong and row == ROWS[WRONG] else row for row in rows]
    path = write(tmp_path / "d.csv", "id,t,x,label\n" + "".join(rows))
    good, bad = read(path)
    monkeypatch.setattr(text_files, "BLOCK_CELLS", 1000)
    whole, others = read(path)
    assert [(one.id, one.label, one.source_line, one.steps.tobytes()) for one in good] == [
        (one.id, one.label, one.source_line, one.steps.tobytes()) for one in whole
    ]
    assert bad == others
    assert len(bad) == (wrong is not None)


@pytest.mark.usefixtures("small_blocks")
def test_a_block_ends_where_an_id_does(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", table())
    assert [len(block.lines) for block in text_files.read_csv(path, id_of=lambda _: "id")] == [8, 8, 8]
    assert [len(block.lines) for block in text_files.read_csv(path)] == [24]
    said: list[str] = []
    apart = write(tmp_path / "a.csv", table() + "s0,9,1,a\n")
    assert [len(block.lines) for block in text_files.read_csv(apart, id_of=lambda _: "id", warn=said.append)] == [25]
    assert said == [
        f"{apart}: the rows of one 'id' do not stand together, so the whole table is held in memory, many "
        "times the size of the file: sort it by 'id'"
    ]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("more", ["", "s0,9,1,a\n"], ids=["together", "apart"])
def test_a_large_table_that_is_not_sorted_by_its_id_is_warned_of(tmp_path: Path, more: str) -> None:
    said: list[str] = []
    path = write(tmp_path / "d.csv", table() + more)
    assert len([*dataset.entries(path, reading=dataset.Reading(per_step=False, warn=said.append))]) == 6
    assert sum("sort it by 'id'" in line for line in said) == bool(more)


@pytest.mark.parametrize("words", [("go", "stop"), ("go", "?")], ids=["words", "some missing"])
def test_a_column_of_words_may_be_the_label(tmp_path: Path, words: tuple[str, str]) -> None:
    rows = "".join(f"s{n},{t},0.{t},{words[n % 2]}\n" for n in range(4) for t in range(3))
    path = write(tmp_path / "d.csv", f"id,t,x,way\n{rows}")
    with pytest.raises(ConfigurationError) as told:
        read(path)
    assert (
        "the column 'way' holds 'go', a str, and no numbers: say which columns are the features (values); if it is the "
        "label, say label='way' (--column label=way)"
    ) in str(told.value)
    assert read(path, label="way")[0][0].label == "go"
    with pytest.raises(ConfigurationError, match="--column label=way"):
        lengthwise.sequences(pandas.read_csv(path))


@pytest.mark.usefixtures("small_blocks")
def test_short_sequences_at_the_end_of_a_file_are_no_row_numbers(tmp_path: Path) -> None:
    rows = [*(f"a,{t}\n" for t in range(6)), "b,0\n", "c,1\n"]
    good, _ = read(write(tmp_path / "d.csv", "id,x\n" + "".join(rows)))
    assert [one.id for one in good] == ["a", "b", "c"]


@pytest.mark.usefixtures("small_blocks")
def test_progress_of_a_table_is_told(tmp_path: Path) -> None:
    shares: list[float] = []
    path = write(tmp_path / "d.csv", "id,x\n" + "".join(f"{i},0\n{i},1\n" for i in range(300)))
    assert sum(1 for _ in dataset.entries(path, advance=shares.append)) == 300
    assert shares[-1] == 1.0


@pytest.mark.long
def test_a_long_table_is_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "BLOCK_CELLS", 2500)
    path = write(tmp_path / "d.csv", "id,t,x,y,z\n" + "".join(f"{i // 50},{i},1.5,2.5,3.5\n" for i in range(20_000)))
    tracemalloc.start()
    try:
        assert sum(1 for _ in dataset.entries(path, reading=Reading(per_step=False))) == 400
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * path.stat().st_size  # 20 times as much in one block


# Forms.


def test_a_file_of_the_ucr_archive_has_a_sequence_in_each_row(tmp_path: Path) -> None:
    text = "1\t0.5\t0.25\t0.125\n-1\t0.5\tNaN\tNaN\n"
    good, _ = read(write(tmp_path / "Gun_TRAIN.tsv", text))
    assert [(one.label, one.steps[:, 0].tolist()) for one in good] == [("1", [0.5, 0.25, 0.125]), ("-1", [0.5])]
    other = write(tmp_path / "gun.tsv", text)
    with pytest.raises(ConfigurationError, match="row=sequence"):
        read(other)
    assert len(read(other, row="sequence", label="column 1")[0]) == 2


@pytest.mark.parametrize("text", ["id;x\na;0,5\na;1,5\n", 'id,x\na,"0,5"\na,"1,5"\n'], ids=["semicolons", "quoted"])
def test_what_is_said_of_decimal_commas_converts_the_file(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "d.csv", text)
    advice = read(path)[1][0].split("a decimal comma? ")[1].split(" writes")[0]
    eval(advice, {"pandas": pandas, "FILE": path, "NEW": tmp_path / "new.csv"})
    assert read(tmp_path / "new.csv")[0][0].steps.tolist() == [[0.5], [1.5]]


@pytest.mark.parametrize("name", ["data.jsonl", "data.ts"])
@pytest.mark.parametrize(
    "columns", [ColumnNames(id="run"), ColumnNames(values=("x", "y")), ColumnNames(row="sequence")]
)
def test_names_of_columns_that_a_file_without_columns_ignores_are_warned_of(
    tmp_path: Path, name: str, columns: ColumnNames
) -> None:
    content = {"data.jsonl": '{"steps": [[1.0]]}\n', "data.ts": "@classLabel true a\n@data\n1.0,2.0:a\n"}
    file = write(tmp_path / name, content[name])
    warnings: list[str] = []
    assert len([*dataset.read(file, "values", Reading(columns, warn=warnings.append))]) == 1
    assert warnings == [f"{file}: --column is ignored: it names columns of a table, and this file has none"]


def test_names_that_are_used_or_come_from_a_training_are_not_warned_of(tmp_path: Path) -> None:
    folder = tmp_path / "runs.ts"  # a folder, whatever its name
    folder.mkdir()
    write(folder / "a.csv", "when,x\n0,1\n1,2\n")
    lines = write(tmp_path / "data.jsonl", '{"steps": [[1.0]]}\n')
    warnings: list[str] = []
    for file, columns in (
        (folder, ColumnNames(time="when")),
        (lines, ColumnNames(inputs=("x",), row="sequence", defaults={"row": "sequence", "label": "class"})),
    ):
        assert len([*dataset.read(file, "values", Reading(columns, warn=warnings.append))]) == 1
    assert warnings == []


def test_a_list_as_text_in_a_file_is_told_so(tmp_path: Path) -> None:
    _, bad = read(write(tmp_path / "d.csv", 'id,x\na,"[1, 2]"\na,3\n'))
    assert bad[0].endswith("is not a number; if it is a list that was written as text, write lists of numbers")


def test_a_wide_table_is_read_where_it_is_said_or_clear(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "id,label,t0,t1,t2\na,u,1,2,3\nb,v,4,,\n")
    good, _ = read(path)
    assert [(one.id, one.label, one.steps[:, 0].tolist()) for one in good] == [("a", "u", [1, 2, 3]), ("b", "v", [4])]
    other = write(tmp_path / "o.csv", "who,0,1,2\na,1,2,3\nb,4,oops,\nc,,,\n")
    good, bad = read(other, id="who", row="sequence")
    assert [one.id for one in good] == ["a"]
    assert [line.partition(": ")[2] for line in bad] == [
        "'oops' in the column '1' is not a number",
        "a sequence has at least one step",
    ]
    tokens, _ = read(write(tmp_path / "t.csv", "id,t0,t1,t2\na,7,2,3\nb,4,,\n"), "tokens")
    assert [one.steps.tolist() for one in tokens] == [[7, 2, 3], [4]]


def test_a_folder_has_a_file_for_each_sequence_and_folders_for_labels(tmp_path: Path) -> None:
    folder = tmp_path / "walks"
    for name, text in {
        "up/a.csv": "t,x\n1,5\n0,4\n",
        "down/b.csv.gz": "",
        "c.csv": "x,label\n1,said\n2,said\n",
        "up/notes.txt": "no data",
    }.items():
        write(folder / name, gzip.compress(b"x\n7\n") if name.endswith("gz") else text)
    good, _ = read(folder)
    assert [(one.id, one.label, one.steps[:, 0].tolist()) for one in good] == [
        ("c", "said", [1, 2]),
        ("down/b", "down", [7]),
        ("up/a", "up", [4, 5]),
    ]
    write(folder / "down/d.csv", "x\n1,2\n")
    assert read(folder)[1] == ["/walks/down/d.csv:2: 2 columns, and the first line has 1"]
    assert dataset.locate(str(folder)) == folder
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="a file for each sequence"):
        read(tmp_path / "empty")


NO_CLASSES = ["train", "TEST", "X_train", "XTest", "valid-2", "labels", "y", "data", "images", "fold_1", "test data"]


@pytest.mark.parametrize("name", [*NO_CLASSES, "party", "1", "x-ray", "trained"])
def test_the_folder_of_a_split_or_a_role_is_no_class(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "walks"
    write(folder / name / "a.csv", "x\n5\n4\n")
    write(folder / "train" / "up" / "b.csv", "x\n7\n8\n")
    warnings: list[str] = []
    found = [*dataset.entries(folder, reading=Reading(warn=warnings.append))]
    labels = {one.id: one.label for one in found if isinstance(one, Record)}
    assert labels == {f"{name}/a": None if name in NO_CLASSES else name, "train/up/b": "up"}
    said = "".join(warnings)
    assert (f"{name!r}: no class has such a name" in said) == (f"{folder}/train/CLASS/" in said) == (name in NO_CLASSES)
    assert ("are read as one" in said) == (name in NO_CLASSES and name != "train")


@pytest.mark.parametrize("names", [["bus", "walk", "train"], ["train", "test"], ["train/up", "test/up", "labels"]])
def test_a_class_that_is_called_like_a_split_may_be_renamed(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        write(tmp_path / "walks" / name / "a.csv", "x\n5\n4\n")
    warnings: list[str] = []
    assert len([*dataset.entries(tmp_path / "walks", reading=Reading(warn=warnings.append))]) == len(names)
    advice = "rename the folder (such as train_class) if it is a class"
    assert (advice in "".join(warnings)) == ("bus" in names)


@pytest.mark.usefixtures("small_blocks")
def test_the_first_block_decides_which_columns_are_features(tmp_path: Path) -> None:
    rows = [f"s{n},{t},{20 + t % 2 + (n == 0) / 2}" for n in range(3) for t in range(8)]
    path = write(tmp_path / "d.csv", "id,t,target_temp\n" + "\n".join(rows))
    good, bad = read(path)
    assert [len(one.steps) for one in good] == [8, 8, 8]
    assert bad == []


def test_a_folder_of_files_with_one_row_is_named(tmp_path: Path) -> None:
    for place in range(2):
        write(tmp_path / f"features/{place}.csv", "1\n2\n3\n")
        write(tmp_path / f"labels/{place}.csv", f"{place}\n")
    warnings: list[str] = []
    assert not any(
        one.label for one in dataset.entries(tmp_path, reading=Reading(warn=warnings.append)) if isinstance(one, Record)
    )
    assert any("'labels': every file in it has one row" in line and "features" not in line for line in warnings)


def test_an_empty_cell_among_the_labels_of_a_sequence_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", table(row14="s3,2,3.2,\n"))
    assert read(path)[1][0].startswith("/d.csv:16: sequence 's3' has no label, and 'b' in its other rows: correct it")
    assert len(read(path, per_step=None)[0]) == 6  # where nothing is trained or compared
    without = write(tmp_path / "e.csv", table(row14="s3,2,,\n"))  # a row without any value may be padding
    assert not read(without)[1]
    good, _ = read(path, per_step=True)
    assert good[3].label == ("b", "b", None, "b")


@pytest.mark.parametrize(("label", "said"), [('""', "null is no label"), ('["a", ""]', "null is no label")])
def test_a_label_that_is_an_empty_text_is_refused(tmp_path: Path, label: str, said: str) -> None:
    path = write(tmp_path / "d.jsonl", f'{{"steps": [[1], [2]], "label": {label}}}\n')
    assert said in read(path)[1][0]


def test_minus_100_among_the_labels_of_steps_is_no_label(tmp_path: Path) -> None:
    lines = [
        '{"steps": [[1], [2]], "label": [-100, 5]}',
        '{"steps": [[1]], "label": [null]}',
        '{"steps": [[1]], "label": -100}',
    ]
    path = write(tmp_path / "d.jsonl", "\n".join(lines))
    warnings: list[str] = []
    found = [*dataset.entries(path, reading=Reading(warn=warnings.append))]
    assert [(one.label, one.has_label) for one in found if isinstance(one, Record)] == [
        ((None, "5"), True),
        ((None,), False),
        ("-100", True),  # of a sequence, it is a class
    ]
    assert len(warnings) == 1
    assert warnings[0].startswith("-100 among the labels of steps is taken as no label")


def test_ids_that_became_floats_are_whole_numbers(tmp_path: Path) -> None:
    said: list[str] = []
    path = write(tmp_path / "d.csv", "id,x\n1.0,5\n1.0,6\n12.0,7\n")
    found = [*dataset.entries(path, reading=Reading(say=said.append))]
    assert [one.id for one in found] == ["1", "12"]
    assert said == [f"{path}: id 'id', feature 'x'; ids such as 1.0 are read as 1; 2 sequences"]
    versions = write(tmp_path / "v.csv", "id,x\n1.0,5\n1.0,6\n1.1,7\n")
    assert [one.id for one in read(versions)[0]] == ["1.0", "1.1"]


def test_lists_in_the_cells_of_parquet_are_sequences(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    columns: dict[str, Any] = {
        "id": ["p", "q"],
        "a": [[1.0, 2.0], [3.0]],
        "b": [[4.0, 5.0], [6.0, 7.0]],
        "label": ["u", "v"],
    }
    pyarrow.parquet.write_table(pa.table(columns), path)
    good, bad = read(path)
    assert [(one.id, one.label, one.steps.tolist()) for one in good] == [("p", "u", [[1, 4], [2, 5]])]
    assert bad == ["/d.parquet:row 2: 'b' has 2 values in its list, and 'a' 1"]
    pyarrow.parquet.write_table(pa.table({"rec": ["p"], "signal": [[[1.0], [2.0]]], "who": ["u"]}), path)
    assert [(one.id, one.label) for one in read(path, id="rec", label="who")[0]] == [("p", "u")]
    pyarrow.parquet.write_table(pa.table({"id": ["p"], "steps": ["[[1.0]]"]}), path)
    with pytest.raises(ConfigurationError, match="written as text, write lists"):
        read(path)
    pyarrow.parquet.write_table(pa.table({"id": ["p", "p"], "steps": [10.0, 20.0]}), path)
    assert [one.steps.tolist() for one in read(path)[0]] == [[[10], [20]]]


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        *(("d.npz", "numpy.load"), ("d.npy", "numpy.load"), ("d.xlsx", "pandas.read_excel"), ("D.XLS", "read_excel")),
        *(
            ("d.pkl", "pandas.read_pickle"),
            ("d.h5", "pandas.read_hdf"),
            ("d.json", "jq"),
            ("d.feather", "read_feather"),
            ("d.npz", "allow_pickle=True, which runs code of the file"),
            ("d.nc", "xarray.open_dataset"),
            ("d.avro", "fastavro.reader"),
            ("d.ark", "kaldiio.load_ark"),
            ("d.edf", "mne.io.read_raw"),
            ("d.tfrecord", "sequence_loader"),
        ),
    ],
)
def test_another_format_is_told_the_lines_that_convert_it(tmp_path: Path, name: str, cure: str) -> None:
    with pytest.raises(ConfigurationError, match=cure):
        read(write(tmp_path / name, "x"))


def test_the_lines_for_ragged_arrays_need_no_pickle_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ragged = np.empty(2, dtype=object)
    ragged[:] = [np.ones((3, 2)), np.zeros((1, 2))]
    np.savez("d.npz", X=ragged)
    with pytest.raises(ConfigurationError) as told:
        read(tmp_path / "d.npz")
    names = {"numpy": np, "FILE": "d.npz", "NEW": "new.npz"}
    exec(re.search(r"numpy\.savez\(.*?\['X'\]\)", str(told.value))[0], names)  # type: ignore[index]
    with np.load("new.npz") as data:
        assert [data[name].shape for name in data.files] == [(3, 2), (1, 2)]


@pytest.mark.process
@pytest.mark.skipif(shutil.which("jq") is None, reason="there is no jq")  # what users type, no dependency
@pytest.mark.parametrize(
    ("name", "content", "which"),
    [
        ("FILE.json", '[{"steps": [[1, 2], [3, 4]]}]', 0),
        ("FILE.json", "[[[1, 2], [3, 4]]]", 0),
        ("FILE.json", '{"model": "m", "sequences": [{"steps": [[1, 2], [3, 4]]}]}', 0),
        ("FILE.json", '{"model": "m", "sequences": [[[1, 2], [3, 4]]]}', 0),
        ("FILE.jsonl", '[\n{"steps": [[1, 2], [3, 4]]}\n]', 0),
        ("FILE.jsonl", "[[1, 2], [3, 4]]", 1),
    ],
)
def test_the_lines_that_convert_json_do_so(tmp_path: Path, name: str, content: str, which: int) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(ConfigurationError) as told:
        read(path)
    command = re.findall("jq -c '.*?' FILE", str(told.value))[which]
    program = f"{command.removesuffix('FILE')}{name} > DATA.jsonl"
    subprocess.run(program, shell=True, cwd=tmp_path, check=True)
    (record,) = read(tmp_path / "DATA.jsonl")[0]
    assert record.steps.tolist() == [[1, 2], [3, 4]]


# Encodings.


@pytest.mark.parametrize(
    ("content", "said"),
    [
        *((codecs.BOM_UTF16_LE + b"i\0", "UTF-16"), (table().encode("utf-16-le"), "UTF-16")),
        *((table().encode("utf-16-be"), "iconv -f UTF-16"), (table().encode("utf-16"), "iconv -f UTF-16")),
        *((b"PK\x03\x04 and more", "Excel"), (b"\xd0\xcf\x11\xe0 and more", "Excel")),
        *((gzip.compress(b"id,x\n"), "gzip: let its name end in .gz"), (b"PAR1", "let its name end in .parquet")),
        (bytes(range(256)), "no text"),
    ],
    ids=["BOM", "LE", "BE", "UTF-16", "xlsx", "xls", "gzip", "parquet", "binary"],
)
@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "d.jsonl", "d.ts"])
def test_what_is_no_text_is_named_with_the_cure(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    with pytest.raises(ConfigurationError) as told:
        read(write(tmp_path / name, content))
    assert said in str(told.value)


def test_latin_1_and_decimal_commas_are_named_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="iconv -f WINDOWS-1252"):
        read(write(tmp_path / "d.csv", "id,größe\na,1\n".encode("latin-1")))
    _, bad = read(write(tmp_path / "c.csv", "id;t;x\na;0;-0,013\na;1;0,5\n"))
    assert "a decimal comma" in bad[0]
    assert "decimal=','" in bad[0]
    assert read(write(tmp_path / "b.csv", codecs.BOM_UTF8 + table().encode()))[1] == []


def test_a_first_line_of_data_is_named(tmp_path: Path) -> None:
    for text in ("s00,0,-0.013\ns00,1,0.5\n", "s00,0,0\ns00,1,0.5\n"):
        with pytest.raises(ConfigurationError, match="the first line looks like data"):
            read(write(tmp_path / "d.csv", text))


@pytest.mark.parametrize("blank", ["\x1c", "\x1f", "\x85", "\xa0", "\u2003", "\u2028", "\u3000", "\x0b \t"])
def test_a_line_is_blank_in_the_sense_of_text_too(tmp_path: Path, blank: str) -> None:
    series = f"@classLabel true a\n{blank}\n@data\n{blank}\n1,2:a\n {blank} \n3:a\n"
    assert [len(one.steps) for one in read(write(tmp_path / "d.ts", series))[0]] == [2, 1]
    line = '{"steps": [[1]]}\n'
    assert len(read(write(tmp_path / "d.jsonl", f"{line}{blank}\n{line}"))[0]) == 2
    good, bad = read(write(tmp_path / "d.csv", f"{table()}{blank}\ns9,0,1,a\n"))
    assert (len(good), bad) == (7, [])
    with pytest.raises(ConfigurationError, match=r"d\.ts:3: "):
        read(write(tmp_path / "d.ts", f"{blank}\n{blank}\nno tag\n"))


# Time grows with the size of a file, and not faster.

LINEAR: dict[str, Callable[[int], str | bytes]] = {
    "columns.csv": lambda size: (
        ",".join(["id", *(f"x{i}" for i in range(size))]) + "\n" + ("a" + ",1" * size + "\n") * 2
    ),
    "rows.csv": lambda size: "id,t,x\n" + "".join(f"{i // 5},{i},1\n" for i in range(size)),
    "wide.csv": lambda size: ",".join(["id", *(f"t{i}" for i in range(size))]) + "\n" + ("a" + ",1" * size + "\n"),
    "steps.jsonl": lambda size: '{"steps": [' + ",".join(["[1, null]"] * size) + "]}\n",
    "odd.jsonl": lambda size: '{"steps" : [' + ",".join(["[1e0 , 2]"] * size) + '], "label": ["a", "b"]}\n',
    "lines.jsonl": lambda size: '{"steps": [[1]]}\n' * size,
    "labels.jsonl": lambda size: '{"steps": [[1]], "label": [' + ",".join(['"a"'] * size) + "]}\n",
    "steps.ts": lambda size: "@classLabel true a\n@data\n" + ",".join(["1"] * size) + ":a\n",
    "channels.ts": lambda size: "@classLabel true a\n@data\n" + "1,2:" * size + "a\n",
    "lines.ts": lambda size: "@classLabel true a\n@data\n" + "1,2:a\n" * size,
}


@pytest.mark.long
@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", LINEAR)
def test_each_reader_takes_time_in_proportion_to_its_file(tmp_path: Path, name: str) -> None:
    def seconds(size: int) -> float:
        path = write(tmp_path / name, LINEAR[name](size))
        began = time.process_time()
        sum(1 for _ in dataset.entries(path, reading=Reading(per_step=False)))
        return time.process_time() - began

    seconds(100)  # what is imported and compiled once
    assert any(seconds(16_000) < 24 * max(seconds(2_000), 1e-3) for _ in range(5))  # 8 times the size; its square: 64


def test_many_columns_that_are_named_take_time_in_proportion(tmp_path: Path) -> None:
    def seconds(size: int) -> float:
        names = tuple(f"x{i}" for i in range(size))
        path = write(tmp_path / "d.csv", ",".join(["id", *names]) + "\n" + ("a" + ",1" * size + "\n") * 2)
        began = time.process_time()
        assert read(path, values=names)[0][0].steps.shape == (2, size)
        return time.process_time() - began

    seconds(100)
    assert any(seconds(16_000) < 24 * max(seconds(2_000), 1e-3) for _ in range(5))


@pytest.mark.long
def test_parquet_takes_time_in_proportion(tmp_path: Path) -> None:
    def seconds(size: int) -> float:
        path = tmp_path / "d.parquet"
        lists: list[Any] = [np.ones(3).tolist()] * size
        pyarrow.parquet.write_table(pa.table({"a": lists, "b": [[None, 1.0], *lists[1:]]}), path)
        began = time.process_time()
        assert sum(1 for _ in dataset.entries(path)) == size
        return time.process_time() - began

    seconds(100)
    assert any(seconds(16_000) < 24 * max(seconds(2_000), 1e-3) for _ in range(5))


def test_keys_and_golden_sequences_take_time_in_proportion(tmp_path: Path) -> None:
    described = manifest(max_length=2)

    def keys(size: int) -> object:
        return Keys(write(tmp_path / "keys", "".join(f"team-{place}: {place:040}\n" for place in range(size))))

    def sequences(size: int) -> object:
        steps, logits = np.ones((2, 2), dtype=np.float32), np.ones(described.classes, dtype=np.float32)
        Golden((steps,) * size, (logits,) * size).write(tmp_path / "golden.npz")
        return Golden.read(tmp_path / "golden.npz", described)

    def seconds(reading: Callable[[int], object], size: int) -> float:
        began = time.process_time()
        reading(size)
        return time.process_time() - began

    for reading in (keys, sequences):
        reading(100)
        assert any(seconds(reading, 16_000) < 24 * max(seconds(reading, 2_000), 1e-3) for _ in range(5)), reading
