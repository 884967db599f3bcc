"""Files that the console reads: every format, every limit, and what enemies and broken clients send."""

import asyncio
import errno
import gzip
import json
import os
import re
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lengthwise.console import file_reader, uploads
from lengthwise.errors import ConfigurationError
from lengthwise.repository import modest
from tests.support import proc
from tests.support.numpy_models import Service, manifest, model, serving

pytestmark = pytest.mark.process

MANY = 10_000_000


def read(tmp_path: Path, name: str, content: str, kind: Any = "values", most: int = MANY) -> dict[str, Any]:
    path = tmp_path / name
    path.write_text(content)
    found = file_reader.read(path, kind, most)
    return {**found, "sequences": [{**each, "steps": each["steps"].tolist()} for each in found["sequences"]]}


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("1,2\n3,4.5\n", "values", [("0", None, [[1, 2], [3, 4.5]])]),
        (
            "id;x;label;y\na;1;up;2\na;3;up;4\nb;5;down;6\n",
            "values",
            [("a", "up", [[1, 2], [3, 4]]), ("b", "down", [[5, 6]])],
        ),
        ("\ufeffx,y\n1,\n,4\n", "values", [("0", None, [[1.0, np.nan], [np.nan, 4.0]])]),
        ("4\n5\n", "tokens", [("0", None, [4, 5])]),
    ],
    ids=["numbers", "ids and labels", "empty cells", "tokens"],
)
def test_a_csv_file_is_read(tmp_path: Path, text: str, kind: str, expected: list[Any]) -> None:
    found = [(each["id"], each["label"], each["steps"]) for each in read(tmp_path, "a.csv", text, kind)["sequences"]]
    assert [one[:2] for one in found] == [one[:2] for one in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one[2], other[2])


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("x,y\n1,2\n3,zwei\n", "values", ":3: 'zwei' in the column 'y' is not a number"),
        ("x,y\n1,2\n3\n", "values", ":3: 1 columns"),
        ("x,y\n1,2\n3,4,5\n", "values", ":3: 3 columns, and the first line has 2"),
        ("x,label\n1,a\n2\n", "values", ":3: 1 columns"),
        ("x,label\n1\n2,a\n", "values", ":2: 1 columns"),
        ("x\n1e99\n", "values", "not finite"),
        *((f"token\n{text}\n", "tokens", "not a token") for text in ("inf", "1e30", "1.5", "-1", "\n?")),
    ],
)
def test_a_wrong_line_of_a_csv_file_is_told(tmp_path: Path, text: str, kind: str, said: str) -> None:
    found = read(tmp_path, "a.csv", text, kind)
    assert found["sequences"] == []
    assert said in found["problems"][0]


@pytest.mark.parametrize("text", ["", "\n\n", "id\na\n"])
def test_a_csv_file_without_values_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError):
        read(tmp_path, "a.csv", text)


def test_of_a_file_with_too_many_values_the_first_sequences_are_read(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"id": str(i), "steps": [[1, 2]] * 3}) for i in range(5))
    found = read(tmp_path, "a.jsonl", lines, most=13)
    assert [each["id"] for each in found["sequences"]] == ["0", "1"]
    assert found["left_out"] == 3


def test_long_ids_are_cut_and_labels_are_whole_each_by_itself(tmp_path: Path) -> None:
    labels = ["walk, fast", "l" * 500, *["rest"] * 200]
    lines = json.dumps({"id": "i" * 5000, "steps": [[1]] * 202, "label": labels})
    (one,) = read(tmp_path, "a.jsonl", lines)["sequences"]
    assert len(one["id"]) == file_reader.MOST_CHARACTERS
    assert list(one["label"]) == labels


def test_labels_of_steps_in_a_table_are_an_array_too(tmp_path: Path) -> None:
    rows = "".join(f'a,{2 * pair},"walk, fast"\na,{2 * pair + 1},rest\n' for pair in range(50))
    (one,) = read(tmp_path, "a.csv", f"id,x,label\n{rows}")["sequences"]
    assert list(one["label"]) == ["walk, fast", "rest"] * 50


