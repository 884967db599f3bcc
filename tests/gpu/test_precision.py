"""fp16 and int8 on a real GPU: half the weights within what they round, and no quantised layer computed elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from lengthwise.batching.plan import BatchLimits
from lengthwise.errors import ModelError
from lengthwise.padding import pad
from lengthwise.repository import loading
from lengthwise.repository.loading import LoadedModel
from lengthwise.runtime.manifest import GRAPH_FILE, Manifest
from lengthwise.runtime.provider import DeviceChoice
from lengthwise.runtime.session import Session
from lengthwise.verification import kept_promises, promises
from lengthwise_export.exporting.model_files import host_nodes
from lengthwise_export.onnx_graphs import precision
from tests.gpu.company import hold_to_its_promise, sequences
from tests.support.model_directories import BUNDLED, place, sign


def half(folder: Path) -> Path:
    """The bundled model at fp16; its golden sequences hold what float32 answers."""
    directory = place(folder)
    graph = precision.convert(onnx.load(directory / GRAPH_FILE), "fp16")
    (directory / GRAPH_FILE).write_bytes(graph.SerializeToString())
    sign(directory, precision="fp16", from_fp32=1e-2, host_nodes=host_nodes(graph, "lengths"))
    return directory


@pytest.fixture(scope="module")
def served(choice: DeviceChoice, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The model at fp16 as the service loads it on all GPUs: every node is there, or the load would be refused."""
    return loading.load(half(tmp_path_factory.mktemp("models")), BatchLimits(64, 16_384), devices=choice.devices)


def test_answers_at_fp16_are_as_near_to_those_of_the_cpu_as_the_load_allows(
    served: LoadedModel, on_cpu: Session
) -> None:
    batch = pad(sequences(32))
    found, expected = served.session.run(batch).logits, on_cpu.run(batch).logits
    size = np.maximum(1.0, np.abs(expected).max(axis=1, keepdims=True))
    assert (np.abs(found - expected) / size).max() < promises.MAX_DIFFERENCE["fp16"]
    assert found.tobytes() != expected.tobytes()


def test_at_fp16_a_neighbour_moves_no_answer_by_more_than_is_promised_there(served: LoadedModel) -> None:
    hold_to_its_promise(served)


def test_at_fp16_attention_at_padding_is_exactly_nothing(served: LoadedModel) -> None:
    batch = pad(sequences(16, seed=2))
    attention = served.session.run(batch, ("logits", "attention")).attention
    assert attention is not None
    assert not attention[np.arange(batch.width) >= batch.lengths[:, None]].any()


def test_the_gpus_promise_is_kept_for_the_next_start(choice: DeviceChoice, tmp_path: Path) -> None:
    directory = half(tmp_path)
    first = loading.load(directory, BatchLimits(4, 256), devices=choice.devices)
    assert (directory / kept_promises.FILE).is_file()
    assert loading.load(directory, BatchLimits(4, 256), devices=choice.devices).promise == first.promise


def test_a_quantised_layer_is_refused_by_its_name(manifest: Manifest, choice: DeviceChoice) -> None:
    graph = precision.convert(onnx.load(BUNDLED / GRAPH_FILE), "int8")
    listed = precision.manifest_at(manifest, "int8").model_copy(update={"host_nodes": host_nodes(graph, "lengths")})
    with pytest.raises(ModelError, match=r"CUDAExecutionProvider has no kernel for .*DynamicQuantizeLSTM"):
        Session(graph.SerializeToString(), listed, devices=choice.devices[:1])
