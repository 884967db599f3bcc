"""The command `score`: a file in, a file out, and the same bits as over HTTP."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from lengthwise.batching.limits import BatchLimits
from lengthwise.commands.cli import main
from lengthwise.commands.score import ScoringRun
from lengthwise.datasets import dataset
from lengthwise.errors import ConfigurationError, RecordError
from lengthwise.padding import PaddedBatch
from lengthwise.repository import loading
from lengthwise.repository.loading import LoadedModel
from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.manifest import Promise
from lengthwise.runtime.session import CPU_LABEL
from lengthwise.scoring import records
from lengthwise.scoring.opened import OpenModel
from lengthwise.scoring.prediction_file import PredictionFile
from lengthwise.scoring.records import Summary
from lengthwise.settings import bundled_models
from tests.support import model_directories, numpy_models

BUNDLED = bundled_models() / "japanese-vowels" / "1"
DEMO = "aeon:JapaneseVowels_TEST"
EXACT = (Promise(provider=CPU_LABEL, bits=True, tolerance=0),)

pytestmark = pytest.mark.process


def call(*arguments: object, model: Path = BUNDLED) -> Result:
    return CliRunner().invoke(main, ["score", *map(str, arguments), "--model", str(model)])


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def small(before: Callable[[PaddedBatch], None] = lambda _: None, **fields: object) -> LoadedModel:
    return numpy_models.model(numpy_models.manifest(promises=EXACT, **fields), before)


def run(
    source: Path,
    out: Path,
    model: LoadedModel,
    *,
    stop: bool = True,
    resume: bool = False,
    said: io.StringIO | None = None,
) -> Summary:
    with PredictionFile(out, resume=resume, exact=True) as scored:
        console = Console(file=said or io.StringIO(), width=200)
        opened = OpenModel(model, BatchLimits(), threads=2)
        return ScoringRun(opened, attention=True, stop=stop).score(source, scored, console, resume=resume)


def numbered(path: Path, count: int = 10) -> Path:
    random = np.random.default_rng(0)
    steps = [random.integers(0, 9, (int(length), 2)).tolist() for length in random.integers(1, 9, count)]
    return write(path, *({"id": f"r{i}", "steps": each, "label": "c"} for i, each in enumerate(steps)))


@pytest.mark.parametrize("count", [3, 60])
def test_the_bad_records_behind_the_one_that_ends_the_run_are_told_too(tmp_path: Path, count: int):
    source, out = numbered(tmp_path / "in.jsonl", count=300), tmp_path / "out.jsonl"
    lines = source.read_text().splitlines()
    bad = [10 + 4 * number for number in range(count)]
    for number in bad:
        lines[number - 1] = '{"steps": [[1, 2, 3]]}'
    lines[bad[2] - 1] = '{"steps": [[1, 2, 3], [1, 2, 3]]}'
    source.write_text("\n".join(lines))
    with pytest.raises(RecordError) as raised:
        run(source, out, small())
    told = str(raised.value).splitlines()
    if count == 3:
        assert [said.split(": ")[0] for said in told] == [f"{source}:{number}" for number in bad]
        assert told[2].endswith("this one has 3; is it transposed? (--channels-first)")
    else:  # one cause is one line
        assert [said.split(": ")[0] for said in told] == [f"{source}:{bad[0]}"]
        assert f"{count - 1} more like it: {bad[1]}, {bad[2]}" in told[0]
    assert len(read(out)) == 9


async def test_a_file_is_answered_with_the_same_bytes_as_over_http(tmp_path: Path):
    out = tmp_path / "out.jsonl"
    assert call(DEMO, out, "--attention").exit_code == 0
    lines = out.read_bytes().splitlines()
    sequences = [
        {"id": record.id, "steps": record.steps.tolist()} for record in dataset.read(dataset.locate(DEMO), "values")
    ]
    async with numpy_models.serving(loading.load(BUNDLED, BatchLimits())) as service:
        together = await service.predict({"sequences": sequences, "outputs": ["attention"]})
        assert b'"predictions":[' + b",".join(lines) + b"]}" in together.content
        for sequence, line in list(zip(sequences, lines, strict=True))[::37]:
            alone = await service.predict({"sequences": [sequence], "outputs": ["attention"]})
            assert b"[" + line + b"]" in alone.content


@pytest.mark.parametrize(
    "fields",
    [
        {"task": "per-step"},
        {"task": "multi-label"},
        {"vocabulary": 10},
        {"features": 1, "missing": "zero"},
        {"long": "head", "max_length": 3},
        {"long": "tail", "max_length": 3, "task": "per-step"},
        {"long": "window", "max_length": 3},
        {"long": "window", "max_length": 3, "task": "per-step", "missing": "mean"},
    ],
    ids=str,
)
async def test_every_kind_of_model_and_policy_answers_as_over_http(tmp_path: Path, fields: dict[str, object]):
    model = small(**fields)
    random = np.random.default_rng(0)
    sequences = []
    for number, length in enumerate((1, 8, 3, 5, 4)):
        shape = (length,) if "vocabulary" in fields else (length, model.manifest.input.features)
        steps = random.integers(0, 9, shape).tolist()
        if model.manifest.missing != "refuse":
            steps[-1][0] = None
        sequences.append({"id": f"r{number}", "steps": steps})
    run(write(tmp_path / "in.jsonl", *sequences), tmp_path / "out", model)
    async with numpy_models.serving(model) as service:
        answer = await service.predict({"sequences": sequences, "outputs": ["attention"]})
    assert answer.status_code == 200
    assert b'"predictions":[' + b",".join((tmp_path / "out").read_bytes().splitlines()) + b"]}" in answer.content


def test_lines_do_not_depend_on_threads_or_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lengthwise.commands.score.available_cores", lambda: 1)
    assert call(DEMO, tmp_path / "one").exit_code == 0
    monkeypatch.setattr(records, "CHUNK_RECORDS", 7)
    monkeypatch.setattr("lengthwise.commands.score.available_cores", lambda: 2)
    assert call(DEMO, tmp_path / "two").exit_code == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_summary_comes_as_json(tmp_path: Path):
    found = json.loads(call(DEMO, tmp_path / "out", "--json").stdout)
    assert (found["records"], found["errors"], found["resumed"], found["answers"]) == (370, 0, 0, 370)
    assert found["accuracy"] >= 0.97


@pytest.mark.long
def test_where_padding_is_computed_there_is_little_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LENGTHWISE_RECURRENT_KERNELS", "false")
    found = json.loads(call(DEMO, tmp_path / "out", "--json").stdout)
    assert found["padding_share"] < 0.25


@pytest.mark.long
@pytest.mark.skipif(not recurrent_kernels.INSTRUCTION_SETS, reason="the kernels cannot run here")
def test_recurrent_layers_run_where_serving_would_run_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    used: list[str] = []
    load = loading.load

    def noted(directory: Path, limits: BatchLimits, **options: Any) -> LoadedModel:
        model = load(directory, limits, **options)
        used.append(model.session.kernels)
        return model

    monkeypatch.setattr(loading, "load", noted)
    source = write(tmp_path / "in.jsonl", {"steps": np.ones((3, 12)).tolist()})
    assert call(source, tmp_path / "a").exit_code == 0
    for kernels in ("false", "true"):
        monkeypatch.setenv("LENGTHWISE_RECURRENT_KERNELS", kernels)
        assert call(source, tmp_path / kernels).exit_code == 0
    own = recurrent_kernels.INSTRUCTION_SETS[0] + recurrent_kernels.POOLING
    onnxruntimes = recurrent_kernels.ONNXRUNTIME
    assert used == [own, onnxruntimes, own]


def test_a_file_without_labels_has_no_accuracy(tmp_path: Path):
    source = write(tmp_path / "in.jsonl", {"steps": [[0.1] * 12]})
    assert "accuracy" not in call(source, tmp_path / "out").stdout


def test_attention_is_written_only_where_it_is_asked_for(tmp_path: Path):
    source = write(tmp_path / "in.jsonl", {"steps": [[0.1] * 12] * 3})
    call(source, tmp_path / "without")
    call(source, tmp_path / "with", "--attention")
    assert "attention" not in read(tmp_path / "without")[0]
    assert len(read(tmp_path / "with")[0]["attention"]) == 3


def test_a_bad_record_ends_the_run_behind_the_lines_of_all_before_it(tmp_path: Path):
    good = {"steps": [[0.1] * 12]}
    source = write(tmp_path / "in.jsonl", good, "", good, {"steps": [[0.1] * 11]}, good)
    result = call(source, tmp_path / "out")
    assert result.exit_code == 2
    assert f"error: {source}:4: the model takes 12 features a step, this one has 11" in result.stderr
    assert f"the predictions so far are in {tmp_path / 'out'}; --resume continues" in result.stderr
    assert [line["id"] for line in read(tmp_path / "out")] == ["0", "1"]
    write(source, good, "", good, good, good)
    assert call(source, tmp_path / "out", "--resume").exit_code == 0
    assert [line["id"] for line in read(tmp_path / "out")] == ["0", "1", "2", "3"]


def test_a_bad_record_that_is_skipped_says_why_in_its_line(tmp_path: Path):
    good = {"id": "a", "steps": [[0.1] * 12]}
    source = write(tmp_path / "in.jsonl", good, "{", {"id": "c", "steps": [[None] * 12]}, {**good, "id": "d"})
    result = call(source, tmp_path / "out", "--on-error", "skip")
    assert result.exit_code == 0
    assert "without an answer: 2 of them" in result.stdout
    first, second, third, fourth = read(tmp_path / "out")
    assert (first["id"], second["id"], third["id"], fourth["id"]) == ("a", "1", "c", "d")
    assert second["error"].startswith(f"{source}:2: ")
    assert third["error"].startswith(f"{source}:3: step 0 lacks a value: the model japanese-vowels/1 refuses missing")
    assert "label" in fourth


def test_an_answer_that_is_not_finite_is_a_bad_record(tmp_path: Path):
    source = write(tmp_path / "in.jsonl", {"steps": [[1, 2]]}, {"steps": [[numpy_models.NOT_FINITE] * 2]})
    with pytest.raises(RecordError):
        run(source, tmp_path / "out", small())
    assert len(read(tmp_path / "out")) == 1


def test_a_run_that_scored_nothing_has_nothing_to_go_on_with(tmp_path: Path):
    result = call(write(tmp_path / "in.jsonl", {"steps": [[1, 2]]}), tmp_path / "out")
    assert result.exit_code == 2
    assert "in.jsonl:1: the model takes 12 features" in result.stderr
    assert "--resume" not in result.stderr


def test_wherever_a_run_was_cut_off_a_resumed_one_ends_up_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(records, "CHUNK_RECORDS", 3)
    source, out = numbered(tmp_path / "in.jsonl"), tmp_path / "out"
    with source.open("a") as file:
        file.write('{"id": "bad", "steps": []}\n{"id": "last", "steps": [[1, 2]], "label": "a"}\n')
    expected = run(source, out, small(), stop=False)
    whole = out.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    for cut in sorted({0, *ends, *(end - 1 for end in ends), *(end + 9 for end in ends[:-1])}):
        out.write_bytes(whole[:cut])
        said = io.StringIO()
        summary = run(source, out, small(), stop=False, resume=True, said=said)
        assert out.read_bytes() == whole
        assert summary.resumed == max(0, whole[:cut].count(b"\n") - 1)
        assert not summary.resumed or f"{summary.resumed} records were scored before" in said.getvalue()
        assert (summary.records, summary.errors) == (expected.records, expected.errors) == (12, 1)
        assert (summary.right, summary.answers) == (expected.right, expected.answers)


def test_a_terminated_command_says_what_stands_and_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    terminated = threading.Event()

    def terminate(_: PaddedBatch) -> None:
        if (tmp_path / "out").stat().st_size and not terminated.is_set():
            terminated.set()
            signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

    monkeypatch.setattr(records, "CHUNK_RECORDS", 2)
    monkeypatch.setattr(loading, "load", lambda *_, **__: small(terminate))
    monkeypatch.setattr("lengthwise.commands.score.available_cores", lambda: 1)
    result = call(numbered(tmp_path / "in.jsonl", 200), tmp_path / "out")
    assert result.exit_code == 130
    left = (tmp_path / "out").read_bytes().count(b"\n")
    assert 0 < left < 200
    assert f"the predictions so far are in {tmp_path / 'out'}; --resume continues after them" in result.stderr


def test_an_interruption_before_the_first_line_promises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(_: PaddedBatch) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "load", lambda *_, **__: small(interrupt))
    result = call(numbered(tmp_path / "in.jsonl"), tmp_path / "out")
    assert result.exit_code == 130
    assert "--resume" not in result.stderr


@pytest.mark.parametrize(
    ("changed", "fields"),
    [
        (lambda lines: [line | {"id": "other"} for line in lines], {}),
        (lambda lines: [line | {"steps": [[0, 9]]} for line in lines], {}),
        (lambda lines: lines[:4], {}),
        (lambda lines: [line | {"label": [line["label"]]} for line in lines], {"task": "multi-label"}),
    ],
    ids=["ids", "steps", "fewer records", "another kind of model"],
)
def test_a_file_of_another_input_or_kind_of_model_is_not_gone_on_with(
    tmp_path: Path, changed: Callable[[list[Any]], list[object]], fields: dict[str, object]
):
    source, out = numbered(tmp_path / "in.jsonl"), tmp_path / "out"
    run(source, out, small())
    before = out.read_bytes()
    write(source, *changed(read(source)))
    with pytest.raises(ConfigurationError):
        run(source, out, small(**fields), resume=True)
    assert out.read_bytes() == before


def test_a_file_that_exists_is_not_overwritten_and_the_message_says_what_to_do(tmp_path: Path):
    source, out = write(tmp_path / "in.jsonl", {"steps": [[0.1] * 12]}), tmp_path / "out"
    assert call(source, out).exit_code == 0
    before = out.read_bytes()
    refused = call(source, out)
    assert refused.exit_code == 2
    assert "--resume continues an interrupted run, and to start again, delete the file first" in refused.stderr
    assert out.read_bytes() == before


def test_a_compressed_output_is_refused(tmp_path: Path):
    result = call(DEMO, tmp_path / "out.jsonl.gz")
    assert (result.exit_code, "compress the file afterwards" in result.stderr) == (2, True)


def test_the_input_is_never_written_to(tmp_path: Path):
    source = numbered(tmp_path / "in.jsonl")
    before = source.read_bytes()
    result = call(source, source)
    assert result.exit_code == 2
    assert "is the input; name another file" in result.stderr
    assert source.read_bytes() == before


def test_a_folder_that_is_no_model_is_answered_with_the_models_in_it(tmp_path: Path):
    result = call(DEMO, tmp_path / "out", model=bundled_models())
    assert result.exit_code == 2
    assert f"name one of {BUNDLED.parent}" in result.stderr
    assert "it has neither manifest.json nor versions" in call(DEMO, tmp_path / "out", model=tmp_path).stderr


def test_a_model_that_fails_its_proof_scores_nothing(tmp_path: Path):
    directory = model_directories.place(tmp_path)
    with (directory / "model.onnx").open("ab") as file:
        file.write(b"\0")
    result = call(DEMO, tmp_path / "out", model=directory)
    assert result.exit_code == 1
    assert "its digest differs" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_model_without_attention_is_not_asked_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading, "load", lambda *_, **__: small(attention=False))
    result = call(DEMO, tmp_path / "out", "--attention")
    assert result.exit_code == 2
    assert "sums/1 has no attention: leave --attention out, or see docs/targets.md" in result.stderr


@pytest.mark.long
def test_scoring_needs_neither_torch_nor_onnx_nor_a_web_server():
    program = (
        "import sys, lengthwise.commands.score; "
        "print([name for name in ('torch', 'onnx', 'fastapi', 'uvicorn', 'starlette') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_a_model_the_ones_that_there_are_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LENGTHWISE_MODELS", raising=False)
    result = CliRunner().invoke(main, ["score", DEMO, str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "Missing option '--model': MODELS/NAME/VERSION, or MODELS/NAME for the highest version" in result.stderr
    assert f"that comes with Lengthwise: {bundled_models() / 'japanese-vowels'}" in result.stderr
    own = tmp_path / "models"
    model_directories.place(own, "gestures", 3)
    monkeypatch.setenv("LENGTHWISE_MODELS", str(own))
    result = CliRunner().invoke(main, ["score", DEMO, str(tmp_path / "out")])
    assert f"of LENGTHWISE_MODELS: {own / 'gestures'}" in result.stderr
    monkeypatch.setenv("LENGTHWISE_MODELS", str(tmp_path / "none"))
    result = CliRunner().invoke(main, ["score", DEMO, str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "Missing option '--model'" in result.stderr


@pytest.mark.long
def test_of_a_model_the_highest_version_scores(tmp_path: Path):
    for version in (2, 10):
        model_directories.place(tmp_path / "models", "vowels", version, timed=True)
    (tmp_path / "models" / "vowels" / "latest").mkdir()
    for folder in (tmp_path / "models" / "vowels", tmp_path / "models" / "vowels" / "10"):
        result = call(DEMO, tmp_path / folder.name, model=folder)
        assert result.exit_code == 0
        assert "by vowels/10" in result.stdout


def test_a_bad_record_of_a_file_whose_name_is_not_utf_8_gets_a_line(tmp_path: Path) -> None:
    source = write(tmp_path / os.fsdecode(b"by\xfftes.jsonl"), {"id": "short", "steps": [[1]]})
    ended = call(source, tmp_path / "out.jsonl", "--on-error", "skip")
    assert ended.exit_code == 0, ended.output
    (line,) = read(tmp_path / "out.jsonl")
    assert line["id"] == "short"
    assert "by\\udcfftes.jsonl:1: " in str(line["error"])


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_file_without_records_is_refused(tmp_path: Path, suffix: str) -> None:
    source = tmp_path / f"data.{suffix}"
    source.write_text("id,a\n" if suffix == "csv" else "")
    ended = call(source, tmp_path / "out.jsonl")
    assert ended.exit_code == 2
    assert re.search("there is no record in it|the table has no row", ended.stderr)


def test_predictions_do_not_go_into_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    ended = call(write(tmp_path / "in.jsonl", {"steps": [[0] * 12]}), tmp_path / "pipe")
    assert ended.exit_code == 2
    assert "pipe cannot be written: it is no plain file" in ended.stderr
