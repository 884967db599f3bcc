"""ONNX made elsewhere: what is read off a graph, and that it is published as it came and served with its own bits."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from lengthwise.commands.cli import main
from lengthwise.errors import ConfigurationError
from lengthwise.padding import pad
from lengthwise.runtime.manifest import GRAPH_FILE, Manifest, Task
from lengthwise.runtime.provider import PLAIN_CPU
from lengthwise.runtime.session import Session
from lengthwise_export.errors import UncheckableError
from lengthwise_export.onnx_graphs.external_graph import ExternalGraph, read_graph
from lengthwise_export.options import TargetOptions
from tests.gallery.index import ONNX_SOUND, Exhibit
from tests.gallery.onnx_models import Weights, integers, model
from tests.gallery.trials import onnx_model
from tests.support.server_process import started

SUM = "[pool] s = ReduceSum <keepdims = 0> (x, axis)\n[head] logits = MatMul (s, V)"
ORDINARY = "g (float[N,T,4] x, int32[N] n) => (float[N,2] logits)"
WEIGHTS = {"axis": integers(1), "V": Weights(0).normal(4, 2)}


def graph(signature: str = ORDINARY, body: str = SUM, **weights: np.ndarray) -> onnx.ModelProto:
    return model(signature, body, WEIGHTS | weights, producer="test")


def sound(name: str) -> onnx.ModelProto:
    (exhibit,) = (exhibit for exhibit in ONNX_SOUND if exhibit.name == name)
    return exhibit.make()


@pytest.mark.parametrize("exhibit", [exhibit for exhibit in ONNX_SOUND if not exhibit.named], ids=lambda one: one.name)
def test_inputs_are_read_off_a_graph(exhibit) -> None:
    output = None if exhibit.output is None else str(exhibit.output)
    said = TargetOptions(output=output, channels_first=exhibit.channels_said, features=exhibit.features)
    adopted = read_graph(exhibit.make(), said if exhibit.channels_said else TargetOptions(output=output))
    assert adopted.names.sequences == exhibit.values
    assert {adopted.names.lengths, adopted.names.mask} - {None} == {exhibit.second_name, exhibit.third} - {None}
    assert adopted.names.channels_first == exhibit.channels_first
    assert adopted.names.features_axis == (not exhibit.raw)
    assert adopted.names.time_first == exhibit.time_first
    assert adopted.per_step == exhibit.per_step
    assert adopted.steps.features == exhibit.features


def manifest_of(adopted: ExternalGraph) -> Manifest:
    labels = tuple(map(str, range(adopted.classes)))
    task: Task = "per-step" if adopted.per_step else "single-label"
    return Manifest(name="m", version=1, input=adopted.steps, labels=labels, task=task, graph=adopted.names)


def test_what_has_no_steps_keeps_its_axes_in_a_graph_that_takes_time_first() -> None:
    body = "[turn] x = Transpose <perm = [1, 0, 2]> (frames)\n" + SUM
    adopted = read_graph(graph("g (float[T,N,4] frames, int32[N] ends) => (float[N,2] logits)", body), TargetOptions())
    assert adopted.names.time_first
    # As many rows as steps, and as many as classes: nothing can be told by sizes here.
    batch = pad([np.ones((2, 4), np.float32), np.zeros((1, 4), np.float32)], multiple=1)
    logits = Session(adopted.graph.SerializeToString(), manifest_of(adopted)).run(batch).logits
    assert not logits[1].any()
    assert logits[0].all()


def test_hugging_faces_names_are_one_reading() -> None:
    adopted = read_graph(sound("token_mean"), TargetOptions())
    assert (adopted.names.sequences, adopted.names.mask) == ("input_ids", "attention_mask")
    assert (adopted.names.time_first, adopted.steps.vocabulary) == (False, 40)


def test_two_token_like_inputs_are_not_guessed_between() -> None:
    names = {"input_ids": "first", "attention_mask": "second"}
    nameless = sound("token_mean")
    for node in nameless.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
    for value in nameless.graph.input:
        value.name = names[value.name]
    with pytest.raises(ConfigurationError) as caught:
        read_graph(nameless, TargetOptions())
    assert "--values first --mask second" in str(caught.value)
    assert "--values second --mask first" in str(caught.value)
    named = read_graph(nameless, TargetOptions(values="first"))
    assert (named.names.sequences, named.names.mask) == ("first", "second")


@pytest.mark.parametrize(
    ("signature", "why"),
    [
        ("g (float[N,T,4] x) => (float[N,2] logits)", "nothing marks where a sequence ends"),
        ("g (float[N,30,4] x, int32[N] n) => (float[N,2] logits)", "frozen: width at 30"),
        ("g (float[1,T,4] x, int32[1] n) => (float[1,2] logits)", "frozen: rows at 1"),
        (
            "g (float[N,T,4] x, int32[1] n) => (float[N,2] logits)",
            "frozen: n at 1 .*`dynamic_axes`.*, and export it",
        ),
        ("g (float[N,T,4] x, bool[N,30] m) => (float[N,2] logits)", r"frozen: m at 30 .it takes .*m .bool\['N', 30\]"),
        ("g (float[N,T,4] x, bool[1,30] m) => (float[N,2] logits)", "frozen: m at 1 and m at 30"),
        (
            "g (float[N,T,4] x, float[N,T,4] y) => (float[N,2] logits)",
            "sequences must be one input.*lengths of a further sequence",
        ),
        ("g (float[N,T,4] x, double[N] n) => (float[N,2] logits)", "shares of the longest"),
        ("g (float[N,T,4] x, bool[N] n) => (float[N,2] logits)", "name them with --values"),
        ("g (double[N,T,4] x, int32[N] n) => (float[N,2] logits)", "cannot feed x .float64.*: steps are float32"),
        ("g (float[N,T,4] x, uint8[N,T] m) => (float[N,2] logits)", "cannot feed m .uint8.*: .*, masks bool"),
        ("g (string[N,T,4] x, int32[N] n) => (float[N,2] logits)", "cannot feed x .string"),
        ("g (float[N,T,4] x, int32[N] n) => (float[N,2] logits, float[N] other)", None),
    ],
)
def test_a_graph_that_cannot_be_fed_is_refused_with_the_reason(signature: str, why: str | None) -> None:
    body = SUM + ("\n[more] other = ReduceSum <keepdims = 0> (logits, axis)" if "other" in signature else "")
    if why is None:
        assert read_graph(graph(signature, body), TargetOptions()).classes == 2
        return
    with pytest.raises(UncheckableError, match=why):
        read_graph(graph(signature), TargetOptions())


def test_floats_of_8_bits_are_no_classes() -> None:
    signature = "g (float[N,T,4] x, int32[N] n) => (float8e4m3fn[N,2] rounded)"
    with pytest.raises(UncheckableError, match="none of the outputs rounded"):
        read_graph(graph(signature, SUM + "\n[last] rounded = Cast <to = 17> (logits)"), TargetOptions())


def test_names_that_the_graph_does_not_have_are_a_wrong_call() -> None:
    for said in ({"values": "y"}, {"lengths": "m"}, {"mask": "m"}, {"output": "probabilities"}, {"output": "7"}):
        with pytest.raises(ConfigurationError, match=r"are x|are logits"):
            read_graph(graph(), TargetOptions(**said))
    assert read_graph(graph(), TargetOptions(output="0")).names.logits == "logits"


def test_what_a_step_is_may_have_to_be_said() -> None:
    signature = "g (float[N,T,F] x, int32[N] n) => (float[N,2] logits)"
    with pytest.raises(ConfigurationError, match="--features"):
        read_graph(graph(signature), TargetOptions())
    assert read_graph(graph(signature), TargetOptions(features=4)).steps.features == 4
    with pytest.raises(ConfigurationError):
        read_graph(graph(), TargetOptions(features=5))


def test_tokens_that_look_nothing_up_need_their_vocabulary_said() -> None:
    body = "[c] f = Cast <to = 1> (ids)\n[u] x = Unsqueeze (f, two)\n" + SUM
    signature = "g (int64[N,T] ids, int32[N] n) => (float[N,2] logits)"
    tokens = graph(signature, body, two=integers(2), V=Weights(0).normal(1, 2))
    with pytest.raises(ConfigurationError, match="--vocabulary"):
        read_graph(tokens, TargetOptions())
    assert read_graph(tokens, TargetOptions(vocabulary=9)).steps.vocabulary == 9


def test_int32_token_ids_are_taken_as_int64() -> None:
    signature, body = "g (int32[N,T] ids, int32[N] n) => (float[N,2] logits)", "[look] x = Gather (table, ids)\n" + SUM
    adopted = read_graph(graph(signature, body, table=Weights(1).normal(7, 4)), TargetOptions())
    assert adopted.steps.vocabulary == 7
    session = Session(adopted.graph.SerializeToString(), manifest_of(adopted))
    logits = session.run(pad([np.array([1, 2, 6]), np.array([3])])).logits
    assert logits.shape == (2, 2)
    assert adopted.graph.graph.node[0].op_type == "Cast"


def test_a_graph_that_cannot_be_loaded_or_answer_at_every_width_is_refused() -> None:
    body = "[r] f = Reshape (x, flat)\n[head] logits = MatMul (f, V)"
    frozen_inside = graph(ORDINARY, body, flat=integers(-1, 24), V=Weights(0).normal(24, 2))
    counts = "g (float[N,T,4] x, int32[N] n) => (int64[N,T,4] counts)"
    no_answer = graph(counts, "[n] counts = Cast <to = 7> (x)")
    unknown = graph()
    unknown.graph.node[0].op_type = "NoSuchOperator"
    for refused in (frozen_inside, no_answer, unknown):
        with pytest.raises(UncheckableError):
            read_graph(refused, TargetOptions())


@pytest.mark.parametrize("output", [None, "risk", "0"])
def test_one_value_for_each_row_is_told_what_to_give_instead(output: str | None) -> None:
    body = SUM.replace("logits", "h") + "\n[flat] risk = ReduceSum <keepdims = 0> (h, axis)"
    with pytest.raises(UncheckableError, match="--multi-label"):
        read_graph(graph("g (float[N,T,4] x, int64[N] n) => (float[N] risk)", body), TargetOptions(output=output))


# The second of the taggers has its classes before its steps; the last has Hugging Face's names.
NAMES = """
lstm_int64_lengths float_mask_attention gru_time_first channels_first_fcn padding_mask_max raw_samples lengths_and_mask
step_tagger channels_first_tagger token_mean
"""
EXHIBITS = [exhibit for exhibit in ONNX_SOUND if exhibit.name in NAMES.split()]
FULL = 12  # a multiple of 4: the service pads it with nothing


def published(exhibit: Exhibit, folder: Path, repository: Path) -> Path:
    """The model directory that the command makes of a graph's file."""
    name = exhibit.name.replace("_", "-")
    words = ["export", exhibit.save(folder), *exhibit.options, "--out", repository / name, "--max-length", 64]
    done = CliRunner().invoke(main, [*map(str, words)])
    assert done.exit_code == 0, done.output
    return repository / name / "1"


