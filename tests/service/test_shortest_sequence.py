"""A sequence shorter than its model accepts: refused under every protocol and by every command, and by nothing else."""

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import orjson
import pytest
from rich.console import Console

import lengthwise
from lengthwise.batching.buckets import Buckets, choose
from lengthwise.batching.cost import CostTable
from lengthwise.batching.limits import BatchLimits
from lengthwise.bench import remote
from lengthwise.bench.workload import Input
from lengthwise.commands.bench import BenchOptions
from lengthwise.commands.score import ScoringRun
from lengthwise.decoding import fast_json, json_body
from lengthwise.decoding.validation import PREDICT
from lengthwise.errors import InvalidRequest, InvalidSequences, ManifestError, VerificationError
from lengthwise.padding import PaddedBatch, pad
from lengthwise.repository import verifier
from lengthwise.repository.stopping import Stopping
from lengthwise.runtime import answers
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.session import CPU_LABEL, Outputs, Session
from lengthwise.scoring.opened import OpenModel
from lengthwise.scoring.prediction_file import PredictionFile
from lengthwise.verification import promises
from lengthwise.verification.golden import Golden
from lengthwise.verification.measurement import measure_cases
from lengthwise.verification.random_sequences import lengths_for
from tests.support.grpc_calls import listening, request
from tests.support.numpy_models import OneModel, manifest, model, serving
from tests.support.small_server import SmallServer
from tests.support.small_server import serving as small_server

LEAST = manifest(min_length=3, max_length=8)
WHY = "2 steps; the model sums/1 needs at least 3"


def steps(length: int) -> list[list[float]]:
    return [[1.0, 3.0]] * length


def problems(document: Any, rules: Manifest = LEAST) -> list[tuple[str, str]]:
    with pytest.raises(InvalidRequest) as raised:
        json_body.decode(orjson.dumps(document), OneModel(rules).find, max_sequences=64)  # type: ignore[arg-type]
    return [(problem.pointer, problem.detail) for problem in raised.value.problems]


def lengths(document: Any, rules: Manifest = LEAST) -> list[int]:
    found = json_body.decode(orjson.dumps(document), OneModel(rules).find, max_sequences=64)  # type: ignore[arg-type]
    return [len(item.steps) for item in found.items]


def as_object(length: int) -> dict[str, Any]:
    return {"id": "a", "steps": steps(length)}


def test_a_manifest_has_a_least_length_of_1_unless_it_says_another() -> None:
    text = json.loads(manifest().to_json())
    assert text.pop("min_length") == 1
    assert Manifest.from_json(json.dumps(text)).min_length == 1
    assert Manifest.from_json(LEAST.to_json()) == LEAST


@pytest.mark.parametrize("least", [0, -1, 9, 1.5, "three", None, 10**30])
def test_a_least_length_that_no_sequence_has_is_an_error(least: Any) -> None:
    text = json.loads(LEAST.to_json()) | {"min_length": least}
    with pytest.raises(ManifestError, match="min_length"):
        Manifest.from_json(json.dumps(text))
    assert Manifest.from_json(json.dumps(text | {"min_length": 8})).min_length == 8


@pytest.mark.parametrize("form", [steps, as_object])
def test_only_the_short_sequence_of_a_body_is_refused_with_its_pointer(form: Callable[[int], Any]) -> None:
    at = "/sequences/1" if form is steps else "/sequences/1/steps"
    assert problems({"sequences": [form(3), form(2), form(8)]}) == [(at, WHY)]
    assert problems({"sequences": [form(2)]}) == [(at.replace("1", "0"), WHY)]
    assert problems({"sequences": [form(0)]}) == [(at.replace("1", "0"), "a sequence has at least one step")]
    assert lengths({"sequences": [form(3), form(4), form(8)]}) == [3, 4, 8]
    assert lengths({"sequences": [form(3)]}) == [3]


