"""`export --streaming`: the published directory, what is refused, and the loops for other servers."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import lengthwise
import lengthwise_export
from lengthwise.commands.cli import main
from lengthwise.errors import ConfigurationError, VerificationError
from lengthwise_export import PublishedModel
from lengthwise_export.checking.rule import rules
from lengthwise_export.exporting.candidate import from_spec_target
from lengthwise_export.options import ExportOptions
from lengthwise_export.streaming.proof import prove
from lengthwise_export.streaming.stream import stream
from lengthwise_export.targets import targets
from tests.gallery.streaming_models import graph, manifest


def exported(name: str, folder: Path, **options: object) -> PublishedModel:
    onnx.save(graph(name), folder / f"{name}.onnx")
    return lengthwise_export.export(  # type: ignore[call-overload, no-any-return]
        folder / f"{name}.onnx", folder / "models" / name, labels=["a", "b", "c"], streaming=True, **options
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> PublishedModel:
    """An LSTM with a maximum, whose states begin with zeros and with the lowest number."""
    return exported("largest", tmp_path_factory.mktemp("streaming"), max_length=60, max_steps=5000)


def steps(length: int) -> np.ndarray:
    return np.random.default_rng(length).normal(size=(length, 4)).astype(np.float32)


def test_the_manifest_says_what_streams(published: PublishedModel) -> None:
    streaming = published.manifest.streaming
    assert streaming is not None
    assert [(state.shape, state.dtype, state.initial) for state in streaming.states] == [
        ((8,), "float32", 0.0),
        ((8,), "float32", 0.0),
        ((8,), "float32", pytest.approx(-3.4e38, rel=0.01)),
    ]
    assert (streaming.state_bytes, streaming.max_steps, streaming.look_ahead_steps) == (96, 5000, 0)
    assert streaming.promise.max_difference < 1e-5


def test_a_loaded_model_answers_chunks_as_the_whole(published: PublishedModel) -> None:
    model = lengthwise.load(published.directory)
    chunks, whole = model.stream(), steps(20)
    for start, end in ((0, 1), (1, 13), (13, 20)):
        answer = chunks.push(whole[start:end])
    expected = model.predict([whole])[0]
    np.testing.assert_allclose(answer.probabilities, expected.probabilities, atol=1e-6)
    assert answer.offset == 20


@pytest.mark.process
def test_the_loop_over_onnxruntime_alone_gives_the_answers(published: PublishedModel) -> None:
    whole = steps(9)
    lines = [json.dumps(whole[start:end].tolist()) for start, end in ((0, 2), (2, 3), (3, 9))]
    loop = [sys.executable, str(published.directory / "stream.py")]
    done = subprocess.run(loop, input="\n".join(lines), capture_output=True, text=True, check=True, timeout=600)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == 3
    model = lengthwise.load(published.directory)
    scores = np.exp(answers[-1]) / np.exp(answers[-1]).sum()
    np.testing.assert_allclose(scores, model.predict([whole])[0].probabilities, atol=1e-6)


READ_BY_TRITONS_OWN = """
import sys
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
print(json_format.MessageToJson(text_format.Parse(sys.stdin.read(), ModelConfig()), preserving_proto_field_name=True))
"""
"""Run in a process of its own: its messages and those of the service have the same names."""


@pytest.mark.process
def test_triton_gets_the_states_as_implicit_ones(published: PublishedModel) -> None:
    reader, text = [sys.executable, "-c", READ_BY_TRITONS_OWN], (published.directory / "config.pbtxt").read_text()
    config = json.loads(subprocess.run(reader, input=text, capture_output=True, text=True, check=True).stdout)
    graph_inputs = {value.name for value in onnx.load(published.directory / "model.onnx").graph.input}
    states = config["sequence_batching"]["state"]
    assert {tensor["name"] for tensor in config["input"]} | {state["input_name"] for state in states} == graph_inputs
    assert [state["output_name"] for state in states] == [f"{state['input_name']}_next" for state in states]
    first = [state["initial_state"][0] for state in states]
    files = [value["data_file"] for value in first if not value.get("zero_data")]
    values = np.fromfile(published.directory / "initial_state" / files[0], np.float32)
    assert len(files) == 1
    np.testing.assert_array_equal(values, np.full(8, np.finfo(np.float32).min))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 9}, r"--max-steps .* pass --streaming"),
        ({"streaming": True, "precision": "fp16"}, "--streaming --precision fp16"),
    ],
)
def test_options_that_contradict_are_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        lengthwise_export.export(tmp_path / "m.onnx", tmp_path / "m", **options)  # type: ignore[call-overload]


def test_a_policy_for_long_sequences_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(
        '[input]\nfeatures = 4\nlong = "window"\n[model]\nhidden = 8\nlayers = 1\n[output]\nlabels = ["a", "b"]\n'
    )
    options = ExportOptions(streaming=True)
    target = targets.read(str(tmp_path / "s.toml"), options)
    with pytest.raises(ConfigurationError, match=r"--streaming contradicts input.long = 'window'"):
        from_spec_target(target, options)  # type: ignore[arg-type]


def test_a_model_that_cannot_stream_ends_the_command_with_1(tmp_path: Path) -> None:
    onnx.save(graph("both_directions"), tmp_path / "m.onnx")
    command = ["export", f"{tmp_path}/m.onnx", "--out", f"{tmp_path}/m", "--labels", "a,b,c", "--streaming"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "cannot stream: LSTM rnn: reads the steps from the last one" in result.stderr
    assert not (tmp_path / "m").exists()


def test_a_state_that_changes_nothing_fails_the_proof() -> None:
    model, streaming = stream(graph("gru_last"), manifest("gru_last"))
    (gru,) = (node for node in model.graph.node if node.op_type == "GRU")
    del gru.input[5:]
    kept = next(node for node in model.graph.node if node.output[0] == "state_y_next")
    kept.input[0] = "state_y"
    described = manifest("gru_last", streaming)
    with pytest.raises(VerificationError, match=r"streams/1 does not stream: after .* in 2 chunks"):
        prove(model, described, None, seed=0)


@pytest.mark.parametrize(("code", "verdict"), [("LW307", "leak"), ("LW308", "leak"), ("LW307", "sound")])
def test_a_check_looks_at_what_a_graph_carries(code: str, verdict: str) -> None:
    example = rules()[code].examples["onnx"]["bad" if verdict == "leak" else "good"]
    report = lengthwise_export.check(onnx.parser.parse_model(example), max_length=40)
    assert (report.verdict, [leak.code for leak in report.leaks]) == (verdict, [code] if verdict == "leak" else [])


def test_a_published_model_that_streams_is_sound(published: PublishedModel) -> None:
    assert lengthwise_export.check(published.directory, max_length=40).verdict == "sound"


def test_an_embedding_without_a_head_streams(tmp_path: Path) -> None:
    onnx.save(graph("gru_last"), tmp_path / "m.onnx")
    published = lengthwise_export.export(tmp_path / "m.onnx", tmp_path / "m", streaming=True, embedding=True)
    assert (published.manifest.task, published.manifest.dimensions, published.manifest.labels) == ("embedding", 3, ())
    model, whole = lengthwise.load(published.directory), steps(7)
    chunks = model.stream()
    chunks.push(whole[:3])
    answer = chunks.push(whole[3:])
    np.testing.assert_allclose(answer.values, model.predict([whole])[0].values, atol=1e-6)
    assert answer.values.shape == (3,)
