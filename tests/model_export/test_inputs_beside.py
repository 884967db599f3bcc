"""Models with static values or further sequences beside the first: read, checked, exported, equal to the original."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import lengthwise
from lengthwise.errors import ConfigurationError
from lengthwise.padding import PaddedBatch, Sample, pad
from lengthwise.runtime.manifest import SequenceInput, StaticInput, StepInput
from lengthwise.runtime.session import Session
from lengthwise_export import PublishedModel, check, export
from lengthwise_export.errors import UncheckableError, UnmendableError
from lengthwise_export.onnx_graphs.beside import alone, completed
from lengthwise_export.tracing.call_signature import read_signature

VALUES = StepInput(features=2, static=StaticInput(count=3))
PAIR = StepInput(
    features=2, sequences=(SequenceInput(name="a", features=2), SequenceInput(name="b", vocabulary=9, max_length=50))
)


def last_state(layer: nn.GRU | nn.LSTM, x: Tensor, lengths: Tensor) -> Tensor:
    """`[rows, hidden]`: the state at the last valid step."""
    _, state = layer(pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False))
    return state[0][-1] if isinstance(state, tuple) else state[-1]


def mean_of(steps: Tensor, lengths: Tensor) -> Tensor:
    """`[rows, features]`: the mean over the valid steps."""
    valid = torch.arange(steps.size(1)) < lengths[:, None]
    return torch.where(valid[..., None], steps, 0.0).sum(1) / lengths[:, None]


class Seeded(nn.Module):
    """A module whose weights have a fixed seed."""

    def __init__(self, beside: int = 3, hidden: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.mix = nn.GRU(4, hidden, batch_first=True), nn.Linear(4 + beside, hidden)
        self.kind, self.head = nn.Embedding(5, 4), nn.Linear(hidden + beside, 3)
        self.title, self.body = nn.Embedding(30, 6), nn.Embedding(50, 8)
        self.of_texts, self.of_pair = nn.Linear(14, 3), nn.Linear(2 * hidden, 3)
        self.of_three, self.of_codes = nn.Linear(3 * hidden, 3), nn.Linear(hidden + 2 + 4, 3)
        self.with_covariates, self.of_states = nn.GRU(6, hidden, batch_first=True), nn.Linear(hidden, 3)


class WithStatic(Seeded):
    def forward(self, x: Tensor, lengths: Tensor, static: Tensor) -> Tensor:
        return self.head(torch.cat([last_state(self.rnn, x, lengths), static], 1))


class WithCodes(Seeded):
    def forward(self, x: Tensor, lengths: Tensor, meta: Tensor) -> Tensor:
        codes = self.kind(meta[:, 2].long())
        return self.of_codes(torch.cat([last_state(self.rnn, x, lengths), meta[:, :2], codes], 1))


class WithColumns(Seeded):
    def forward(self, age: Tensor, x: Tensor, lengths: Tensor, kind: Tensor, weight: Tensor) -> Tensor:
        columns = torch.cat([age[:, None], weight[:, None], self.kind(kind)], 1)
        return self.of_codes(torch.cat([last_state(self.rnn, x, lengths), columns], 1))


class FromOtherRows(Seeded):
    def forward(self, x: Tensor, lengths: Tensor, static: Tensor) -> Tensor:
        centred = static - static.mean(0)  # takes another row
        return self.head(torch.cat([last_state(self.rnn, x, lengths), centred], 1))


class MeanOfBroadcast(Seeded):
    def forward(self, x: Tensor, lengths: Tensor, static: Tensor) -> Tensor:
        every_step = torch.cat([x, static[:, None].expand(-1, x.size(1), -1)], 2)
        pooled = self.mix(every_step).relu().mean(1)
        return self.head(torch.cat([pooled, static], 1))


class Unread(Seeded):
    def forward(self, x: Tensor, lengths: Tensor, static: Tensor) -> Tensor:
        return self.head(torch.cat([last_state(self.rnn, x, lengths), 0 * static], 1))


class Pair(Seeded):
    def forward(self, x1: Tensor, x2: Tensor, len1: Tensor, len2: Tensor) -> Tensor:
        first, second = last_state(self.rnn, x1, len1), last_state(self.rnn, x2, len2)
        return self.of_pair(torch.cat([(first - second).abs(), first * second], 1))


class Texts(Seeded):
    def forward(self, title: Tensor, title_lengths: Tensor, body: Tensor, body_lengths: Tensor) -> Tensor:
        return self.joined(mean_of(self.title(title), title_lengths), mean_of(self.body(body), body_lengths))

    def joined(self, title: Tensor, body: Tensor) -> Tensor:
        return self.of_texts(torch.cat([title, body], 1))


class LengthsOfTheFirst(Texts):
    def forward(self, title: Tensor, title_lengths: Tensor, body: Tensor, body_lengths: Tensor) -> Tensor:
        return self.joined(mean_of(self.title(title), title_lengths), mean_of(self.body(body), title_lengths))


class Masks(Texts):
    def forward(self, title: Tensor, title_mask: Tensor, body: Tensor, body_mask: Tensor) -> Tensor:
        return self.joined(mean_of(self.title(title), title_mask.sum(1)), mean_of(self.body(body), body_mask.sum(1)))


class Three(Seeded):
    def forward(self, a: Tensor, a_len: Tensor, b: Tensor, b_len: Tensor, c: Tensor, c_len: Tensor) -> Tensor:
        states = [last_state(self.rnn, *pair) for pair in ((a, a_len), (b, b_len), (c, c_len))]
        return self.of_three(torch.cat(states, 1))


class Covariates(Seeded):
    """Covariates of a series stand beside each of its steps, as in darts (unit8co/darts#1469)."""

    def forward(self, x: Tensor, lengths: Tensor, static_covariates: Tensor) -> Tensor:
        steps = torch.cat([x, static_covariates[:, None].expand(-1, x.size(1), -1)], 2)
        return self.of_states(last_state(self.with_covariates, steps, lengths))


class Sentences(Seeded):
    """Each word of one sentence is compared with all words of the other (microsoft/CNTK#2445, castorini/castor#176)."""

    def forward(self, left: Tensor, left_lengths: Tensor, right: Tensor, right_lengths: Tensor) -> Tensor:
        one, other = self.title(left), self.title(right)
        valid = torch.arange(other.size(1)) < right_lengths[:, None]
        weights = (one @ other.mT).masked_fill(~valid[:, None], -1e9).softmax(2)
        return self.of_states(mean_of((one * (weights @ other)).tanh() @ self.title.weight[:8].T, left_lengths))


class LengthsOfTheFirstOfThree(Three):
    def forward(self, a: Tensor, a_len: Tensor, b: Tensor, b_len: Tensor, c: Tensor, c_len: Tensor) -> Tensor:
        third = mean_of(c, a_len) @ self.mix.weight[:, :4].T + 0 * c_len[:, None]
        states = [last_state(self.rnn, *pair) for pair in ((a, a_len), (b, b_len))]
        return self.of_three(torch.cat([*states, third], 1))


class ShuffledPair(Seeded):
    def forward(self, x1: Tensor, x2: Tensor, len1: Tensor, len2: Tensor) -> Tensor:
        order = len1.argsort(descending=True)
        first, second = last_state(self.rnn, x1[order], len1[order]), last_state(self.rnn, x2, len2)
        return self.of_pair(torch.cat([first, second], 1))


def signature_of(parameters: str, **options: Any) -> Any:
    """The signature of a module whose forward has these parameters."""
    scope: dict[str, object] = {}
    exec(f"def forward(self, {parameters}): return None", scope)  # the parameters are written below
    return read_signature(type("Taking", (nn.Module,), {"forward": scope["forward"]})(), **options)


@pytest.mark.parametrize(
    ("parameters", "statics", "sequences"),
    [
        ("x, lengths, static", ["static"], ()),
        ("static, x, lengths", ["static"], ()),
        ("x, lengths, bmi", ["bmi"], ()),
        ("age, x, lengths, sex", ["age", "sex"], ()),
        ("x, static_features, *, mask", ["static_features"], ()),
        ("title, title_lengths, body, body_lengths", [], ("title", "body")),
        ("a, a_lengths, b, b_lengths", [], ("a", "b")),
        ("x1, x2, len1, len2", [], ("x1", "x2")),
        ("x1, x2, len2, len1", [], ("x1", "x2")),
        ("q, d, lengths, d_lengths", [], ("q", "d")),
        ("a, b, c, len_a, len_b, len_c, meta", ["meta"], ("a", "b", "c")),
        ("title, title_mask, body, body_mask", [], ("title", "body")),
    ],
)
def test_names_say_what_stands_beside(parameters: str, statics: list[str], sequences: tuple[str, ...]) -> None:
    signature = signature_of(parameters)
    assert ([static.name for static in signature.statics], signature.sequences) == (statics, sequences)


def test_each_sequence_gets_the_lengths_that_are_named_like_it() -> None:
    signature = signature_of("x1, x2, len2, len1")
    assert [role for role, _ in signature.arguments] == ["steps", "x2 steps", "x2 lengths", "lengths"]


def test_a_context_alone_is_the_sequence() -> None:
    signature = signature_of("context, mask")
    assert (signature.statics, signature.second) == ((), "mask")


def test_the_option_names_an_argument_with_static_values() -> None:
    assert [static.name for static in signature_of("x, n, m=None", second="lengths", static=["m"]).statics] == ["m"]
    with pytest.raises(ConfigurationError, match=r"--static m: Taking\.forward"):
        signature_of("x, lengths", static=["m"])


@pytest.mark.parametrize("parameters", ["x, lengths, labels", "x, lengths, h0", "x, lengths, token_type_ids"])
def test_what_is_no_static_value_by_its_name_is_refused(parameters: str) -> None:
    with pytest.raises(UncheckableError, match=f"also requires {parameters.split(', ')[-1]}: .*--static NAME"):
        signature_of(parameters)


def some_batch(lengths: list[int], width: int, seed: int = 0) -> PaddedBatch:
    random = np.random.default_rng(seed)
    rows = [random.standard_normal((length, 2)).astype(np.float32) for length in lengths]
    batch = pad(rows, width=width)
    batch.steps[0, lengths[0] :] = 7.0
    return batch


@pytest.mark.parametrize("steps", [VALUES, PAIR], ids=["static", "pair"])
def test_the_same_sequence_has_the_same_beside_it_in_every_batch(steps: StepInput) -> None:
    batch = some_batch([5, 12, 1], 14)
    whole = completed(batch, steps)
    order = [2, 0, 1]
    wider = np.pad(batch.steps[order], [(0, 0), (0, 3), (0, 0)])
    other = completed(PaddedBatch(wider, batch.lengths[order]), steps)
    for row, index in enumerate(order):
        before, after = alone(whole, index).beside, alone(other, row).beside
        assert before.keys() == after.keys() == whole.beside.keys()
        assert all(np.array_equal(before[name], after[name]) for name in before)


def test_another_sequence_has_other_values_beside_it() -> None:
    batches = [completed(some_batch([5, 12, 1], 14, seed), VALUES) for seed in (0, 1)]
    first, second = (batch.beside["static"] for batch in batches)
    assert (first != second).all()


def test_a_further_sequence_has_lengths_and_padding_of_its_own() -> None:
    batch = completed(some_batch([5, 12, 1], 14), PAIR)
    assert (batch.beside["b_lengths"] != batch.lengths).all()
    assert batch.beside["b"].shape[1] - batch.beside["b_lengths"].max() == 14 - 12
    assert batch.beside["b"].max() < 9


def test_a_batch_that_has_values_beside_it_keeps_them() -> None:
    batch = pad([Sample(np.zeros((3, 2), np.float32), {"static": np.ones(3, np.float32)})])
    assert completed(batch, VALUES) is batch


SOUND: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "static": (WithStatic, {}),
    "codes": (WithCodes, {}),
    "columns": (WithColumns, {}),
    "pair": (Pair, {}),
    "texts": (Texts, {}),
    "masks": (Masks, {}),
    "three": (Three, {}),
    "covariates": (Covariates, {}),
    "sentences": (Sentences, {"vocabulary": 30}),
}
LEAKING: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "other rows": (FromOtherRows, "LW204", "static.mean(0)"),
    "broadcast": (MeanOfBroadcast, "LW211", ".mean(1)"),
    "lengths of the first": (LengthsOfTheFirst, "LW110", "torch.where(valid"),
    "order": (ShuffledPair, "LW309", "torch.cat([first, second], 1)"),
    "lengths of the first of three": (LengthsOfTheFirstOfThree, "LW110", "torch.where(valid"),
}


