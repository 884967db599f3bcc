"""What stands beside a sequence reaches the graph, row by row, and no other row's answer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lengthwise.batching.queues import ModelQueue
from lengthwise.errors import ManifestError, VerificationError
from lengthwise.padding import Sample, longest_of, pad, planned_length, steps_of
from lengthwise.repository.loading import load
from lengthwise.runtime.graph_inputs import zero_batch
from lengthwise.runtime.manifest import GOLDEN_FILE, Manifest
from lengthwise.runtime.session import Session
from lengthwise.telemetry.metrics import ModelMetrics
from lengthwise.verification import golden
from lengthwise.verification.measurement import measure_cases
from lengthwise.verification.random_sequences import draw
from tests.support import sample_models
from tests.support.model_directories import LIMITS, measure_quickly
from tests.support.sample_models import expected, graph, manifest, session

FORMS = {
    "static": {"static": True},
    "two sequences": {"second": True},
    "both": {"static": True, "second": True},
    "streaming": {"streaming": True},
    "all": {"static": True, "second": True, "streaming": True},
}


@pytest.fixture(params=FORMS.values(), ids=FORMS)
def of(request: pytest.FixtureRequest) -> Manifest:
    return manifest(**request.param)


def test_each_row_gets_what_stands_beside_it(of: Manifest):
    rows = draw(of, [3, 9, 1, 6], 0)
    logits = session(of).run(pad(rows, rows=6, blank=of.blank)).logits
    np.testing.assert_allclose(logits[:4], [expected(of, row) for row in rows], rtol=1e-5, atol=1e-5)
    alone = [session(of).run(pad([row])).logits[0] for row in rows]
    np.testing.assert_allclose(logits[:4], alone, rtol=1e-6, atol=1e-6)


def test_every_case_of_verification_holds_for_further_inputs(of: Manifest):
    cases = measure_cases(lambda _: session(of), of, None)
    assert {case.varied for case in cases} >= {"company", "width", "padding", "neighbours", "order"}
    assert max(case.relative for case in cases) < 1e-5


def test_filled_padding_of_a_second_sequence_is_tried():
    of = manifest(second=True)
    leaking = Session(graph(of, leaking=True), of)
    cases = measure_cases(lambda _: leaking, of, None)
    assert {case.varied for case in cases if case.relative > 1e-3} == {"padding"}


def test_a_state_goes_on_where_it_was():
    of = manifest(streaming=True)
    runs, steps = session(of), draw(of, [9], 1)[0]
    whole = runs.run(pad([steps]), ("logits", "states"))
    begin = runs.run(pad([steps[:4]]), ("logits", "states"))
    assert isinstance(steps, Sample)
    state = dict(zip(("sums", "counts"), (one[0] for one in begin.states), strict=True))
    rest = runs.run(pad([Sample(steps.steps[4:], state)]), ("logits", "states"))
    np.testing.assert_allclose(rest.logits, whole.logits, rtol=1e-6)
    np.testing.assert_allclose(rest.states[1], whole.states[1])
    nothing = runs.run(pad([Sample(steps.steps[:0], state), steps], blank=of.blank), ("logits", "states"))
    np.testing.assert_allclose(nothing.logits, [begin.logits[0], whole.logits[0]], rtol=1e-6)
    assert runs.run(pad([steps])).states == ()


def test_plain_steps_begin_a_stream_beside_samples():
    of = manifest(streaming=True)
    rows = [np.ones((3, 2), np.float32), Sample(np.ones((2, 2), np.float32), {"sums": np.float32([7, 7])})]
    logits = session(of).run(pad(rows, blank=of.blank)).logits
    np.testing.assert_allclose(logits, [[1, 1], [4.5, 4.5]])


def test_a_batch_of_zeros_has_all_inputs(of: Manifest):
    batch = zero_batch(of, 3, 8)
    assert batch.beside.keys() == of.inputs_beside.keys()
    assert np.isfinite(session(of).run(batch).logits).all()


def test_golden_sequences_keep_what_stands_beside_them(of: Manifest, tmp_path: Path):
    stored = golden.answers(session(of), draw(of, [1, 4, 7], 3), of)
    stored.write(tmp_path / GOLDEN_FILE)
    read = golden.Golden.read(tmp_path / GOLDEN_FILE, of)
    for before, after in zip(stored.sequences, read.sequences, strict=True):
        assert isinstance(before, Sample)
        assert isinstance(after, Sample)
        np.testing.assert_array_equal(steps_of(before), steps_of(after))
        for values, other_values in ((before.beside, after.beside), (before.others, after.others)):
            assert values.keys() == other_values.keys()
            assert all(np.array_equal(values[name], other_values[name]) for name in values)
    assert golden.check(session(of), read, of)


@pytest.mark.parametrize("name", ["beside.static", "beside.body", "beside.body_lengths"])
def test_golden_sequences_without_an_input_are_refused(name: str, tmp_path: Path):
    of, file = manifest(static=True, second=True), tmp_path / GOLDEN_FILE
    golden.answers(session(of), draw(of, [1, 4], 3), of).write(file)
    arrays = dict(np.load(file))
    arrays[name] = arrays[name][:-1]
    np.savez(file, **arrays)
    with pytest.raises(VerificationError, match=r"(static|body|body_lengths) (is|are) "):
        golden.Golden.read(file, of)
    del arrays[name]
    np.savez(file, **arrays)
    with pytest.raises(VerificationError, match="has no array"):
        golden.Golden.read(file, of)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"static": {"count": 2, "names": ["age"]}}, "1 entries for 2 values"),
        ({"static": {"count": 1, "categories": {"type": ["a"]}}}, "'type'"),
        ({"static": {"count": 1, "names": ["type"], "categories": {"type": []}}}, "'type'"),
        ({"static": {"count": 1, "names": ["type"], "categories": {"type": ["a", "a"]}}}, "'type'"),
        ({"static": {"count": 0}}, "count"),
        ({"sequences": [{"name": "a", "features": 2}]}, "two or more"),
        ({"sequences": [{"name": "a", "features": 2}] * 2}, "name of its own"),
        ({"sequences": [{"name": "a", "features": 3}, {"name": "b", "features": 2}]}, "the first"),
        ({"sequences": [{"name": "a", "features": 2}, {"name": "b"}]}, "wants"),
        ({"sequences": [{"name": "a", "features": 2, "max_length": 9}, {"name": "b", "features": 2}]}, "max_length"),
    ],
)
def test_a_wrong_table_of_further_inputs_is_named(table: dict[str, Any], reason: str):
    plain = manifest(max_length=1024).model_dump()
    with pytest.raises(ManifestError, match=reason):
        Manifest.from_json(json.dumps(plain | {"input": {"features": 2} | table}))


def test_an_ordinary_manifest_has_no_key_of_what_it_does_not_take(of: Manifest):
    assert Manifest.from_json(of.to_json()) == of
    table = json.loads(manifest().to_json())
    assert {"static", "sequences"}.isdisjoint(table["input"])
    assert "streaming" not in table


def test_a_graph_without_a_further_input_is_refused():
    with pytest.raises(ManifestError, match=r"static \(float32, rank 2\)"):
        Session(graph(manifest()), manifest(static=True))
    no_output = graph(manifest(streaming=True)).replace(b"counts_next", b"counts_last")
    with pytest.raises(ManifestError, match="no output counts_next"):
        Session(no_output, manifest(streaming=True))


def test_a_model_of_any_form_is_verified_and_served(of: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    measure_quickly(monkeypatch)
    model = load(sample_models.place(tmp_path, of), LIMITS)
    assert model.promise is not None
    assert model.promise.bits
    rows = draw(of, [3, 5, 9], 4)
    batch = ModelQueue("m", model.answer, model.cost, ModelMetrics("m", "1"), LIMITS, blank=of.blank).padded(rows)
    answers = model.answer(batch, False)
    powers = np.exp([expected(of, row) for row in rows])
    np.testing.assert_allclose(
        [answer.probabilities for answer in answers if answer], powers / powers.sum(axis=1, keepdims=True), atol=1e-5
    )
    batch = pad(rows, rows=4, blank=of.blank)
    lengths = [lengths for row in rows for lengths in (row.lengths if isinstance(row, Sample) else [len(row)])]
    assert batch.valid_steps == sum(lengths)
    widths = [batch.width, *(batch.beside[name].shape[1] for name in of.further)]
    assert batch.padded_steps == 4 * sum(widths)


def test_steps_that_run_again_are_planned():
    steps = np.zeros((3, 2), np.float32)
    assert [planned_length(row) for row in (steps, Sample(steps), Sample(steps, repeated=7))] == [3, 3, 10]
    assert planned_length(Sample(steps[:0], repeated=7)) == 8
    assert len(pad([Sample(steps, repeated=7)]).steps[0]) == 4  # they are in the state, and not sent


def test_a_batch_is_planned_by_the_longest_sequence_of_each_row():
    of = manifest(second=True)
    one = Sample(np.zeros((3, 2), np.float32), others={"body": np.zeros(40, np.int64)})
    assert (longest_of(one), longest_of(one.steps), of.longest) == (40, 3, 64)
    batch = zero_batch(of, 2, 60)
    assert (batch.width, batch.beside["body"].shape[1], batch.beside["body_lengths"].tolist()) == (60, 48, [48, 48])
