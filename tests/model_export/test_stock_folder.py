"""A folder that optimum wrote is a target: its configuration says what options would say, which win over it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto

import lengthwise_export
from lengthwise.errors import ConfigurationError
from lengthwise.runtime.manifest import GRAPH_FILE
from lengthwise_export.options import CheckOptions, ExportOptions
from lengthwise_export.targets import stock_folder
from tests.gallery.onnx_models import Weights, integers

CONFIG = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "id2label": {"1": "joy", "0": "anger", "2": "fear"},
    "vocab_size": 20,
    "max_position_embeddings": 30,
    "pad_token_id": 1,
}


def encoder(*, of_roberta: bool = False) -> ModelProto:
    """A mean of embeddings of ids, kinds and positions, of which there are 30.

    Positions count from 0; those of RoBERTa leave out the padding, the id 1, and count from 2.
    """
    w = Weights(5, "optimum").named("table 20x4*1, kinds 2x4*1, places 30x4*1, V 4x3*1")
    w |= {"first": integers(1), "second": integers(2), "one": np.array(1), "least": np.array(1 if of_roberta else -1)}
    w |= {"pad": np.array(1 if of_roberta else -1)}
    return w.model("""
        bert (int64[batch,sequence] input_ids, int64[batch,sequence] attention_mask, int64[batch,sequence]
        token_type_ids) => (float[batch,3] logits)
        [words] e = Gather (table, input_ids)
        [types] t = Gather (kinds, token_type_ids)
        [is_padding] q = Equal (input_ids, pad)
        [is_word] u = Not (q)
        [counted] v = Cast <to = 7> (u)
        [count_words] o = CumSum (v, one)
        [of_words] k = Mul (o, v)
        [places_of] i = Add (k, least)
        [positions] p = Gather (places, i)
        [with_types] x = Add (e, t)
        [hidden] h = Add (x, p)
        [float_mask] f = Cast <to = 1> (attention_mask)
        [unsqueeze] m = Unsqueeze (f, second)
        [masked] z = Mul (h, m)
        [sum] total = ReduceSum <keepdims = 0> (z, first)
        [count] c = ReduceSum <keepdims = 0> (m, first)
        [mean] mean = Div (total, c)
        [dense] logits = MatMul (mean, V)
        """)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as optimum writes it."""
    write(tmp_path / "stock", CONFIG, **{"model.onnx": encoder()})
    return tmp_path / "stock"


def write(folder: Path, config: object, **files: ModelProto) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    for name, model in files.items():
        onnx.save(model, folder / name)


def test_a_folder_of_optimum_is_exported_with_one_command(folder: Path, tmp_path: Path) -> None:
    published = lengthwise_export.export(str(folder), tmp_path / "models" / "mood")
    manifest = published.manifest
    assert (manifest.labels, manifest.input.vocabulary, manifest.max_length) == (("anger", "joy", "fear"), 20, 30)
    # The graph takes ids and mask only, and answers as the original with zeros for the kinds.
    served = onnxruntime.InferenceSession(published.directory / GRAPH_FILE)
    assert [value.name for value in served.get_inputs()] == ["input_ids", "attention_mask"]
    ids = np.random.default_rng(0).integers(0, 20, size=(3, 7))
    fed: dict[str, Any] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    [theirs] = onnxruntime.InferenceSession(folder / "model.onnx").run(None, fed | {"token_type_ids": 0 * ids})
    np.testing.assert_allclose(served.run(["logits"], fed)[0], theirs, atol=1e-6)


def test_a_folder_of_optimum_is_checked_as_it_is(folder: Path) -> None:
    report = lengthwise_export.check(folder)
    assert (report.verdict, report.max_length) == ("sound", 30)


def test_a_file_of_the_folder_has_the_same_options(folder: Path) -> None:
    by_folder, by_file = (stock_folder.described(path, ExportOptions()) for path in (folder, folder / "model.onnx"))
    assert by_file == by_folder
    write(folder, {"name": "a table"})  # which is no configuration of transformers
    assert stock_folder.described(folder / "model.onnx", ExportOptions()) == (folder / "model.onnx", ExportOptions())


def test_positions_that_padding_takes_are_no_steps(folder: Path, tmp_path: Path) -> None:
    onnx.save(encoder(of_roberta=True), folder / "model.onnx")
    _, options = stock_folder.described(folder, ExportOptions())
    assert options.max_length == 28
    assert lengthwise_export.export(folder, tmp_path / "models" / "mood").manifest.max_length == 28