def by_day(names: Iterable[str], *chosen: str) -> list[Any]:
    """The names as parameters; all but those chosen are tried by the long tests."""
    return [pytest.param(name, marks=() if name in chosen else pytest.mark.long) for name in names]


@pytest.mark.parametrize("name", by_day(SOUND, "pair"))
def test_a_sound_model_is_sound(name: str) -> None:
    module, options = SOUND[name]
    report = check(module(), max_length=24, **options)
    assert (report.verdict, report.notes) == ("sound", ())


@pytest.mark.parametrize("name", by_day(LEAKING, "broadcast", "lengths of the first", "order"))
def test_a_leak_is_found_at_its_line(name: str) -> None:
    module, code, line = LEAKING[name]
    report = check(module(), max_length=24, features=4 if name == "broadcast" else None)
    assert report.verdict == "leak"
    leak = report.leaks[0]
    assert leak.code == code
    assert leak.location is not None
    assert line in leak.location.source


@pytest.mark.long
def test_static_values_that_move_no_answer_are_noted() -> None:
    report = check(Unread(), max_length=24)
    assert report.verdict == "sound"
    assert any("static values move no answer" in note for note in report.notes)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PublishedModel]:
    """Exports a sound model, once for all tests."""
    folder, models = tmp_path_factory.mktemp("models"), dict[str, PublishedModel]()

    def export_once(name: str) -> PublishedModel:
        if name not in models:
            module, options = SOUND[name]
            models[name] = export(module(), folder / name, max_length=24, **options)
        return models[name]

    return export_once


