"""Static values and further sequences of a call: read by name or in order, refused at their pointers, answered."""

import io
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pandas
import pytest
from rich.console import Console

import lengthwise
from lengthwise.batching.limits import BatchLimits
from lengthwise.bench import workload
from lengthwise.bench.remote import RemoteModel
from lengthwise.bench.workload import Input, make_sequences
from lengthwise.commands.score import ScoreOptions, ScoringRun
from lengthwise.datasets import arrays, dataset
from lengthwise.datasets.column_roles import ColumnNames
from lengthwise.datasets.input_sequences import InputSequence
from lengthwise.decoding import fast_json, json_body, static_values, validation
from lengthwise.decoding.calls import Call, Problems
from lengthwise.errors import ConfigurationError, InvalidRequest, InvalidSequences
from lengthwise.grpc import codec
from lengthwise.grpc import open_inference_pb2 as pb
from lengthwise.padding import Sample
from lengthwise.protocols import tensor_specs
from lengthwise.protocols import tensors as tensors_module
from lengthwise.protocols.tensor_elements import elements_of as elements
from lengthwise.protocols.tensors import InputTensor
from lengthwise.protocols.tensors import read as read_tensors
from lengthwise.runtime.manifest import Manifest, SequenceInput, StaticInput
from lengthwise.scoring.opened import OpenModel
from lengthwise.scoring.prediction_file import PredictionFile
from tests.fuzz import json_readers
from tests.support import sample_models
from tests.support.numpy_models import Service, serving
from tests.support.sample_models import manifest

STATIC = manifest(static=True)
OF_STEPS = manifest(static=True, missing="handled")  # missing values in the steps, and none beside them
TAKES_MISSING = Manifest.model_validate(
    OF_STEPS.model_dump() | {"input": {"features": 2, "static": sample_models.STATIC | {"missing": True}}}
)
UNNAMED = manifest(static=True).model_dump() | {"input": {"features": 2, "static": {"count": 2}}}
PAIR = manifest(second=True)
BOTH = manifest(static=True, second=True)
STEPS = [[1.0, 2.0], [3.0, 4.0]]


def decode(sequences: list[Any], of: Manifest = STATIC) -> Call:
    served: Any = type("Served", (), {"manifest": of})
    return json_body.decode(json.dumps({"sequences": sequences}).encode(), lambda *_: served, max_sequences=1000)


def static(value: Any, of: Manifest = STATIC) -> list[float]:
    (item,) = decode([{"steps": STEPS, "static": value}], of).items
    assert isinstance(item.steps, Sample)
    values: list[float] = item.steps.beside["static"].tolist()
    return values


def problems(item: Any, of: Manifest = STATIC) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        decode([item], of)
    return {problem.pointer.removeprefix("/sequences/0"): problem.detail for problem in caught.value.problems}


@pytest.mark.parametrize(
    "value",
    [
        [63.0, 1, "fan"],
        [63, 1.0, 1],
        {"age": 63.0, "sex": 1, "type": "fan"},
        {"type": 1, "sex": 1, "age": 63},
    ],
)
def test_static_values_are_read_in_order_or_by_name(value: Any):
    assert static(value) == [63.0, 1.0, 1.0]


def test_a_missing_static_value_is_null_or_left_out():
    for value in ([None, 1, "pump"], {"age": None, "sex": 1, "type": 0}, {"sex": 1, "type": 0}):
        np.testing.assert_array_equal(static(value, TAKES_MISSING), [np.nan, 1, 0])


def test_a_missing_static_value_is_taken_only_where_the_manifest_says_so():
    (found,) = problems({"steps": STEPS, "static": [None, 1, "fan"]}, OF_STEPS).items()
    assert found == (
        "/static/0",
        "is null or not there: the model beside/1 refuses missing values among the static ones; to allow them, train "
        "it with `missing` in its spec",
    )


@pytest.mark.parametrize("of", [STATIC, OF_STEPS, TAKES_MISSING], ids=["refuse", "steps", "static"])
@pytest.mark.parametrize("value", [[1, 1, None], {"age": 1, "sex": 1}])
def test_a_category_is_never_missing(of: Manifest, value: Any):
    (found,) = problems({"steps": STEPS, "static": value}, of).items()
    assert found[0] in ("/static/2", "/static/type")
    assert found[1] == "is null or not there: a category is never missing, it must be one of pump, fan, valve"


@pytest.mark.parametrize(
    ("value", "pointer", "said"),
    [
        ([63.0, 1], "", "must be 3 static values (age, sex, type), a list, or an object by name; this has 2"),
        ("63", "", "must be 3 static values (age, sex, type), a list, or an object by name; got a string"),
        (None, "", "got null"),
        ([None, 1, "fan"], "/0", "is null or not there: the model beside/1 refuses missing values"),
        ({"sex": 1, "type": 0}, "/age", "is null or not there"),
        ({"agee": 1, "age": 1, "sex": 1, "type": 0}, "/agee", "unknown field; did you mean age?"),
        ([1e39, 1, "fan"], "/0", "is beyond the range of float32"),
        (["63", 1, "fan"], "/0", "must be a number, got a string"),
        ([True, 1, "fan"], "/0", "must be a number, got a boolean"),
        ([1, 1, "fam"], "/2", "must be one of pump, fan, valve, or its index from 0 to 2; did you mean fan?"),
        ({"age": 1, "sex": 1, "type": "fam"}, "/type", "did you mean fan?"),
        ([1, 1, 3], "/2", "must be one of pump, fan, valve, or its index from 0 to 2"),
        ([1, 1, 0.5], "/2", "must be one of"),
        ([1, 1, True], "/2", "must be one of"),
    ],
)
def test_a_wrong_static_value_is_named_at_its_pointer(value: Any, pointer: str, said: str):
    (found,) = problems({"steps": STEPS, "static": value}).items()
    assert found[0] == f"/static{pointer}"
    assert said in found[1]