def test_a_configuration_of_many_positions_asks_for_no_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, CONFIG | {"max_position_embeddings": 10**9})
    monkeypatch.setattr("onnxruntime.InferenceSession", pytest.fail)
    assert stock_folder.described(folder, CheckOptions())[1].max_length == 1024


@pytest.mark.parametrize("name", ["words", "input_ids"])
def test_kinds_of_tokens_that_cannot_be_zeros_are_refused(folder: Path, name: str) -> None:
    model = encoder()
    kinds = model.graph.input[2].type.tensor_type
    if name == "input_ids":
        kinds.elem_type = onnx.TensorProto.FLOAT
        model.graph.node[1].op_type, model.graph.node[1].input[:] = "MatMul", ["token_type_ids", "kinds"]
    for node in model.graph.node:
        node.input[:] = [name if value == "input_ids" else value for value in node.input]
    model.graph.input[0].name = name
    onnx.save(model, folder / "model.onnx")
    report = lengthwise_export.check(folder)
    assert (report.verdict, "the graph takes token_type_ids" in report.reason) == ("uncheckable", True)


def test_an_input_with_a_value_of_its_own_stays(folder: Path) -> None:
    model = encoder()
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((1, 1), np.int64), "token_type_ids"))
    for axis in model.graph.input[2].type.tensor_type.shape.dim:
        axis.dim_value = 1
    onnx.save(model, folder / "model.onnx")
    report = lengthwise_export.check(folder)
    assert report.verdict == "sound", report.reason


def test_what_a_user_says_wins_over_the_configuration(folder: Path) -> None:
    said = {"labels": ("a", "b", "c"), "max_length": 12}
    assert stock_folder.described(folder, CheckOptions(max_length=1024))[1].max_length == 1024  # also the default
    source, options = stock_folder.described(folder, ExportOptions(**said))
    assert (source, options.labels, options.max_length) == (str(folder / "model.onnx"), ("a", "b", "c"), 12)
    assert (options.vocabulary, options.multi_label) == (20, False)


def test_several_labels_at_once_are_those_of_the_configuration(folder: Path) -> None:
    write(folder, CONFIG | {"problem_type": "multi_label_classification"})
    assert stock_folder.described(folder, ExportOptions())[1].multi_label
    assert stock_folder.described(folder, CheckOptions())[1].labels == ("anger", "joy", "fear")  # it has no such option


def test_the_folder_may_be_the_present_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert stock_folder.described(".", CheckOptions())[1].vocabulary == 20
    long_name = "x" * 300  # longer than a name of a file may be
    assert stock_folder.described(long_name, CheckOptions())[0] == long_name


def test_a_graph_may_stand_where_the_hub_has_it(folder: Path) -> None:
    (folder / "onnx").mkdir()
    (folder / "model.onnx").rename(folder / "onnx" / "model.onnx")
    onnx.save(encoder(), folder / "onnx" / "model_quantized.onnx")
    assert stock_folder.described(folder, CheckOptions())[0] == str(folder / "onnx" / "model.onnx")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (CONFIG | {"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM is no classifier"),
        (CONFIG | {"problem_type": "regression"}, "gives one number"),
        (CONFIG | {"id2label": {"0": "LABEL_0"}}, "gives one number"),
        (CONFIG | {"id2label": {"1": "a", "2": "b"}}, "id2label has 2 ids, 1, 2 first: they must count from 0"),
        (CONFIG | {"id2label": {"0": "a", "1": " "}}, "id2label has an empty name"),
        (CONFIG | {"vocab_size": "many"}, "vocab_size: Input should be a valid integer"),
        ({"name": "a table"}, "no configuration of transformers, .* model_type: Field required"),
        ("{", "no configuration of transformers"),
    ],
)
def test_a_folder_that_holds_no_classifier_is_refused(folder: Path, config: object, said: str) -> None:
    write(folder, config)
    with pytest.raises(ConfigurationError, match=said):
        lengthwise_export.check(folder)


def test_a_folder_without_a_graph_or_with_several_is_refused(folder: Path) -> None:
    (folder / "model.onnx").rename(folder / "one.onnx")
    assert stock_folder.described(folder, CheckOptions())[0] == str(folder / "one.onnx")
    onnx.save(encoder(), folder / "two.onnx")
    with pytest.raises(ConfigurationError, match=r"2 ONNX files, one\.onnx, two\.onnx: name one"):
        lengthwise_export.check(folder)
    for graph in folder.glob("*.onnx"):
        graph.unlink()
    with pytest.raises(ConfigurationError, match=r"has config\.json and no ONNX file: optimum-cli"):
        lengthwise_export.check(folder)
