"""A graph that streams answers chunks as the whole, or is refused by operator."""

from functools import partial

import numpy as np
import pytest

from lengthwise.errors import VerificationError
from lengthwise.padding import PaddedBatch
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.session import Session
from lengthwise_export.onnx_graphs import precision
from lengthwise_export.streaming.proof import prove
from lengthwise_export.streaming.stream import stream
from tests.gallery.streaming_models import INT8, REFUSED, STREAMING, graph, manifest


def streaming(name: str, *, int8: bool = False) -> tuple[Session, Manifest]:
    """A session of the streaming graph of a model, and its manifest."""
    streaming_graph, said = stream(graph(name), manifest(name))
    if int8:
        streaming_graph = precision.convert(streaming_graph, "int8")
    described = manifest(name, said)
    return Session(streaming_graph.SerializeToString(), described), described


def whole(name: str, batch: PaddedBatch) -> np.ndarray:
    """What the whole graph answers to a batch, whose states it does not take."""
    session = Session(graph(name).SerializeToString(), manifest(name))
    return session.run(PaddedBatch(batch.steps, batch.lengths)).logits


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", STREAMING)
def test_chunks_have_the_answer_to_the_whole(name: str):
    promise = prove(*streaming(name), partial(whole, name), seed=1)
    assert promise.max_difference < 1e-4


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", INT8)
def test_chunks_have_the_answer_to_the_whole_at_int8(name: str):
    session, described = streaming(name, int8=True)
    assert session.integer
    prove(session, described, None, seed=1)


@pytest.mark.parametrize("name", REFUSED)
def test_what_looks_ahead_is_refused_by_operator(name: str):
    _, operator, reason = REFUSED[name]
    with pytest.raises(VerificationError, match=f"streams/1 cannot stream: {operator}: .*{reason}"):
        stream(graph(name), manifest(name))