def with_categories(*texts: str) -> Manifest:
    of_kind = {"count": 1, "names": ["kind"], "categories": {"kind": texts}}
    return Manifest.model_validate(STATIC.model_dump() | {"input": {"features": 2, "static": of_kind}})


@pytest.mark.parametrize(
    ("texts", "value", "index"),
    [
        (("1", "2", "3"), "1", 0),
        (("1", "2", "3"), 1, 0),
        (("1", "2", "3"), 1.0, 0),
        (("3", "2", "1"), 3, 0),
        (("1.0", "2.0"), 1, 0),
        (("1.0", "2.0"), 2.0, 1),
        (("01", "02"), 2, 1),
        (("1", "01"), 1, 0),
        (("0", "unknown"), "unknown", 1),
        (("none", "mild"), 1, 1),
        (("none", "mild"), 1.0, 1),
    ],
)
def test_a_number_is_the_category_of_its_text_before_an_index(texts: tuple[str, ...], value: Any, index: int):
    assert static([value], with_categories(*texts)) == [index]


@pytest.mark.parametrize(
    ("texts", "value"),
    [
        (("1", "2", "3"), 0),
        (("1", "2", "3"), 4.0),
        (("1", "2", "3"), "4"),
        (("1", "01"), 1.0),  # either
        (("7", "unknown"), 1),
        (("1", "2"), True),
        (("1", "2"), [1]),
        (("1", "2"), {"a": 1}),
    ],
)
def test_an_index_is_refused_where_a_category_is_a_number(texts: tuple[str, ...], value: Any):
    (found,) = problems({"steps": STEPS, "static": [value]}, with_categories(*texts)).items()
    assert found == ("/static/0", f"must be one of {', '.join(texts)}")


def test_tables_lists_and_tensors_have_the_same_categories(tmp_path: Path):
    of = with_categories("1", "2", "3")
    (tmp_path / "d.csv").write_text("id,x,y,kind\na,1,2,2\na,3,4,2\n")
    (entry,) = dataset.entries(tmp_path / "d.csv", reading=dataset.Reading(ColumnNames(static=("kind",))))
    table = pandas.DataFrame({"id": ["a", "a"], "x": [1.0, 3], "y": [2.0, 4]})
    tables = [table.assign(kind=value) for value in (2, 2.0, "2")]
    read = [arrays.item(InputSequence(entry.steps, static=entry.static), of)]
    read += [item for one in tables for item in arrays.items_or_reasons(one, of)]
    read += [item for value in (2, "2") for item in arrays.items_or_reasons([STEPS], of, static=[[value]])]
    assert [one.steps.beside["static"].tolist() for one in read] == [[1.0]] * 6
    assert [one.steps.beside["static"].tolist() for one in read_static(np.float32([[1], [0]]), of=of).items] == [
        [1],
        [0],
    ]


@pytest.mark.skipif(not fast_json.COMPILED, reason="the module in C is not built")
@pytest.mark.parametrize("tokens", [False, True], ids=["values", "tokens"])
@pytest.mark.parametrize(
    ("items", "in_c"),
    [
        ([{"steps": STEPS, "static": [1, -2.5e3]}], True),
        ([{"static": [1.5, 0], "id": "a", "steps": STEPS}, {"steps": STEPS[:1], "static": [3, 1e-50]}], True),
        ([{"steps": STEPS, "static": [1, 1e39]}], False),
        ([{"steps": STEPS, "static": [1, None]}], False),
        ([{"steps": STEPS, "static": [1]}], False),
        ([{"steps": STEPS, "static": [1, 2, 3]}], False),
        ([{"steps": STEPS, "static": [True, 2]}], False),
        ([{"steps": STEPS, "static": {"a": 1, "b": 2}}], False),
        ([{"steps": STEPS, "static": [1, 2]}, STEPS], False),
        ([{"steps": STEPS, "static": [1, 2]}, {"steps": STEPS}], False),
        ([{"steps": STEPS, "static": [1, 2], "other": 1}], False),
    ],
)
def test_numbers_beside_steps_are_read_in_c_as_in_python(items: list[Any], in_c: bool, tokens: bool):
    step = {"kind": "tokens", "vocabulary": 9} if tokens else {"features": 2}
    of = Manifest.model_validate(UNNAMED | {"input": step | {"static": {"count": 2}}, "missing": "refuse"})
    served: Any = type("Served", (), {"manifest": of})
    body = json.dumps({"sequences": items}).replace(json.dumps(STEPS), "[3, 4]" if tokens else json.dumps(STEPS))
    sent = body.replace(json.dumps(STEPS[:1]), "[5]" if tokens else json.dumps(STEPS[:1])).encode()
    read = fast_json.read(sent, lambda *_: served, max_sequences=9)
    assert (read is not None) == in_c
    if read is not None:
        slow = validation.read(sent, lambda *_: served, max_sequences=9)
        for one, other in zip(read.items, slow.items, strict=True):
            assert one._replace(steps=0) == other._replace(steps=0)
            assert one.steps.steps.tobytes() == other.steps.steps.tobytes()
            assert one.steps.beside["static"].tobytes() == other.steps.beside["static"].tobytes()


