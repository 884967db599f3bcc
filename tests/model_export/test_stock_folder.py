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


def encoder(*, offset: int = 0) -> ModelProto:
    """A mean of embeddings of ids, kinds and positions, of which there are 30 - `offset` for steps."""
    w = Weights(5, "optimum").named("table 20x4*1, kinds 2x4*1, places 30x4*1, V 4x3*1")
    w |= {"first": integers(1), "second": integers(2), "begin": np.array(offset), "by": np.array(1)}
    return w.model("""
        bert (int64[batch,sequence] input_ids, int64[batch,sequence] attention_mask, int64[batch,sequence]
        token_type_ids) => (float[batch,3] logits)
        [words] e = Gather (table, input_ids)
        [types] t = Gather (kinds, token_type_ids)
        [shape] s = Shape <start = 1, end = 2> (input_ids)
        [steps] n = Squeeze (s)
        [end] stop = Add (n, begin)
        [range] r = Range (begin, stop, by)
        [positions] p = Gather (places, r)
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


def test_positions_that_padding_takes_are_no_steps(folder: Path) -> None:
    onnx.save(encoder(offset=2), folder / "model.onnx")  # as RoBERTa's, whose padding has the id 1
    _, options = stock_folder.described(folder, ExportOptions())
    assert options.max_length == 28


def test_what_a_user_says_wins_over_the_configuration(folder: Path) -> None:
    said = {"labels": ("a", "b", "c"), "max_length": 12}
    source, options = stock_folder.described(folder, ExportOptions(**said))
    assert (source, options.labels, options.max_length) == (str(folder / "model.onnx"), ("a", "b", "c"), 12)
    assert (options.vocabulary, options.multi_label) == (20, False)


def test_several_labels_at_once_are_those_of_the_configuration(folder: Path) -> None:
    write(folder, CONFIG | {"problem_type": "multi_label_classification"})
    assert stock_folder.described(folder, ExportOptions())[1].multi_label
    assert stock_folder.described(folder, CheckOptions())[1].labels == ("anger", "joy", "fear")  # it has no such option


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
        (CONFIG | {"id2label": {"1": "a", "2": "b"}}, r"id2label has the ids \[1, 2\]"),
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