def test_labels_count_as_values_by_their_length(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"id": str(i), "steps": [[1, 2]] * 3, "label": "l" * 118}) for i in range(5))
    found = read(tmp_path, "a.jsonl", lines, most=2 * (6 + 10))
    assert [each["id"] for each in found["sequences"]] == ["0", "1"]
    assert found["left_out"] == 3


async def upload(service: Service, name: str, content: bytes, kind: str = "values", **headers: str) -> Any:
    sent = {key.replace("_", "-"): text for key, text in headers.items()}
    return await service.client.post(
        "/console/sequences", params={"name": name, "kind": kind}, content=content, headers=sent
    )


async def test_each_format_is_read_over_http(service: Service, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="the extra parquet")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"id": "a", "label": "up", "steps": [[1.0, 2.0], [3.0, None]]}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    lines = json.dumps(rows[0]).encode()
    files = {
        "a.csv": b"id,x,y,label\na,1,2,up\na,3,,up\n",
        "a.jsonl": lines,
        "a.jsonl.gz": gzip.compress(lines),
        "A.Parquet": (tmp_path / "a.parquet").read_bytes(),
    }
    for name, content in files.items():
        answer = await upload(service, name, content)
        assert answer.status_code == 200, answer.text
        assert answer.json()["sequences"] == [{"id": "a", "label": "up", "steps": [[1, 2], [3, None]]}], name
    series = await upload(service, "a.ts", b"@classLabel true up\n@data\n1,3:2,?:up\n")
    assert series.json()["sequences"] == [{"id": "0", "label": "up", "steps": [[1, 2], [3, None]]}]
    assert service.serving.inflight.bytes == 0


@pytest.mark.long
async def test_what_cannot_be_read_is_told_and_leaves_nothing_behind() -> None:
    async with serving(model(manifest()), max_body_bytes=4096) as service:
        for name, content, status, said in [
            ("a.exe", b"x", 415, ".parquet"),
            ("", b"x", 415, ".csv"),
            ("../../etc/passwd", b"x", 415, ".csv"),
            ("a.csv", b"x" * 5000, 413, "4096"),
            ("a.csv", b"\xff\xfe\x00", 422, "upload.csv: not UTF-8"),
            ("a.ts", b"no header", 422, "upload.ts:1"),
            ("a.parquet", b"PAR1 is not enough", 422, "cannot be read as Parquet"),
            ("a.jsonl.gz", b"not gzip", 422, "cannot be read"),
        ]:
            answer = await upload(service, name, content)
            assert answer.status_code == status, answer.text
            assert said in answer.text
            assert "/tmp" not in answer.text
        wrong = (await upload(service, "a.jsonl", b'{"steps": [[1, 2]]}\n{"step": [1]}\n')).json()
        assert (len(wrong["sequences"]), len(wrong["problems"])) == (1, 1)
        assert wrong["problems"][0].startswith("upload.jsonl:2: ")
        assert service.serving.inflight.bytes == 0


async def test_a_file_that_takes_too_long_is_given_up(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "READ_SECONDS", 0.01)
    answer = await upload(service, "a.csv", b"1,2\n")
    assert answer.status_code == 504
    assert service.serving.inflight.bytes == 0


async def test_without_pyarrow_a_parquet_file_is_refused_with_what_brings_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "find_spec", lambda _: None)
    answer = await upload(service, "a.parquet", b"PAR1")
    assert answer.status_code == 415
    assert "lengthwise[parquet]" in answer.json()["detail"]