@pytest.mark.parametrize(
    ("mask", "pointer", "why"),
    [
        ([True, False, True, False], "/sequences/0/step_mask", f"leaves {WHY}"),
        ([False, True, False, False], "/sequences/0/step_mask", "leaves 1 step; the model sums/1 needs at least 3"),
        ([False] * 4, "/sequences/0/step_mask", "leaves no step; a sequence has at least one"),
        ([True, True], "/sequences/0/steps", WHY),
        ([False, True], "/sequences/0/steps", "1 step; the model sums/1 needs at least 3"),
    ],
)
def test_steps_that_a_mask_leaves_out_do_not_count(mask: list[bool], pointer: str, why: str) -> None:
    assert problems({"sequences": [{"steps": steps(len(mask)), "step_mask": mask}]}) == [(pointer, why)]


def test_a_mask_that_leaves_enough_is_accepted() -> None:
    sent = {"steps": steps(5), "step_mask": [True, False, True, False, True]}
    assert lengths({"sequences": [sent, steps(3)]}) == [3, 3]


@pytest.mark.skipif(not fast_json.COMPILED, reason="without a C compiler the reader in Python reads every body")
@pytest.mark.parametrize("form", [steps, as_object])
def test_the_reader_in_c_leaves_a_short_sequence_to_the_one_that_names_it(form: Callable[[int], Any]) -> None:
    def read(*counts: int) -> Any:
        body = orjson.dumps({"sequences": [form(count) for count in counts]})
        return fast_json.read(body, OneModel(LEAST).find, max_sequences=64, layout=PREDICT)  # type: ignore[arg-type]

    assert all(read(*counts) is not None for counts in ((3,), (3, 3), (8, 4, 3)))
    assert all(read(*counts) is None for counts in ((2,), (3, 2), (2, 3), (8, 1, 3)))


@pytest.mark.parametrize("long", ["head", "tail", "window"])
def test_a_long_sequence_never_leaves_a_part_that_is_too_short(long: str) -> None:
    rules = manifest(min_length=3, max_length=4, long=long)
    assert problems({"sequences": [steps(2)]}, rules) == [("/sequences/0", WHY)]
    for length in range(3, 14):
        (item,) = json_body.decode(
            orjson.dumps({"sequences": [steps(length)]}),
            OneModel(rules).find,  # type: ignore[arg-type]
            max_sequences=64,
        ).items
        parts = [len(part) for _, part in answers.windows(item.steps, rules.max_length)]
        assert min(parts) >= 3
        assert len(parts) == 1 or set(parts) == {4}


async def test_predict_refuses_it_as_json_and_as_raw_steps() -> None:
    async with serving(model(LEAST)) as service:
        answer = await service.predict({"sequences": [steps(4), steps(2)]})
        assert answer.status_code == 422
        assert answer.json()["errors"] == [{"pointer": "/sequences/1", "detail": WHY}]
        assert (await service.predict({"sequences": [steps(3)]})).status_code == 200
        for length, status in ((2, 422), (3, 200)):
            raw = np.ones((length, 2), "<f4")
            headers = {"content-type": "application/octet-stream", "x-lengthwise-shape": f"{length},2"}
            sent = await service.client.post("/predict", content=raw.tobytes(), headers=headers)
            assert sent.status_code == status
            if status == 422:
                assert sent.json()["errors"] == [{"pointer": "", "detail": WHY}]