@pytest.mark.skipif(not fast_json.COMPILED, reason="the module in C is not built")
@pytest.mark.parametrize("kind", ["two", "two, tokens", "two, static"])
def test_several_sequences_of_an_item_are_read_in_c(kind: str):
    served: Any = type("Served", (), {"manifest": json_readers.SEVERAL[kind]})
    tokens = kind == "two, tokens"
    first, second = ([3, 4], [5]) if tokens else (STEPS, [1.5, [2]] if kind == "two, static" else STEPS[:1])
    beside = {"static": [1, -2.5e3]} if kind == "two, static" else {}
    items = [{"inputs": {"a": first, "b": second}}, {"id": "x", "inputs": {"b": second, "a": first[:1]}}]
    sent = json.dumps({"sequences": [item | beside for item in items]}).encode()
    read = fast_json.read(sent, lambda *_: served, max_sequences=9)
    assert read is not None
    assert json_readers.shown(read) == json_readers.shown(validation.read(sent, lambda *_: served, max_sequences=9))


@pytest.mark.parametrize(
    ("sent", "index"),
    [
        ("9007199254740993", 1),  # no float64
        ("2.0", 2),
        ("9007199254740994", None),
        *(("0.5", None), ("Infinity", None), ("NaN", None), ("sNaN", None), ("1e400", None)),
    ],
)
def test_a_decimal_is_the_category_of_all_its_digits(sent: str, index: int | None):
    problems = Problems()
    of = with_categories("9007199254740992", "9007199254740993", "2")
    read = static_values.read([Decimal(sent)], "", of, problems)
    assert problems.total == (index is None)
    assert index is None or (read is not None and read.tolist() == [index])


@pytest.mark.parametrize("twice", ["a", "b"])
def test_a_sequence_of_an_item_that_is_there_twice_is_refused(twice: str):
    served: Any = type("Served", (), {"manifest": json_readers.SEVERAL["two"]})
    sent = b'{"sequences": [{"inputs": {"a": [[1, 2]], "%s": [[3, 4]]}}]}' % twice.encode()
    again = sent.replace(b'"a": ', b'"b": [[5, 6]], "a": ', 1)
    for text in (again, sent) if twice == "a" else (again,):
        with pytest.raises(InvalidRequest, match=f"the key '{twice}' stands twice"):
            json_body.decode(text, lambda *_: served, max_sequences=1)


@pytest.mark.parametrize("text", [b'"static": [1, 2], "static": [3, 4]', b'"static": [1, 2], "\\u0073tatic": [3, 4]'])
def test_static_values_that_are_there_twice_are_refused(text: bytes):
    served: Any = type("Served", (), {"manifest": Manifest.model_validate(UNNAMED)})
    with pytest.raises(InvalidRequest, match="static"):
        json_body.decode(b'{"sequences": [{"steps": [[1, 2]], %s}]}' % text, lambda *_: served, max_sequences=1)


def test_a_sequence_without_its_static_values_is_refused():
    assert problems(STEPS) == {"": "must be an object with static, steps, got an array"}
    assert problems({"steps": STEPS}) == {"": "'static' is missing: the model takes 3 static values (age, sex, type)"}
    large = [[1.0, 2.0]] * 60
    with pytest.raises(InvalidRequest) as caught:  # where C would read the steps
        decode([large] * 200)
    assert (caught.value.total, caught.value.problems[0].pointer) == (200, "/sequences/0")


def test_static_values_without_names_are_no_object():
    of = Manifest.model_validate(UNNAMED)
    assert static([1, 2], of) == [1, 2]
    assert problems({"steps": STEPS, "static": {"a": 1, "b": 2}}, of)["/static"] == (
        "must be 2 static values, a list; got an object"
    )


@pytest.mark.parametrize("field", ["static", "inputs"])
def test_a_model_without_further_inputs_refuses_them(field: str):
    found = problems({"steps": STEPS, field: [1.0]}, manifest())
    assert [*found] == [f"/{field}"]
    assert "unknown field" in found[f"/{field}"]


def test_several_sequences_are_read_by_their_names():
    (item,) = decode([{"id": "a", "inputs": {"body": [1, 2, 49], "title": STEPS}}], PAIR).items
    assert isinstance(item.steps, Sample)
    np.testing.assert_array_equal(item.steps.steps, STEPS)
    np.testing.assert_array_equal(item.steps.others["body"], [1, 2, 49])
    assert (item.id, item.steps.lengths) == ("a", [2, 3])


@pytest.mark.parametrize(
    ("item", "pointer", "said"),
    [
        (STEPS, "", "must be an object with inputs, got an array"),
        ({"inputs": [STEPS]}, "/inputs", "must be an object with title, body, got an array"),
        ({"id": "a"}, "/inputs", "must be an object with title, body, got null"),
        ({"inputs": {"title": STEPS}}, "/inputs/body", "is missing"),
        ({"inputs": {"title": STEPS, "body": [1], "bodi": [1]}}, "/inputs/bodi", "did you mean body?"),
        ({"inputs": {"title": STEPS, "body": [1, 50]}}, "/inputs/body/1", "is not a token id"),
        ({"inputs": {"title": [[1.0]], "body": [1]}}, "/inputs/title/0", "the model takes 2 features"),
        ({"inputs": {"title": [], "body": [1]}}, "/inputs/title", "at least one step"),
        ({"inputs": {"title": STEPS, "body": [1] * 49}}, "/inputs/body", "takes at most 48"),
        ({"inputs": {"title": STEPS * 33, "body": [1]}}, "/inputs/title", "takes at most 64"),
        ({"inputs": {"title": STEPS, "body": [1]}, "step_mask": [True]}, "/step_mask", "unknown field"),
        ({"inputs": {"title": STEPS, "body": [1]}, "static": [1]}, "/static", "unknown field"),
    ],
)
def test_a_wrong_sequence_of_several_is_named_at_its_pointer(item: Any, pointer: str, said: str):
    (found,) = problems(item, PAIR).items()
    assert found[0] == pointer
    assert said in found[1]