@pytest.mark.parametrize("name", by_day(SOUND, "pair"))
def test_an_export_answers_as_the_original_alone(published: Callable[[str], PublishedModel], name: str) -> None:
    model = published(name)
    assert max(case.difference for case in model.cases if case.varied == "reference") < 2e-6
    (promise,) = model.manifest.promises
    assert promise.bits


@pytest.mark.long
def test_a_published_model_answers_each_row_with_its_own_values(published: Callable[[str], PublishedModel]) -> None:
    model = published("columns")
    session, random = Session.load(model.directory, model.manifest), np.random.default_rng(0)
    rows = [random.standard_normal((length, 4)).astype(np.float32) for length in (3, 8)]
    batch = completed(pad(rows), model.manifest.input)
    logits = session.run(batch).logits
    module = WithColumns().eval()
    for row, steps in enumerate(rows):
        age, kind, weight = torch.tensor(batch.beside["static"][row])
        with torch.no_grad():
            expected = module(
                age[None], torch.tensor(steps)[None], torch.tensor([len(steps)]), kind[None].long(), weight[None]
            )
        assert np.abs(logits[row] - expected[0].numpy()).max() < 2e-6


@pytest.mark.long
def test_covariates_of_a_series_end_in_a_served_model(published: Callable[[str], PublishedModel]) -> None:
    model, random = published("covariates"), np.random.default_rng(0)
    recordings = [random.standard_normal((length, 4)).astype(np.float32) for length in (3, 24, 8)]
    covariates = random.standard_normal((3, 2)).astype(np.float32)
    predictions = lengthwise.load(model.directory).predict(recordings, static=covariates)
    module = Covariates().eval()
    for steps, beside, prediction in zip(recordings, torch.tensor(covariates), predictions, strict=True):
        with torch.no_grad():
            logits = module(torch.tensor(steps)[None], torch.tensor([len(steps)]), beside[None])
        np.testing.assert_allclose(prediction.probabilities, logits[0].softmax(0), atol=2e-6)