async def test_the_other_protocols_over_http_refuse_it() -> None:
    async with serving(model(LEAST)) as service:
        short = await service.client.post("/v1/models/sums:predict", json={"instances": [steps(4), steps(2)]})
        assert (short.status_code, short.json()) == (400, {"error": f"/instances/1: {WHY}"})
        rows = np.ones((2, 4, 2), "<f4")
        described = [
            {"name": "values", "datatype": "FP32", "shape": [2, 4, 2], "data": rows.ravel().tolist()},
            {"name": "lengths", "datatype": "INT32", "shape": [2], "data": [4, 2]},
        ]
        infer = await service.client.post("/v2/models/sums/infer", json={"inputs": described})
        assert (infer.status_code, infer.json()) == (400, {"error": f"/inputs/0: row 1: {WHY}"})
        binary = [
            {**one, "parameters": {"binary_data_size": size}} for one, size in zip(described, (64, 8), strict=True)
        ]
        head = orjson.dumps({"inputs": [{k: v for k, v in one.items() if k != "data"} for one in binary]})
        for ends, status in (([4, 2], 400), ([4, 3], 200)):
            sent = await service.client.post(
                "/v2/models/sums/infer",
                content=head + rows.tobytes() + np.array(ends, "<i4").tobytes(),
                headers={"inference-header-content-length": str(len(head))},
            )
            assert sent.status_code == status
            assert status == 200 or WHY in sent.json()["error"]
        alone = {"inputs": [{"name": "values", "datatype": "FP32", "shape": [1, 2, 2], "data": [1, 3, 1, 3]}]}
        assert WHY in (await service.client.post("/v2/models/sums/infer", json=alone)).json()["error"]


@pytest.mark.parametrize("raw", [True, False])
async def test_grpc_refuses_it(raw: bool) -> None:
    rows = np.ones((2, 4, 2), "<f4")
    async with listening(model(LEAST)) as caller:
        error = await caller.refused("ModelInfer", request(raw=raw, values=rows, ends=np.array([4, 2], "<i4")))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert f"row 1: {WHY}" in (error.details() or "")
        answer = await caller.call("ModelInfer", request(raw=raw, values=rows, ends=np.array([4, 3], "<i4")))
        assert answer.model_name == "sums"


async def test_the_service_says_it_where_it_says_the_longest() -> None:
    async with serving(model(LEAST), model(manifest(name="other"))) as service:
        told = (await service.client.get("/healthz")).json()["models"]
        assert {entry["model"]: entry["min_length"] for entry in told} == {"sums": 3, "other": 1}
        config = (await service.client.get("/v2/models/sums/config")).json()
        assert config["parameters"]["min_length"] == {"string_value": "3"}


async def test_the_documents_example_knows_it() -> None:
    async with serving(model(LEAST)) as service:
        paths = (await service.client.get("/openapi.json")).json()["paths"]
        bodies = [
            paths[path]["post"]["requestBody"]["content"]["application/json"]["examples"]["sums/1"]["value"]
            for path in ("/predict", "/v2/models/{model}/versions/{version}/infer")
        ]
        assert (await service.predict(bodies[0])).status_code == 200
    assert bodies[1]["inputs"][1]["data"] == [4, 3]


def test_a_model_in_python_refuses_it_and_says_its_bounds() -> None:
    loaded = lengthwise.Model(OpenModel(model(LEAST), BatchLimits(), 1))
    assert (loaded.min_length, loaded.max_length) == (3, 8)
    assert "3 to 8 steps" in repr(loaded)
    assert "at most 1024 steps" in repr(lengthwise.Model(OpenModel(model(manifest()), BatchLimits(), 1)))
    with pytest.raises(InvalidSequences) as raised:
        loaded.predict([steps(3), steps(2), np.ones((2, 2))])
    assert [(one.pointer, one.detail) for one in raised.value.problems] == [
        ("/sequences/1", WHY),
        ("/sequences/2", WHY),
    ]
    assert [prediction.length for prediction in loaded.predict([steps(3), steps(8)])] == [3, 8]


def test_score_reports_the_record_and_goes_on_where_asked(tmp_path: Path) -> None:
    records = tmp_path / "in.jsonl"
    records.write_text("".join(json.dumps({"id": f"r{n}", "steps": steps(n)}) + "\n" for n in (3, 2, 8)))
    out = tmp_path / "out"
    with PredictionFile(out, exact=True) as scored:
        run = ScoringRun(OpenModel(model(LEAST), BatchLimits(), 1), attention=False, stop=False)
        run.score(records, scored, Console(file=io.StringIO()), resume=False)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line.get("length") for line in found] == [3, None, 8]
    assert found[1] == {"id": "r2", "error": f"{records}:2: {WHY}"}