def steps_of(exhibit: Exhibit, length: int) -> np.ndarray:
    random = np.random.default_rng(length)
    if exhibit.vocabulary is not None:
        return random.integers(exhibit.vocabulary, size=length)
    return random.normal(size=(length, exhibit.features)).astype(np.float32)


def alone(exhibit: Exhibit, steps: np.ndarray) -> np.ndarray:
    """What the user's own call of onnxruntime gives, without any of the service's code."""
    return onnx_model(exhibit)(steps[None], np.array([len(steps)]))[0]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda one: one.name)
def test_an_adopted_graph_keeps_its_bytes_and_the_bits_of_a_full_row(exhibit: Exhibit, tmp_path: Path) -> None:
    directory = published(exhibit, tmp_path, tmp_path / "models")
    assert (directory / GRAPH_FILE).read_bytes() == (tmp_path / f"{exhibit.name}.onnx").read_bytes()
    # In onnxruntime's own kernels, as its user runs it.
    session = Session.load(directory, Manifest.read(directory), devices=(PLAIN_CPU,))
    steps = steps_of(exhibit, FULL)
    assert session.run(pad([steps])).logits[0].tobytes() == alone(exhibit, steps).tobytes()


def probabilities(logits: np.ndarray) -> Sequence[float]:
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return list((raised / raised.sum(axis=-1, keepdims=True)).ravel())


@pytest.mark.process
@pytest.mark.long
def test_adopted_graphs_answer_ragged_requests_as_their_users_get_them(tmp_path: Path) -> None:
    for exhibit in EXHIBITS:
        published(exhibit, tmp_path, tmp_path / "models")
    with started(str(tmp_path / "models")) as server:
        for exhibit in EXHIBITS:
            sequences = [steps_of(exhibit, length) for length in (FULL, 1, 7)]
            body = {"model": exhibit.name.replace("_", "-"), "sequences": [steps.tolist() for steps in sequences]}
            predictions = server.predict(body).json()["predictions"]
            for prediction, steps in zip(predictions, sequences, strict=True):
                expected = probabilities(alone(exhibit, steps))
                found = np.ravel(prediction["probabilities"]).tolist()
                assert found == pytest.approx(expected, abs=1e-6), exhibit.name