@pytest.mark.long
def test_two_sentences_end_in_a_served_model(published: Callable[[str], PublishedModel]) -> None:
    model, random = published("sentences"), np.random.default_rng(0)
    left, right = ([random.integers(0, 30, length) for length in lengths] for lengths in ((3, 24, 1), (9, 2, 24)))
    predictions = lengthwise.load(model.directory).predict(inputs={"left": left, "right": right})
    module = Sentences().eval()
    for one, other, prediction in zip(left, right, predictions, strict=True):
        tokens, others = torch.tensor(one)[None], torch.tensor(other)[None]
        with torch.no_grad():
            logits = module(tokens, torch.tensor([len(one)]), others, torch.tensor([len(other)]))
        np.testing.assert_allclose(prediction.probabilities, logits[0].softmax(0), atol=2e-6)


def test_the_manifest_says_what_stands_beside(published: Callable[[str], PublishedModel]) -> None:
    assert published("columns").manifest.input.static == StaticInput(
        count=3, names=("age", "kind", "weight"), categories={"kind": tuple("01234")}
    )
    assert published("pair").manifest.input.sequences == (
        SequenceInput(name="x1", features=4, max_length=24),
        SequenceInput(name="x2", features=4, max_length=24),
    )


@pytest.mark.long
def test_a_mend_keeps_static_values(tmp_path: Path) -> None:
    model = export(MeanOfBroadcast(), tmp_path / "m", max_length=24, features=4, mend=True)
    assert model.mend is not None
    assert model.manifest.input.static == StaticInput(count=3)