def item(seed: int, of: Manifest) -> dict[str, Any]:
    """An item of a model that takes all there is."""
    random = np.random.default_rng(seed)
    steps = random.standard_normal((seed % 7 + 1, 2)).astype(np.float32).tolist()
    made: dict[str, Any] = {"id": str(seed)}
    if of.input.static is not None:
        made["static"] = [float(random.integers(90)), int(random.integers(2)), ["pump", "fan", "valve"][seed % 3]]
    if of.input.sequences:
        return made | {"inputs": {"title": steps, "body": random.integers(0, 50, seed % 5 + 1).tolist()}}
    return made | {"steps": steps}


def logits(sent: dict[str, Any], of: Manifest) -> Any:
    """The logits of an item, on paper."""
    (read,) = decode([sent], of).items
    return sample_models.expected(of, read.steps)


def probabilities(sent: dict[str, Any], of: Manifest) -> Any:
    powers = np.exp(logits(sent, of) - logits(sent, of).max())
    return powers / powers.sum()


@pytest.mark.parametrize("of", [STATIC, PAIR, BOTH], ids=["static", "pair", "both"])
@pytest.mark.parametrize("path", ["/predict", "/v1/models/beside:predict"])
async def test_each_answer_is_of_its_own_static_values(of: Manifest, path: str):
    items = [item(seed, of) for seed in range(20)]
    field = "sequences" if path == "/predict" else "instances"
    async with serving(sample_models.loaded(of)) as service:
        answer = await service.client.post(path, json={field: items})
        predictions = answer.json()["predictions"]
    for sent, prediction in zip(items, predictions, strict=True):
        np.testing.assert_allclose(prediction["probabilities"], probabilities(sent, of), atol=1e-5)
        assert prediction["id"] == sent["id"]
    lengths = [prediction["length"] for prediction in predictions]
    if of.input.sequences:
        assert lengths == [{name: len(steps) for name, steps in sent["inputs"].items()} for sent in items]
    else:
        assert lengths == [len(sent["steps"]) for sent in items]


async def test_a_wrong_value_is_a_problem_with_its_pointer():
    async with serving(sample_models.loaded(STATIC)) as service:
        answer = await service.predict({"sequences": [item(1, STATIC), item(2, STATIC) | {"static": [1, 2, "fam"]}]})
        assert answer.status_code == 422
        (error,) = answer.json()["errors"]
    assert error["pointer"] == "/sequences/1/static/2"


async def test_octets_have_no_static_values():
    async with serving(sample_models.loaded(STATIC)) as service:
        answer = await octets(service)
    assert answer.status_code == 422
    assert "static" in answer.text


async def octets(service: Service) -> Any:
    headers = {"content-type": "application/octet-stream", "x-lengthwise-shape": "2,2"}
    return await service.client.post("/predict", content=np.ones((2, 2), "<f4").tobytes(), headers=headers)


def tensors(items: list[dict[str, Any]], of: Manifest) -> dict[str, tuple[str, Any]]:
    """The input tensors of the items, by name: datatype, and an array whose rows are padded with junk."""
    calls = [read.steps for read in decode(items, of).items]
    made: dict[str, tuple[str, Any]] = {}
    for index, (_, steps, lengths) in enumerate(tensor_specs.sequences_of(of)):
        rows = [(one.others[steps.name] if index else one.steps) for one in calls]
        rectangle = np.full((len(rows), 9, *rows[0].shape[1:]), 7, rows[0].dtype)
        for row, one in zip(rectangle, rows, strict=True):
            row[: len(one)] = one
        made[lengths.name] = "INT32", np.array([[len(one)] for one in rows], np.int32)
        made[steps.name] = steps.datatypes[0], rectangle
    if of.input.static is not None:
        made["static"] = "FP32", np.stack([one.beside["static"] for one in calls])
    return made