@pytest.mark.parametrize("kind", ["", "text", "values\0", "x" * 9000])
async def test_a_kind_of_steps_that_is_none_is_refused(service: Service, kind: str) -> None:
    answer = await upload(service, "a.csv", b"1,2\n", kind)
    assert answer.status_code == 422
    assert answer.json()["detail"] == "query parameter kind: must be values or tokens"


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("place", "found", "said"),
    [
        ("pathlib.Path.write_bytes", full, "the server cannot store the file: No space left on device"),
        ("asyncio.create_subprocess_exec", full, "the server cannot start a process for the file: "),
        ("lengthwise.repository.modest.memory_left_bytes", lambda: modest.LEAST_BYTES, ""),
    ],
)
async def test_without_disk_processes_or_memory_a_file_is_refused_for_now(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, found: Any, said: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(place, found)
    answer = await upload(service, "a.csv", b"1,2\n")
    assert (answer.status_code, "retry-after" in answer.headers) == (503, not said)
    assert answer.json()["detail"].startswith(said)
    assert service.serving.inflight.bytes == 0
    assert not list(tmp_path.iterdir())


async def test_a_file_waits_for_those_before_it_a_bounded_time(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, ended = asyncio.Event(), asyncio.Event()

    async def read_until_it_ends(*_: object, **__: object) -> bytes:
        reading.set()
        await ended.wait()
        return b"{}"

    monkeypatch.setattr(uploads, "read_in_process", read_until_it_ends)
    monkeypatch.setattr(uploads, "READ_SECONDS", 0.1)
    first = asyncio.create_task(upload(service, "a.csv", b"1,2\n"))
    await reading.wait()
    second = await upload(service, "b.csv", b"1,2\n")
    ended.set()
    assert (second.status_code, (await first).status_code) == (503, 200)
    assert second.json()["detail"] == "other files are being read"
    assert service.serving.inflight.bytes == 0
    assert (await upload(service, "c.csv", b"1,2\n")).status_code == 200


async def test_the_process_gives_way_to_the_service_and_has_limits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    reading = asyncio.ensure_future(uploads.read_in_process(tmp_path / "a.csv", "values"))
    writer = await asyncio.to_thread((tmp_path / "a.csv").open, "wb")  # now it reads
    (child,) = proc.children(os.getpid(), "file_reader")
    about = proc.of(child)
    limits = (about / "limits").read_text()
    assert int((about / "oom_score_adj").read_text()) == 1000
    assert int(proc.fields(child)[16]) == min(19, os.nice(0) + modest.NICER)
    (memory,) = re.findall(r"Max address space +([0-9]+)", limits)
    (seconds,) = re.findall(r"Max cpu time +([0-9]+)", limits)
    assert int(memory) <= 2**30
    assert int(seconds) == uploads.READ_SECONDS
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    writer.close()
    assert not about.exists()


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("rows", [1, 1000])
async def test_a_small_parquet_file_of_millions_of_values_is_refused_unread(
    service: Service, tmp_path: Path, rows: int
) -> None:
    pa = pytest.importorskip("pyarrow", reason="the extra parquet")
    parquet = pytest.importorskip("pyarrow.parquet")
    offsets = np.linspace(0, file_reader.MOST_GROUP_VALUES + 1, rows + 1).astype(np.int32)
    steps = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.zeros(offsets[-1])))
    parquet.write_table(pa.table({"steps": steps}), tmp_path / "a.parquet", compression="zstd")
    content = (tmp_path / "a.parquet").read_bytes()
    assert len(content) < 20_000
    answer = await upload(service, "a.parquet", content)
    assert answer.status_code == 422
    assert "row group 0" in answer.json()["detail"]


@pytest.mark.long
async def test_the_columns_that_a_query_names_are_taken(service: Service) -> None:
    text = b"id,t,x,y,label\na,2,1,10,up\na,1,2,20,up\n"
    found = (await service.client.post("/console/sequences?name=a.csv", content=text)).json()
    asked = "/console/sequences?name=a.csv&values=y&label=x"
    chosen = (await service.client.post(asked, content=text)).json()
    wrong = await service.client.post("/console/sequences?name=a.csv&values=z", content=text)
    taken = {"id": "id", "time": "t", "label": "label", "values": ["x", "y"], "left_out": [], "row": "step"}
    assert found["columns"] == taken
    assert found["sequences"] == [{"id": "a", "label": "up", "steps": [[2, 20], [1, 10]]}]
    assert chosen["columns"]["values"] == ["y"]
    assert [each["steps"] for each in chosen["sequences"]] == [[[20], [10]]]
    assert wrong.status_code == 422
    assert "--values" not in wrong.text


@pytest.mark.long
async def test_padding_that_a_query_names_is_cut_off(service: Service) -> None:
    text = b"id,t,x,label\na,0,1,up\na,1,2,up\na,,,up\n"
    path = "/console/sequences?name=a.csv"
    whole, cut, wrong = [
        await service.client.post(path + end, content=text) for end in ("", "&padding=nan", "&padding=0")
    ]
    assert "line 4 has no time" in whole.json()["errors"][0]["detail"]
    assert [each["steps"] for each in cut.json()["sequences"]] == [[[1], [2]]]
    assert "padding: must be zeros or nan" in wrong.json()["errors"][0]["detail"]