@pytest.mark.long
def test_a_mend_of_several_sequences_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(UnmendableError, match=r"body: is of a further sequence.* mask each by its own lengths"):
        export(LengthsOfTheFirst(), tmp_path / "m", max_length=24, mend=True)


def renamed(graph: onnx.ModelProto, names: dict[str, str]) -> onnx.ModelProto:
    """A graph whose inputs have other names."""
    for node in graph.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    for value in graph.graph.input:
        value.name = names.get(value.name, value.name)
    return graph


GRAPHS = {
    "columns": ({"values": "x", "lengths": "n", "static": "meta"}, {"static_names": ["age", "kind", "weight"]}),
    "pair": ({"values": "x1", "lengths": "x1_len", "x2": "x2:0", "x2_lengths": "x2_len"}, {}),
}


@pytest.mark.parametrize("name", by_day(GRAPHS, "pair"))
def test_a_graph_of_the_same_model_is_sound(published: Callable[[str], PublishedModel], name: str) -> None:
    names, options = GRAPHS[name]
    graph = renamed(onnx.load(published(name).directory / "model.onnx"), names)
    if "static_names" in options:
        options["static_categories"] = {"kind": list("abcde")}
    assert check(graph, max_length=24, **options).verdict == "sound"


def masked_pair() -> Iterator[onnx.NodeProto]:
    """The nodes of a graph that adds up the valid steps of two sequences, whose ends two masks say."""
    for name in ("a", "b"):
        yield onnx.helper.make_node("Unsqueeze", [f"{name}_mask", "two"], [f"{name}_valid"])
        yield onnx.helper.make_node("Tanh", [name], [f"{name}_small"])
        yield onnx.helper.make_node("Mul", [f"{name}_small", f"{name}_valid"], [f"{name}_kept"])
        yield onnx.helper.make_node("ReduceSum", [f"{name}_kept", "one"], [f"{name}_sum"], keepdims=0)
    yield onnx.helper.make_node("Sub", ["a_sum", "b_sum"], ["logits"])


def test_masks_of_a_graph_are_made_from_the_lengths(tmp_path: Path) -> None:
    make = onnx.helper.make_tensor_value_info
    floats = onnx.TensorProto.FLOAT
    inputs = [make(name, floats, ["n", f"w_{name}", 2]) for name in ("a", "b")]
    inputs += [make(f"{name}_mask", floats, ["n", f"w_{name}"]) for name in ("a", "b")]
    constants = [onnx.numpy_helper.from_array(np.array([axis]), name) for name, axis in (("one", 1), ("two", 2))]
    graph = onnx.helper.make_graph([*masked_pair()], "g", inputs, [make("logits", floats, ["n", 2])], constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    published_model = export(model, tmp_path / "m", max_length=24)
    assert [entry.name for entry in published_model.manifest.input.sequences] == ["a", "b"]