def infer_body(sent: dict[str, tuple[str, Any]], *, binary: bool) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of an inference call of v2."""
    inputs = [
        {"name": name, "datatype": datatype, "shape": array.shape}
        | ({"parameters": {"binary_data_size": array.nbytes}} if binary else {"data": array.tolist()})
        for name, (datatype, array) in sent.items()
    ]
    head = json.dumps({"inputs": inputs}).encode()
    if not binary:
        return head, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    return b"".join([head, *(array.tobytes() for _, array in sent.values())]), headers


@pytest.mark.parametrize("of", [STATIC, PAIR, BOTH], ids=["static", "pair", "both"])
@pytest.mark.parametrize("binary", [False, True])
async def test_tensors_are_read_by_their_names(of: Manifest, binary: bool):
    items = [item(seed, of) for seed in range(20)]
    async with serving(sample_models.loaded(of)) as service:
        for _ in range(2):  # a known head, too
            body, headers = infer_body(tensors(items, of), binary=binary)
            answer = await service.client.post("/v2/models/beside/infer", content=body, headers=headers)
            outputs = {output["name"]: output for output in answer.json()["outputs"]}
            rows = np.array(outputs["probabilities"]["data"]).reshape(20, 2)
            np.testing.assert_allclose(rows, [probabilities(sent, of) for sent in items], atol=1e-5)


@pytest.mark.parametrize("of", [STATIC, PAIR, BOTH], ids=["static", "pair", "both"])
async def test_grpc_takes_the_same_tensors(of: Manifest):
    items = [item(seed, of) for seed in range(6)]
    for raw in (False, True):
        message = pb.ModelInferRequest(model_name="beside")
        for name, (datatype, array) in tensors(items, of).items():
            tensor = message.inputs.add(name=name, datatype=datatype, shape=array.shape)
            field = {"FP32": "fp32_contents", "INT64": "int64_contents", "INT32": "int_contents"}[datatype]
            if raw:
                message.raw_input_contents.append(array.tobytes())
            else:
                getattr(tensor.contents, field).extend(array.ravel().tolist())
        async with serving(sample_models.loaded(of)) as service:
            call, _ = codec.decode(message.SerializeToString(), service.serving)
        for sent, read in zip(items, call.items, strict=True):
            np.testing.assert_allclose(sample_models.expected(of, read.steps), logits(sent, of), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "change", "pointer", "said"),
    [
        ("static", None, "/inputs", "the input 'static' is missing"),
        ("body", None, "/inputs", "the input 'body' is missing"),
        ("body_lengths", None, "/inputs", "2 rows need 'body_lengths'"),
        ("static", lambda array: array[:, :2], "/inputs/4/shape", "must be [-1, 3]"),
        ("static", lambda array: array[:1], "/inputs/4", "must have 2 rows, as the first sequence, it has 1"),
        ("static", lambda array: array * np.nan, "/inputs/4", "row 0, value 0: is null or not there"),
        ("static", lambda array: array + 0.5, "/inputs/4", "row 0, value 2: must be one of pump, fan, valve"),
        ("body", lambda array: array + 50, "/inputs/3", "row 0: step 0 is not a token id"),
        ("body_lengths", lambda array: array * 0, "/inputs/2", "row 0: a length is from 1 to the width, 9"),
        ("title_lengths", lambda array: array[:1], "/inputs/0", "must have one entry for each of the 2 rows"),
    ],
)
async def test_a_wrong_tensor_of_several_is_named(name: str, change: Any, pointer: str, said: str):
    sent = tensors([item(1, BOTH), item(2, BOTH)], BOTH)
    datatype, array = sent[name]
    if change is None:
        del sent[name]
    else:
        sent[name] = datatype, change(array)
    served: Any = type("Served", (), {"manifest": BOTH})
    inputs = [
        InputTensor(name, datatype, array.shape, np.ascontiguousarray(array).tobytes(), f"/inputs/{index}")
        for index, (name, (datatype, array)) in enumerate(sent.items())
    ]
    with pytest.raises(InvalidRequest) as caught:
        read_tensors(served, inputs, [], {}, Problems(), max_sequences=10)
    assert (pointer, True) in {(problem.pointer, said in problem.detail) for problem in caught.value.problems}


def read_static(array: Any, pointer: str = "/inputs/2", of: Manifest = STATIC) -> Call:
    """The call of two rows of steps, beside which a tensor `static` is."""
    served: Any = type("Served", (), {"manifest": of})
    sent = {"values": ("FP32", np.ones((2, 3, 2), np.float32)), "lengths": ("INT32", np.int32([[3], [1]]))}
    inputs = [InputTensor(name, kind, one.shape, one.tobytes(), "") for name, (kind, one) in sent.items()]
    kind = {"f": "FP32", "d": "FP64"}[array.dtype.char]
    inputs.append(InputTensor("static", kind, array.shape, array.tobytes(), pointer))
    return read_tensors(served, inputs, [], {}, Problems(), max_sequences=10).call


def said_of_tensor(array: Any, of: Manifest = STATIC) -> list[tuple[str, str]]:
    with pytest.raises(InvalidRequest) as caught:
        read_static(array, of=of)
    return [(problem.pointer, problem.detail) for problem in caught.value.problems]


def test_rows_of_a_static_tensor_are_counted_before_they_are_read(monkeypatch: pytest.MonkeyPatch):
    read: list[str] = []
    monkeypatch.setattr(
        tensors_module, "elements_of", lambda tensor, *_: read.append(tensor.name) or elements(tensor, *_)
    )
    said = said_of_tensor(np.full((200_000, 3), np.nan, np.float32))
    assert said == [("/inputs/2", "must have 2 rows, as the first sequence, it has 200000")]
    assert read == ["lengths", "values"]


def test_a_wrong_static_tensor_is_not_said_to_be_missing():
    assert said_of_tensor(np.ones((2, 2), np.float32)) == [
        ("/inputs/2/shape", "must be [-1, 3], -1 being any size from 1")
    ]


@pytest.mark.parametrize(
    ("of", "value", "column", "said"),
    [
        (STATIC, np.nan, 0, "row 1, value 0: is null or not there: the model beside/1 refuses"),
        (STATIC, np.inf, 1, "row 1, value 1: is beyond the range of float32"),
        (STATIC, 1e39, 1, "row 1, value 1: is beyond the range of float32"),
        (STATIC, 3, 2, "row 1, value 2: must be one of pump, fan, valve, as its index from 0 to 2"),
        (STATIC, -1, 2, "row 1, value 2: must be one of pump, fan, valve"),
        (STATIC, 0.5, 2, "row 1, value 2: must be one of pump, fan, valve"),
        (OF_STEPS, np.nan, 0, "row 1, value 0: is null or not there: the model beside/1 refuses missing values"),
        (TAKES_MISSING, np.nan, 2, "row 1, value 2: is null or not there: a category is never missing"),
    ],
)
def test_a_wrong_value_of_a_static_tensor_is_named(of: Manifest, value: float, column: int, said: str):
    array = np.ones((2, 3))
    array[1, column] = value
    ((pointer, detail),) = said_of_tensor(array, of)
    assert pointer == "/inputs/2"
    assert detail.startswith(said)


def test_a_static_tensor_may_have_missing_numbers():
    (_, second) = read_static(np.float32([[1, 2, 0], [np.nan, 2, 1]]), of=TAKES_MISSING).items
    np.testing.assert_array_equal(second.steps.beside["static"], np.float32([np.nan, 2, 1]))


def test_a_static_tensor_of_one_value_may_have_one_axis():
    of = Manifest.model_validate(STATIC.model_dump() | {"input": {"features": 2, "static": {"count": 1}}})
    (_, second) = read_static(np.float32([4, 5]), of=of).items
    assert second.steps.beside["static"].tolist() == [5]
    ((_, said),) = said_of_tensor(np.float32([4, 5, 6]), of)
    assert said == "must have 2 rows, as the first sequence, it has 3"


def test_all_wrong_values_of_a_static_tensor_are_counted():
    with pytest.raises(InvalidRequest) as caught:
        read_static(np.full((2, 3), np.nan, np.float32))
    assert caught.value.total == 6


async def test_the_service_says_what_stands_beside_a_sequence():
    async with serving(sample_models.loaded(BOTH)) as service:
        metadata = (await service.client.get("/v2/models/beside")).json()
        (health,) = (await service.client.get("/healthz")).json()["models"]
        config = (await service.client.get("/v2/models/beside/config")).json()
        document = (await service.client.get("/openapi.json")).json()
        for path, call in (("/predict", "predict"), ("/v2/models/{model}/infer", "v2")):
            content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
            for example in content["examples"].values():
                answer = await service.client.post(path.format(model="beside"), json=example["value"])
                assert answer.status_code == 200, (call, answer.text)
    assert [(tensor["name"], tensor["shape"]) for tensor in metadata["inputs"]] == [
        ("title", [-1, -1, 2]),
        ("title_lengths", [-1, 1]),
        ("body", [-1, -1]),
        ("body_lengths", [-1, 1]),
        ("static", [-1, 3]),
    ]
    assert metadata["parameters"] == {"static": ["age", "sex", "type"]}
    assert health["static"]["categories"] == {"type": ["pump", "fan", "valve"]}
    assert [sequence["name"] for sequence in health["sequences"]] == ["title", "body"]
    assert [tensor["name"] for tensor in config["input"] if tensor.get("optional")] == ["title_lengths", "body_lengths"]
    assert {"static", "sequences"} <= config["parameters"].keys()


@pytest.fixture
def both() -> lengthwise.Model:
    return python_model(BOTH)


def python_model(of: Manifest) -> lengthwise.Model:
    return lengthwise.Model(OpenModel(sample_models.loaded(of), BatchLimits(), 1))


def as_arrays(items: list[dict[str, Any]]) -> tuple[list[Any], list[Any]]:
    """The steps of items with static values, and these."""
    return [np.float32(sent["steps"]) for sent in items], [sent["static"] for sent in items]


@pytest.mark.parametrize(
    "form",
    [
        lambda steps, static: {"sequences": steps, "static": static},
        lambda steps, static: {"sequences": steps, "static": [tuple(one) for one in static]},
        lambda steps, static: {
            "sequences": steps,
            "static": [dict(zip(("age", "sex", "type"), one, strict=True)) for one in static],
        },
        lambda steps, static: {"sequences": steps, "static": pandas.DataFrame(static, columns=["age", "sex", "type"])},
        lambda steps, static: {"sequences": [{"steps": a, "static": b} for a, b in zip(steps, static, strict=True)]},
        lambda steps, static: {
            "sequences": pandas.concat(
                pandas.DataFrame(a, columns=["x", "y"]).assign(id=index, age=b[0], sex=b[1], type=b[2])
                for index, (a, b) in enumerate(zip(steps, static, strict=True))
            )
        },
        lambda steps, static: {
            "sequences": pandas.concat(
                pandas.DataFrame(a, columns=["x", "y"]).assign(run=index, age=b[0], sex=b[1], type=b[2])
                for index, (a, b) in enumerate(zip(steps, static, strict=True))
            ),
            "id": "run",
        },
        lambda steps, static: {
            "sequences": pandas.DataFrame(static, columns=["age", "sex", "type"]).assign(
                x=[one[:, 0].tolist() for one in steps], y=[one[:, 1].tolist() for one in steps]
            )
        },
    ],
    ids=["lists", "tuples", "mappings", "a table", "entries", "a table of steps", "named id", "a table of lists"],
)
def test_python_takes_static_values_in_every_form(form: Any):
    items = [item(seed, STATIC) for seed in range(8)]
    predictions = python_model(STATIC).predict(**form(*as_arrays(items)))
    for sent, prediction in zip(items, predictions, strict=True):
        np.testing.assert_allclose(prediction.probabilities, probabilities(sent, STATIC), atol=1e-5)


def test_python_takes_several_sequences_by_name(both: lengthwise.Model):
    items = [item(seed, BOTH) for seed in range(8)]
    inputs = {
        "title": [np.float32(sent["inputs"]["title"]) for sent in items],
        "body": [np.array(sent["inputs"]["body"]) for sent in items],
    }
    static = [sent["static"] for sent in items]
    for predictions in (
        both.predict(inputs=inputs, static=static),
        both.predict([{"inputs": sent["inputs"], "static": sent["static"]} for sent in items]),
    ):
        for sent, prediction in zip(items, predictions, strict=True):
            np.testing.assert_allclose(prediction.probabilities, probabilities(sent, BOTH), atol=1e-5)
            assert prediction.length == {name: len(steps) for name, steps in sent["inputs"].items()}


@pytest.mark.parametrize(
    ("of", "options", "said"),
    [
        (STATIC, {"sequences": [STEPS]}, "'static' is missing: the model takes 3 static values"),
        (STATIC, {"sequences": [STEPS], "static": []}, "0 static values for 1 sequences"),
        (STATIC, {"sequences": [STEPS], "static": [[1, 2]]}, "static: must be 3 static values"),
        (STATIC, {"sequences": [STEPS], "static": [[1, 2, "fam"]]}, "static/2: must be one of pump"),
        (STATIC, {"sequences": [STEPS], "static": [[np.nan, 2, 0]]}, "static/0: is null or not there"),
        (STATIC, {"sequences": [STEPS], "static": [None]}, "'static' is missing"),
        (
            STATIC,
            {"sequences": [STEPS], "static": [[5.0, np.array([1, 2]), 0]]},
            "static/1: must be a number, got an array",
        ),
        (STATIC, {"sequences": [STEPS], "static": [[5.0, 1, np.array([1, 2])]]}, "static/2: must be one of pump"),
        (STATIC, {"sequences": [STEPS], "static": 5}, "must be a list with an entry for each sequence, or a table"),
        (STATIC, {"sequences": [STEPS], "static": np.array(5)}, "must be a list with an entry for each sequence"),
        (STATIC, {"sequences": [STEPS], "static": {"age": [1]}}, "must be a list with an entry for each sequence"),
        (STATIC, {"sequences": [STEPS], "states": 5}, "must be a list with an entry for each sequence"),
        (PAIR, {"sequences": [STEPS]}, "inputs: must be an object with title, body, got null"),
        (PAIR, {"inputs": {"title": [STEPS]}}, "inputs/body: is missing"),
        (PAIR, {"inputs": {"title": [STEPS], "body": [[1], [2]]}}, "as many of each"),
        (PAIR, {"inputs": {"title": [STEPS], "body": [[70]]}}, "inputs/body: step 0 is not a token id"),
        (PAIR, {"inputs": {"title": [STEPS], "bodi": [[7]]}}, "did you mean body"),
        (manifest(), {"sequences": [STEPS], "static": [[1]]}, "static: unknown field"),
    ],
)
def test_python_says_what_is_wrong_beside_a_sequence(of: Manifest, options: dict[str, Any], said: str):
    with pytest.raises(InvalidSequences, match=re.escape(said)):
        python_model(of).predict(**options)


def test_a_table_of_static_values_may_stand_beside_one_of_steps():
    steps = pandas.DataFrame({"run": [0, 0], "x": [1.0, 3], "y": [2.0, 4]})
    beside = pandas.DataFrame({"age": [63.0], "sex": [1], "type": ["fan"]})
    (answer,) = python_model(STATIC).predict(steps, id="run", static=beside)
    sent = {"steps": STEPS, "static": [63.0, 1, "fan"]}
    np.testing.assert_allclose(answer.probabilities, probabilities(sent, STATIC), atol=1e-5)


async def test_the_client_sends_what_stands_beside_a_sequence():
    async with serving(sample_models.loaded(BOTH)) as service:
        transport = httpx2.ASGITransport(service.app)
        async with lengthwise.AsyncClient("http://service", transport=transport) as client:
            items = [item(seed, BOTH) for seed in range(6)]
            inputs = {name: [sent["inputs"][name] for sent in items] for name in ("title", "body")}
            predictions = await client.predict(inputs=inputs, static=[sent["static"] for sent in items])
            with pytest.raises(InvalidSequences, match="static"):
                await client.predict(inputs=inputs)
    for sent, prediction in zip(items, predictions, strict=True):
        np.testing.assert_allclose(prediction.probabilities, probabilities(sent, BOTH), atol=1e-5)
        assert prediction.length == {name: len(steps) for name, steps in sent["inputs"].items()}


RUN = """id,x,y,age,sex,type
a,1,2,63,1,fan
a,3,4,63,1,fan
b,5,6,40,0,2
c,5,6,,0,2
d,5,6,1,0,2
d,5,6,2,0,2
"""


def scored(of: Manifest, source: Path, **options: Any) -> list[dict[str, Any]]:
    """The lines that `score` writes for a file."""
    run = ScoringRun(OpenModel(sample_models.loaded(of), BatchLimits(), 1), attention=False, stop=False)
    out = source.with_suffix(".out")
    with PredictionFile(out, exact=True) as predictions:
        reading = ScoreOptions(model="m", **options).reading
        run.score(source, predictions, Console(file=io.StringIO()), resume=False, reading=reading)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_score_reads_static_values_from_columns(tmp_path: Path):
    (tmp_path / "d.csv").write_text(RUN)
    lines = scored(STATIC, tmp_path / "d.csv")
    for line, sent in zip(
        lines, [{"steps": STEPS, "static": [63, 1, "fan"]}, {"steps": [[5, 6]], "static": [40, 0, 2]}], strict=False
    ):
        np.testing.assert_allclose(line["probabilities"], probabilities(sent, STATIC), atol=1e-5)
    errors = [line["error"] for line in lines[2:]]
    assert "d.csv:5: static/age: is null or not there" in errors[0]
    assert "d.csv:7: its static value 'age' is '2', and '1' in the first row of its sequence" in errors[1]


def test_score_takes_the_columns_that_are_named(tmp_path: Path):
    of = Manifest.model_validate(STATIC.model_dump() | {"input": {"features": 2, "static": {"count": 3}}})
    (tmp_path / "d.csv").write_text("id,x,y,years,kind,sex\na,1,2,63,2,1\na,3,4,63,2,1\n")
    (line,) = scored(of, tmp_path / "d.csv", static=("years", "sex", "kind"))
    sent = {"steps": STEPS, "static": [63, 1, 2]}
    np.testing.assert_allclose(line["probabilities"], probabilities(sent, of), atol=1e-5)
    again = (tmp_path / "d.csv").rename(tmp_path / "again.csv")
    with pytest.raises(ConfigurationError, match="there is no column 'year'; did you mean years"):
        scored(of, again, static=("year", "sex", "kind"))


def test_score_reads_records_with_all_there_is(tmp_path: Path):
    items = [item(seed, BOTH) for seed in range(5)]
    bad = {"inputs": {"title": STEPS}, "static": [1, 1, 1]}
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(one) + "\n" for one in [*items, bad]))
    *lines, last = scored(BOTH, tmp_path / "d.jsonl")
    for line, sent in zip(lines, items, strict=True):
        np.testing.assert_allclose(line["probabilities"], probabilities(sent, BOTH), atol=1e-5)
        assert line["length"] == {name: len(steps) for name, steps in sent["inputs"].items()}
    assert "d.jsonl:6: inputs/body: is missing" in last["error"]


def test_score_reads_static_values_from_parquet(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    items = [item(seed, STATIC) for seed in range(5)]
    columns = {"id": [sent["id"] for sent in items], "steps": [sent["steps"] for sent in items]}
    columns |= {name: [sent["static"][index] for sent in items] for index, name in enumerate(("age", "sex", "type"))}
    parquet.write_table(pyarrow.table(columns), tmp_path / "d.parquet")
    for line, sent in zip(scored(STATIC, tmp_path / "d.parquet"), items, strict=True):
        np.testing.assert_allclose(line["probabilities"], probabilities(sent, STATIC), atol=1e-5)


async def test_bench_draws_what_a_model_takes():
    async with serving(sample_models.loaded(BOTH)) as service:
        config = (await service.client.get("/v2/models/beside/versions/1/config")).json()
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        model = RemoteModel(
            Input("values", 2),
            64,
            static=StaticInput.model_validate_json(parameters["static"]),
            sequences=tuple(map(SequenceInput.model_validate, json.loads(parameters["sequences"]))),
        )
        random = np.random.default_rng(0)
        lengths = random.integers(1, 60, 30)
        sequences = [model.sequence(steps, random) for steps in make_sequences(lengths, model.step, random)]
        answer = await service.predict(workload.json_body(sequences))
    assert answer.status_code == 200, answer.text
    assert [one["length"]["title"] for one in answer.json()["predictions"]] == lengths.tolist()


ODD_ITEMS = [
    '{"steps": [[1, 2]], "static": [1.5, 2, 0], "static": [9, 9, 0]}',
    '{"steps": [[1, 2]], "steps": [[3, 4]], "static": [1.5, 2, 0]}',
    '{"static": {"age": 1, "sex": 2, "type": "fan", "age": 3}, "steps": [[1, 2]]}',
    '{"steps": [[1, 2]], "static": [1e400, 2, 0]}',
    '{"steps": [[1, 2]], "static": [NaN, 2, 0]}',
    '{"steps": [[1, 2]], "static": [1.5, 2, 0], "step_mask": [true]}',
    '{"steps": [[1, 2]], "id": "a:b\\\\"", "static": [1.5, 2, 0]}',
    '{"steps": [[1, 2]], "id": 7, "static": [1.5, 2, 0]}',
    '{"steps": [[1, 2]], "\\u0069d": "a", "static": [1.5, 2, 0]}',
    '{"steps": [[1, 2]], "id": null, "static": [1.5, 2, 0]}',
    '{"static": [1.5, 2, 0]}',
    '{"steps": [[1, 2]]}',
    "[[1, 2]]",
    '{"steps": [[1, 2]], "static": [[[[1]]]]}',
]


def read_in(reader: Any, body: bytes, of: Manifest) -> Any:
    """What a reader makes of a body: of each item its id, steps and static values; or its problems."""
    served: Any = type("Served", (), {"manifest": of})
    try:
        call = reader(body, lambda *_: served, max_sequences=50)
    except InvalidRequest as error:
        return error.problems
    return [(one.id, one.steps.steps.tobytes(), one.steps.beside["static"].tobytes()) for one in call.items]


@pytest.mark.skipif(not fast_json.COMPILED, reason="the C module was not built")
def test_c_and_python_read_static_values_alike():
    random = np.random.default_rng(0)
    of = Manifest.model_validate(STATIC.model_dump() | {"input": {"features": 2, "static": {"count": 2}}})
    read = 0
    for _ in range(50):
        count = int(random.integers(1, 5))
        sent = [
            {"steps": random.standard_normal((3, 2)).tolist(), "static": (10.0 ** random.uniform(-9, 40, 2)).tolist()}
            | ({"id": f"é{index}:"} if random.random() < 0.5 else {})
            for index in range(count)
        ]
        body = json.dumps({"sequences": sent}).encode()
        assert read_in(json_body.decode, body, of) == read_in(validation.read, body, of)
        read += fast_json.read(body, lambda *_: type("Served", (), {"manifest": of}), max_sequences=9) is not None
    assert read > 10
    for odd in ODD_ITEMS:
        body = f'{{"sequences": [{{"steps": [[1, 2]], "static": [0.5, 1, 2]}}, {odd}]}}'.encode()
        assert read_in(json_body.decode, body, STATIC) == read_in(validation.read, body, STATIC)


def said_of(tmp_path: Path, text: str, **columns: Any) -> list[str]:
    """What is said of a table in a file, and what it is warned of."""
    (tmp_path / "d.csv").write_text(text)
    said: list[str] = []
    reading = dataset.Reading(ColumnNames(**columns), say=said.append, warn=said.append)
    list(dataset.entries(tmp_path / "d.csv", reading=reading))
    return said


def test_columns_that_are_constant_in_all_sequences_are_proposed(tmp_path: Path):
    table = "id,x,age,sex\na,1,3,1\na,2,3,1\nb,1,4,1\nb,2,4,1\n"
    roles, proposal = said_of(tmp_path, table)
    assert "features 'x', 'age', 'sex'" in roles
    assert proposal.endswith("d.csv: age: one value in each sequence; --static age takes them as static values")
    assert len(said_of(tmp_path, table, inputs=("x", "age", "sex"))) == 1
    (of_static,) = said_of(tmp_path, table, static=("age", "sex"))
    assert "feature 'x', static 'age', 'sex'" in of_static