NAMED = manifest(inputs=("x", "y"))


@pytest.mark.sampled(8)
@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz", "parquet"])
@pytest.mark.parametrize("of_model", [False, True])
async def test_a_table_that_names_no_sequences_is_asked_about(suffix: str, of_model: bool, tmp_path: Path) -> None:
    text = "rec,t,x,y\n1,0,1,10\n1,1,2,20\n2,2,3,30\n"
    if suffix == "parquet":
        csv = pytest.importorskip("pyarrow.csv", reason="the extra parquet")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(csv.read_csv(BytesIO(text.encode())), tmp_path / "a.parquet")
        content = (tmp_path / "a.parquet").read_bytes()
    else:
        content = (text.replace(",", "\t") if suffix == "tsv" else text).encode()
        content = gzip.compress(content) if suffix == "csv.gz" else content
    of = "&model=sums&version=1" if of_model else ""
    async with serving(model(NAMED)) as service:

        async def ask(more: str) -> Any:
            return await service.client.post(f"/console/sequences?name=a.{suffix}{of}{more}", content=content)

        refused = await ask("")
        assert refused.status_code == 422
        reason = refused.json()["errors"][0]["detail"]
        assert (
            "no column names the sequence of a row; the columns are 'rec', 't', 'x', 'y': say which one does" in reason
        )
        assert "choose 'none: one sequence'" in reason
        by_id = (await ask("&id=rec&values=x&values=y")).json()
        assert [(one["id"], one["steps"]) for one in by_id["sequences"]] == [
            ("1", [[1, 10], [2, 20]]),
            ("2", [[3, 30]]),
        ]
        (one,) = (await ask("&id=&values=x&values=y")).json()["sequences"]
        assert one["steps"] == [[1, 10], [2, 20], [3, 30]]


@pytest.mark.long
async def test_lines_without_a_header_are_one_sequence_as_pasted_ones_are(service: Service) -> None:
    (one,) = (await upload(service, "a.csv", b"1,2\n3,4\n")).json()["sequences"]
    assert one["steps"] == [[1, 2], [3, 4]]
    words = await upload(service, "a.csv", b"1,x\n2,y\n")
    assert (words.status_code, "and no numbers" in words.text) == (422, True)


@pytest.mark.long
async def test_a_table_is_read_by_the_names_of_the_model_that_the_query_names() -> None:
    text = b"id,t,y,note,x\na,1,10,n,1\na,2,20,n,2\n"
    many = manifest(version=2, inputs=tuple(f"{'n' * 100}{place}" for place in range(5000)))
    async with serving(model(NAMED), model(many)) as service:
        path = "/console/sequences?name=a.csv&model=sums&version=1"
        found = (await service.client.post(path, content=text)).json()
        refused = await service.client.post(path, content=text.replace(b",x", b",ex"))
        unknown = await service.client.post(path.replace("sums", "others"), content=text)
        records = b'{"steps": [{"y": 2, "x": 1}]}\n'
        by_name = (await service.client.post(path.replace("csv", "jsonl"), content=records)).json()
        other = await service.client.post("/console/sequences?name=a.csv&model=sums&version=2", content=text)
    assert found["sequences"] == [{"id": "a", "label": None, "steps": [[1, 10], [2, 20]]}]
    assert found["columns"]["left_out"] == ["note"]
    assert (refused.status_code, unknown.status_code) == (422, 404)
    assert "missing: x; did you mean ex?" in refused.json()["errors"][0]["detail"]
    assert by_name["sequences"] == [{"id": "0", "label": None, "steps": [[1, 2]]}]
    assert "and 4992 more" in other.json()["errors"][0]["detail"]


@pytest.mark.long
async def test_objects_in_a_file_are_refused_for_a_model_without_names() -> None:
    async with serving(model(manifest())) as service:
        path = "/console/sequences?name=a.jsonl&model=sums&version=1"
        found = (await service.client.post(path, content=b'{"steps": [{"y": 2, "x": 1}]}\n')).json()
    assert "have no names" in found["problems"][0]