def test_a_load_sends_no_shorter_sequences() -> None:
    entry = {"model": "m", "version": "1", "input": "values", "features": 1, "max_length": 9, "min_length": 7}
    with small_server(SmallServer(models=[entry])) as target:
        found = remote.model(target)
    assert found == remote.RemoteModel(Input("values", 1), 9, 7)
    drawn, name = BenchOptions(lengths="uniform:1,20", request_count=50).sequences_for(found)
    assert {*map(len, drawn)} == {7, 8, 9}
    assert name == "uniform:1,20 cut to 7-9 steps"


class RaisesWhenShort(Session):
    """Stands for a graph of an unpadded convolution: raises for a narrow batch, and notes every length."""

    def __init__(self, least: int) -> None:
        self.least = least
        self.provider = CPU_LABEL
        self.kernels = "numpy"
        self.clock = time.thread_time
        self._slots = []
        self.seen: set[int] = set()

    def run(self, batch: PaddedBatch, outputs: object = ("logits",)) -> Outputs:
        if batch.width < self.least:
            raise RuntimeError("kernel larger than the input")
        self.seen |= set(batch.lengths.tolist())
        rows = [row[:length].sum() for row, length in zip(batch.steps, batch.lengths, strict=True)]
        return Outputs(np.array(rows, np.float32)[:, None] * np.arange(3, dtype=np.float32), None)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("least", [2, 7, 30, 64])
def test_a_verification_draws_none_that_is_shorter(least: int) -> None:
    rules = manifest(min_length=least, max_length=64, attention=False)
    session = RaisesWhenShort(least)
    cases = measure_cases(lambda _: session, rules, lambda batch: session.run(batch).logits)
    assert promises.failures(cases) == []
    assert (min(session.seen), max(session.seen)) == (least, 64)
    assert f"length {least}, against the model itself" in {case.name for case in cases}
    verifier.run_odd_values(session, rules)
    verifier.measure_cost(
        session, rules, BatchLimits(rows=4, padded_steps=256), stopping=Stopping(), budget_seconds=0.01
    )
    assert min(session.seen) == least


def test_lengths_of_a_verification_count_from_the_least() -> None:
    assert lengths_for(manifest(max_length=9), (1, 2, 5, 10)) == [1, 2, 5]
    assert lengths_for(LEAST, (1, 2, 5, 10)) == [3, 4, 7]
    assert lengths_for(manifest(min_length=8, max_length=8), (1, 2, 5)) == [8]


def test_golden_sequences_shorter_than_the_model_accepts_are_an_error(tmp_path: Path) -> None:
    zeros = np.zeros(3, np.float32)
    Golden((np.zeros((3, 2), np.float32), np.zeros((2, 2), np.float32)), (zeros, zeros)).write(tmp_path / "golden.npz")
    assert len(Golden.read(tmp_path / "golden.npz", manifest(min_length=2)).sequences) == 2
    with pytest.raises(VerificationError):
        Golden.read(tmp_path / "golden.npz", LEAST)


def test_on_a_device_no_shape_and_no_filler_is_shorter() -> None:
    limits = BatchLimits(rows=8, padded_steps=512)
    costs = CostTable([1, 8], [12, 64], np.array([[1.0, 4.0], [2.0, 8.0]]))
    buckets = choose(costs, limits, max_length=64, min_length=9, multiple=4)
    assert min(buckets.widths) == buckets.padded_width(9) == 12
    assert min(width for _, width in buckets.shapes()) == 12
    assert (buckets.min_length, Buckets((4,), (1,), limits).min_length) == (9, 1)
    batch = pad([np.ones((9, 2), np.float32)], width=12, rows=4, filler_length=9)
    assert batch.lengths.tolist() == [9, 9, 9, 9]
    assert (batch.fillers, batch.valid_steps) == (3, 9)
