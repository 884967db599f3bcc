"""The command `bench`, end to end against a small server."""

import json
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from lengthwise.bench import plots
from lengthwise.bench.figures import Figures, Latency
from lengthwise.commands.bench import bench, rates_of
from tests.support.small_server import Reply, SmallServer, serving

FEW = ("--request-count", "6", "--concurrency", "2")


def call(*arguments: str, server: SmallServer | None = None) -> Result:
    with serving(server or SmallServer()) as target:
        return CliRunner().invoke(bench, [target.url, *FEW, *arguments], env={"COLUMNS": "200"})


def test_a_bench_prints_a_table_and_ends_well():
    result = call()
    assert result.exit_code == 0, result.output
    assert "2 connections" in result.output
    assert "25.0%" in result.output


def test_the_figures_come_as_json():
    result = call("--json", "--request-rate", "500")
    (load,) = json.loads(result.stdout)["loads"]
    assert load["answers"] == {"200": 6}
    assert load["offered_rate"] == 500
    assert load["wrong"] == 0
    assert set(load["latency_ms"]) == {"p50", "p95", "p99", "p99_9", "mean", "max"}


@pytest.mark.long
def test_a_sweep_has_a_row_a_rate_and_draws_them(tmp_path: Path):
    plot = tmp_path / "plots" / "sweep.png"
    result = call("--json", "--request-rate", "200:400:100", "--plot", str(plot))
    assert [load["offered_rate"] for load in json.loads(result.stdout)["loads"]] == [200, 300, 400]
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("low", "high"), [(40, 80), (2, 900), (0.3, 7)])
def test_the_marks_of_latency_are_plain_numbers(
    low: float, high: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    marks = []

    def save(fill: Callable[[Axes], None], _: Path) -> None:
        figure = Figure()
        axes = figure.subplots()
        fill(axes)
        figure.draw_without_rendering()
        marks.extend(one.get_text() for one in axes.get_yticklabels() + axes.get_yticklabels(minor=True))

    monkeypatch.setattr(plots, "save", save)
    latency = Latency(low, low, high, high, low, high)
    nothing = dict.fromkeys((one.name for one in fields(Figures)), None)
    plots.draw([Figures(**nothing | {"offered_rate": 5.0, "latency_ms": latency})], tmp_path / "p.png", title="")
    assert len([float(mark) for mark in marks if mark]) >= 3


def test_a_plot_that_cannot_be_drawn_is_refused_before_the_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    server = SmallServer()
    result = call("--plot", str(tmp_path / "load.png"), server=server)
    assert (result.exit_code, server.bodies) == (2, [])
    assert "needs matplotlib" in result.stderr


def test_a_wrong_answer_is_exit_code_1():
    def drift(number: int, reply: Reply) -> Reply:
        return Reply(200, reply.body.replace(b"]", b"9]")) if number == 8 else reply

    assert call(server=SmallServer(behave=drift)).exit_code == 1
    assert call("--no-check", server=SmallServer(behave=drift)).exit_code == 0


def test_headers_and_the_models_name_go_with_each_request():
    server = SmallServer()
    call("--header", "authorization=Bearer k=v", "--model", "small", server=server)
    assert {headers["authorization"] for headers in server.headers} == {"Bearer k=v"}
    assert {json.loads(body)["model"] for body in server.bodies} == {"small"}


def test_a_load_may_be_the_sequences_of_a_file(tmp_path: Path):
    file = tmp_path / "data.jsonl"
    file.write_text('{"steps": [[1, null]]}\n{"steps": [[1, 2], [3, 4]]}\n')
    server = SmallServer()
    call("--data", str(file), "--model", "small", server=server)
    assert json.loads(server.bodies[0]) == {"sequences": [[[1, None]]], "model": "small"}
    assert len(server.bodies) == 2 + 6  # each alone, then the load


def test_a_table_is_sent_in_the_order_of_the_names_of_the_model(tmp_path: Path):
    files = {"a": "run,ay,ax,note\nr,2,1,n\nr,4,3,n\n", "b": "run,ay,a_x\nr,2,1\n"}
    for name, text in files.items():
        (tmp_path / f"{name}.csv").write_text(text)
    server = SmallServer()
    server.models[0]["names"] = '["ax", "ay"]'
    columns = ("--column", "id=run")
    done = call("--data", str(tmp_path / "a.csv"), *columns, server=server)
    assert json.loads(server.bodies[0])["sequences"] == [[[1, 2], [3, 4]]]
    assert "features 'ax', 'ay'; ignored: 'note'" in done.stderr
    refused = call("--data", str(tmp_path / "b.csv"), *columns, server=server)
    assert refused.exit_code == 2
    assert "the model takes ax, ay; missing: ax; did you mean a_x?" in refused.stderr


def test_random_sequences_have_the_steps_and_the_longest_length_of_the_model():
    server = SmallServer()
    call("--lengths", "fixed:500", server=server)
    assert {np.shape(json.loads(body)["sequences"]) for body in server.bodies} == {(1, 64, 2)}


@pytest.mark.parametrize(
    ("lengths", "name"),
    [
        ("fixed:64", "fixed:64"),
        ("fixed:1e300", "fixed:1e300 cut to 1-64 steps"),
        ("uniform:60,70", "uniform:60,70 cut to 1-64 steps"),
    ],
)
def test_the_title_says_where_lengths_are_cut_to_those_of_the_model(lengths: str, name: str):
    assert json.loads(call("--lengths", lengths, "--json").stdout)["title"].endswith(f", {name}")


def test_a_file_without_records_is_refused_before_the_load(tmp_path: Path):
    (tmp_path / "data.jsonl").touch()
    server = SmallServer()
    result = call("--data", str(tmp_path / "data.jsonl"), server=server)
    assert (result.exit_code, server.bodies) == (2, [])
    assert "data.jsonl: there is no record in it" in result.stderr


def test_a_header_without_a_value_is_refused():
    result = call("--header", "authorization")
    assert result.exit_code == 2
    assert "NAME=VALUE" in result.output


@pytest.mark.parametrize("text", ["x=y\r\nz: w", "ü=1", "x y=1", "x=ü"])
def test_a_header_that_http_does_not_have_is_refused(text: str):
    result = call("--header", text)
    assert result.exit_code == 2
    assert "cannot be a header" in result.output


def test_a_plot_of_an_unknown_format_is_refused_before_the_load(tmp_path: Path):
    server = SmallServer()
    result = call("--plot", str(tmp_path / "load.xyz"), server=server)
    assert (result.exit_code, server.bodies) == (2, [])
    assert "load.xyz: the name must end in one of" in result.stderr


@pytest.mark.parametrize("rates", ["0", "a:b:c", "5:1:1", "1:5:0", "0:5:1", "1:inf:1", "1:2", "nan"])
def test_rates_of_another_form_are_refused(rates: str):
    result = call("--request-rate", rates)
    assert (result.exit_code, "--request-rate" in result.stderr) == (2, True)


def test_rates_have_both_their_ends():
    assert rates_of("0.1:0.3:0.1") == pytest.approx([0.1, 0.2, 0.3])
    assert rates_of("50") == (50.0,)


@pytest.mark.long
def test_bench_serves_the_bundled_model_and_its_answers_are_batch_invariant():
    result = CliRunner().invoke(bench, ["--data", "aeon:JapaneseVowels_TEST", *FEW, "--json", "--concurrency", "6"])
    assert result.exit_code == 0, result.output
    (load,) = json.loads(result.stdout)["loads"]
    assert (load["answers"], load["wrong"]) == ({"200": 6}, 0)
    assert load["rows_per_batch"] >= 1
