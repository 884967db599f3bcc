"""Random chains of operators are mended or refused, and the fuzzer finds what is wrong."""

from __future__ import annotations

import onnx
import pytest
from click.testing import CliRunner

from lengthwise_export.mending.mend import Mended
from tests.fuzz import mends
from tests.fuzz.chains import draw
from tests.fuzz.mends import BAD, Worker, main, tried


@pytest.mark.parametrize("seed", range(20))
def test_a_random_chain_is_answered_as_the_original_alone_or_refused(seed: int) -> None:
    found = tried(draw(seed), seed)
    assert found.result not in BAD, found.why


@pytest.mark.long
def test_a_thousand_random_chains_are_answered_as_the_originals_alone_or_refused() -> None:
    done = CliRunner().invoke(main, ["--chains", "1000", "--seed", "100000"])
    assert done.exit_code == 0, done.output


def test_a_graph_that_ignores_its_lengths_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def unmended(graph, *given, **more):  # type: ignore[no-untyped-def]
        lengths = onnx.helper.make_tensor_value_info("lengths", onnx.TensorProto.INT32, ["rows"])
        copy = onnx.ModelProto()
        copy.CopyFrom(graph)
        copy.graph.input.append(lengths)
        return Mended(copy, (), 1, 128)

    monkeypatch.setattr(mends, "mend", unmended)
    found = [tried(draw(seed), seed).result for seed in range(12)]
    assert "wrong" in found


def test_what_ends_the_process_is_told_from_what_is_wrong() -> None:
    worker = Worker()
    assert worker.tried(draw(3), 3).result == "equal"
    assert worker.shortest(draw(3), 3, tried(draw(3), 3))[0].links == ()
    worker.close()
