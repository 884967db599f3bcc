import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from sklearn.linear_model import Ridge

import lengthwise_export
from lengthwise.datasets.dataset import Record
from lengthwise.errors import ConfigurationError
from lengthwise.padding import pad
from lengthwise.runtime.fixed_kernels import KERNELS, DilatedKernels
from lengthwise.runtime.session import Session
from lengthwise_export.architecture import checkpoint, rocket
from lengthwise_export.architecture.normalization import SequenceFeatures
from lengthwise_export.architecture.rocket import RocketClassifier
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.architecture.trained import load
from lengthwise_export.errors import CheckpointError
from lengthwise_export.training import rocket as rocket_training
from lengthwise_export.training.options import TrainingOptions
from lengthwise_export.training.train import TrainingResult, write
from tests.support.specs import separable, spec

LENGTHS = (1, 2, 3, 8, 9, 10, 17, 31, 40)
SMALL = 'kind = "rocket"\nkernels = 420'

Sequences = list[NDArray[np.float32]]


def sequences(features: int, *, seed: int = 0, lengths: Sequence[int] = LENGTHS) -> Sequences:
    """Random sequences whose sizes differ by orders of magnitude."""
    random = np.random.default_rng(seed)
    return [
        (random.standard_normal((length, features)) * 10.0 ** random.uniform(-4, 4)).astype(np.float32)
        for length in lengths
    ]


def fitted(features: int, kernels: int = 420, *, seed: int = 0) -> RocketClassifier:
    """A model with kernels for `sequences`, and a random head."""
    torch.manual_seed(0)
    described = spec(f'kind = "rocket"\nkernels = {kernels}', step=f"features = {features}")
    given = [torch.from_numpy(steps) for steps in sequences(features, seed=1)]
    return rocket.with_fitted_kernels(described, rocket.first_layer(described), given, seed=seed).eval()


def kernels_of(model: RocketClassifier) -> list[DilatedKernels]:
    return [
        DilatedKernels(each.dilation, each.reads.numpy(), each.biases[:, :, 0].numpy(), each.inside[:, 0].numpy())
        for each in model.dilations
    ]


def features_of(steps: NDArray[np.float32], kernels: Sequence[DilatedKernels]) -> NDArray[np.float32]:
    """`[features of the model]` of one sequence on the grid, computed step by step with NumPy."""
    shares = []
    for at_dilation in kernels:
        around = rocket.HALF_SPAN * at_dilation.dilation
        for kernel in range(KERNELS):
            results = rocket.convolve(steps[:, at_dilation.reads[kernel]], kernel, at_dilation.dilation)
            if at_dilation.inside[kernel] and len(results) > 2 * around:
                results = results[around : len(results) - around]
            above = (results[None, :] > at_dilation.biases[kernel][:, None]).sum(axis=1)
            shares.append(above.astype(np.float32) / np.float32(len(results)))
    return np.concatenate(shares)


def on_grid(model: RocketClassifier, steps: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(model.grid(torch.from_numpy(steps)[None])[0].numpy())


@pytest.mark.sampled(3)
@pytest.mark.parametrize("features", [1, 3, 12])
def test_the_features_are_those_of_the_numpy_reference(features: int) -> None:
    model, given = fitted(features), sequences(features)
    batch = pad(given, width=52)
    batch.steps[np.arange(52) >= batch.lengths[:, None]] = np.nan  # what padding holds does not matter
    with torch.no_grad():
        computed = model.features(torch.from_numpy(batch.steps), torch.from_numpy(batch.lengths)).numpy()
    for row, steps in zip(computed, given, strict=True):
        assert np.array_equal(row, features_of(on_grid(model, steps), kernels_of(model)))


def test_sums_of_a_kernel_are_exact_on_the_grid() -> None:
    model = fitted(12)
    for steps in sequences(12, seed=5):
        rounded = on_grid(model, steps)
        for kernels in kernels_of(model):
            for kernel in range(0, KERNELS, 7):
                read = rounded[:, kernels.reads[kernel]]
                exact = rocket.convolve(read.astype(np.float64), kernel, kernels.dilation)
                backwards = rocket.convolve(read[:, ::-1], kernel, kernels.dilation)
                assert np.array_equal(exact, rocket.convolve(read, kernel, kernels.dilation))
                assert np.array_equal(exact, backwards)


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-12, 1.0, 1024.0, 1e15, 1e30])
def test_the_grid_is_fine_whatever_the_size_of_the_values(size: float) -> None:
    steps = (np.random.default_rng(0).uniform(-1, 1, (20, 3)) * size).astype(np.float32)
    rounded = on_grid(fitted(3), steps)
    assert np.all(np.isfinite(rounded))
    assert np.abs(rounded - steps).max() <= max(2.0**-17 * size, 2.0**-70)


def test_a_kernel_that_does_not_fit_is_applied_as_if_zeros_surrounded_the_sequence() -> None:
    steps = sequences(1, lengths=[8])[0]
    kernels = kernels_of(fitted(1))[0]
    outside = DilatedKernels(1, kernels.reads, kernels.biases, np.zeros_like(kernels.inside))
    assert np.array_equal(features_of(steps, [kernels]), features_of(steps, [outside]))
    longer = sequences(1, lengths=[9])[0]
    assert not np.array_equal(features_of(longer, [kernels]), features_of(longer, [outside]))


@pytest.mark.parametrize("biases", [1, 2, 5, 33, 119])
@pytest.mark.parametrize("reference_length", [1, 8, 9, 16, 17, 100, 1024])
def test_the_longest_kernel_fits_the_reference_length(biases: int, reference_length: int) -> None:
    dilations, counts = rocket.divide_biases(biases, reference_length)
    assert sum(counts) == biases
    assert min(counts) > 0
    assert dilations == sorted(set(dilations))
    assert dilations[0] == 1
    assert len(dilations) <= rocket.MAX_DILATIONS
    assert 8 * dilations[-1] + 1 <= max(reference_length, 9)
    assert rocket.divide_biases(5, 129)[0] == [1, 2, 4, 8, 16]  # powers of two that fit exactly


def test_half_of_the_kernels_read_zeros_beyond_the_sequence() -> None:
    kernels = kernels_of(fitted(30))
    assert {int(each.inside.sum()) for each in kernels} == {42}
    read = np.concatenate([each.reads.sum(axis=1) for each in kernels])
    assert (read.min(), read.max() <= 9, np.median(read) <= 4) == (1, True, True)  # small numbers are more frequent


def trained(tmp_path: Path, records: Sequence[Record], described: Spec | None = None, **more: object) -> TrainingResult:
    described = described or spec(SMALL)
    result = rocket_training.fit(described, records, TrainingOptions(**more))
    write(tmp_path, described, result)
    return result


def test_training_finds_what_tells_the_labels_apart_and_calibration_changes_no_label(tmp_path: Path) -> None:
    records = separable(40)
    calibrated, plain = trained(tmp_path, records), trained(tmp_path, records, calibration=False)
    assert calibrated.splits["training"].accuracy == 1
    assert calibrated.splits["left_out"].accuracy > 0.9
    assert plain.temperature is None
    assert calibrated.temperature is not None
    assert torch.allclose(calibrated.model.head.weight * calibrated.temperature, plain.model.head.weight)
    assert calibrated.splits["left_out"].loss < plain.splits["left_out"].loss
    assert calibrated.splits["left_out"].confusion == plain.splits["left_out"].confusion
    with pytest.raises(CheckpointError, match=r"model\.kind: the checkpoint was trained with \"rocket\""):
        load(spec(), tmp_path / "model.safetensors")


def test_rare_labels_can_get_the_same_influence(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    records = [
        Record(str(index), random.normal(size=(12, 3)).astype(np.float32), "ab"[index < 4], f"made:{index}")
        for index in range(60)
    ]
    plain, weighted = trained(tmp_path, records), trained(tmp_path, records, class_weights=True)
    rare = [sum(row[1] for row in result.splits["left_out"].confusion) for result in (plain, weighted)]
    assert rare[0] < rare[1]


def test_several_labels_are_calibrated_too(tmp_path: Path) -> None:
    described = spec(SMALL, task="multi-label")
    records = [Record(each.id, each.steps, (str(each.label),), each.source_line) for each in separable(30)]
    result = trained(tmp_path, records, described)
    assert result.splits["left_out"].accuracy > 0.9
    with pytest.raises(ConfigurationError, match="class_weights has no meaning"):
        rocket_training.fit(described, records, TrainingOptions(class_weights=True))


def test_what_cannot_be_fitted_is_refused_before_its_matrix_is_made() -> None:
    with pytest.raises(ConfigurationError, match="1 records are too few"):
        rocket_training.fit(spec(SMALL), separable(1), TrainingOptions())
    large = spec('kind = "rocket"\nkernels = 100000000')
    with pytest.raises(ConfigurationError, match=r"need 7 GiB .* set model\.kernels = 53687091 or fewer"):
        rocket_training.fit(large, separable(10), TrainingOptions())


GRID = "grid = 'training'"
OF_SEQUENCE = "sequence_features = ['length', 'level', 'scale', 'missing']"


@pytest.mark.gallery
@pytest.mark.parametrize(
    ("model", "step"),
    [
        ("", ""),
        (OF_SEQUENCE, "normalize = 'sequence-scale'"),
        (OF_SEQUENCE, "normalize = 'training'"),
        (OF_SEQUENCE, "normalize = 'feature-scale'"),
        (GRID, "max_length = 60"),
    ],
)
def test_a_trained_model_is_exported_with_the_same_bits_in_every_batch(model: str, step: str, tmp_path: Path) -> None:
    described = spec(f"{SMALL}\n{model}", step=f"features = 3\nmissing = 'indicator'\n{step}")
    records = separable(24)
    for index, record in enumerate(records):
        record.steps[1, index % 3] = np.nan
    result = trained(tmp_path, records, described)
    assert result.model.head.in_features == 420 + (1 + 3 + 3 + 6 if model == OF_SEQUENCE else 0)
    published = lengthwise_export.export(tmp_path, tmp_path / "m" / "small" / "1")
    manifest = published.manifest
    assert (manifest.promises[0].bits, manifest.max_batch_rows) == (True, 32)
    assert manifest.made["temperature"] == result.temperature
    asked = ("logits", "clipped") if manifest.graph.clipped else ("logits",)
    assert ("clipped" in asked) == (model == GRID)
    session = Session.load(published.directory, manifest)
    given = sequences(3, seed=7, lengths=[1, 5, 30, 60, 12, 9])
    given[2][3, 1] = np.nan
    alone = np.concatenate([session.run(pad([steps])).logits for steps in given])
    for width in (60, 97):
        batch = pad(given, width=width)
        served = session.run(batch, asked)
        assert np.array_equal(served.logits, alone)
    with torch.no_grad():
        own = result.model(torch.from_numpy(batch.steps), torch.from_numpy(batch.lengths))
    assert np.allclose(alone, own.logits.numpy(), atol=1e-4)
    assert own.clipped is None or np.array_equal(own.clipped.numpy(), served.clipped)


def test_what_is_missing_is_counted_exactly() -> None:
    steps = torch.zeros(1, 8, 3)
    steps[0, [0, 1, 3], 0] = steps[0, 5:, 1] = torch.nan  # two runs, and one that goes on in the padding
    found = SequenceFeatures(("missing",), 3).compressed(steps, torch.tensor([6]))
    assert torch.equal(found, torch.tensor([[3.0, 1, 0, 2, 1, 0]]) / 6)


def test_gaps_that_tell_the_label_are_used(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    records = []
    for index in range(60):
        steps = random.normal(size=(20, 2)).astype(np.float32)
        steps[random.random(20) < (0.1 if index % 2 else 0.6), 1] = np.nan
        records.append(Record(str(index), steps, "ab"[index % 2], f"made:{index}"))
    scores = []
    for kinds in ("['level']", "['level', 'missing']"):
        described = spec(f"{SMALL}\nsequence_features = {kinds}", step="features = 2\nmissing = 'mean'")
        scores.append(rocket_training.fit(described, records, TrainingOptions()).splits["left_out"].accuracy)
    assert scores[1] > 0.9 > scores[0]


def test_check_finds_no_leak_and_other_precisions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rocket.toml"
    path.write_text('[input]\nfeatures = 2\n[model]\nkind = "rocket"\nkernels = 84\n[output]\nlabels = ["a", "b"]\n')
    assert lengthwise_export.check(path, max_length=40).verdict == "sound"
    for precision in ("fp16", "int8"):
        with pytest.raises(ConfigurationError, match="exact in float32 only"):
            lengthwise_export.export(path, tmp_path / "m", precision=precision)  # type: ignore[arg-type]


DAMAGES: dict[str, list[torch.Tensor | None]] = {
    "dilations.0.reads": [
        *(torch.ones(size, dtype=torch.bool) for size in ((84, 4), (83, 3))),
        *(torch.zeros(84, 3, dtype=torch.bool), torch.ones(84, 3)),
    ],
    "dilations.0.biases": [torch.ones(84)],
    "dilations.0.distance": [torch.tensor(0), torch.tensor([1, 2]), None],
    "dilations.0.inside": [None],
    "head.weight": [None],
    "grid.distance": [None, torch.tensor(3.0), torch.ones(2), torch.tensor(np.nan)],
}


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    described, path = spec(f"{SMALL}\n{GRID}"), tmp_path / "model.safetensors"
    trained(tmp_path, separable(12), described)
    assert load(described, path)
    tensors, state = load_file(path), {"state": json.dumps(checkpoint.state(path))}
    for name, damages in DAMAGES.items():
        for damage in damages:
            changed = {name: damage} if damage is not None else {}
            save_file({each: tensors[each] for each in tensors if each != name} | changed, path, metadata=state)
            with pytest.raises(CheckpointError, match=str(path)):
                load(described, path)


def linear(examples: int, features: int, targets: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    values = random.normal(size=(examples, features)).astype(np.float32)
    wanted = values[:, :targets] + random.normal(size=(examples, targets))
    return values, np.sign(wanted)


def solved(values: np.ndarray, targets: np.ndarray, penalty: float, importance: np.ndarray) -> tuple[np.ndarray, ...]:
    """The weights and intercepts of scikit-learn's ridge regression."""
    ridge = Ridge(penalty, solver="cholesky").fit(values.astype(float), targets, importance / importance.mean())
    return ridge.coef_.T, ridge.intercept_


def squared_error(fitted: rocket_training.RidgeFit, targets: np.ndarray) -> float:
    """Of the answers that were left out."""
    return float(((fitted.left_out - targets) ** 2).sum())


@pytest.mark.parametrize("size", [(12, 30), (40, 5)], ids=["more features", "more examples"])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_weights_solve_the_normal_equations_and_held_out_answers_are_right(
    size: tuple[int, int], is_weighted: bool
) -> None:
    values, targets = linear(*size)
    importance = np.random.default_rng(1).uniform(0.5, 2, size[0]) if is_weighted else np.ones(size[0])
    fitted = rocket_training.fit_ridge(values, targets, importance if is_weighted else None)
    share = importance / importance.sum()
    spread = np.sqrt(share @ (values - share @ values) ** 2)
    scaled = values / spread  # the scale is that of all examples
    weights, intercepts = solved(scaled, targets, fitted.penalty, importance)
    assert np.allclose(fitted.weights, weights / spread[:, None], atol=1e-6)
    assert np.allclose(fitted.intercepts, intercepts, atol=1e-6)
    for left_out in range(size[0]):
        rest = np.arange(size[0]) != left_out
        scale = importance.mean() / importance[rest].mean()  # the penalty is relative to the mean importance
        weights, intercepts = solved(scaled[rest], targets[rest], fitted.penalty * scale, importance[rest])
        assert np.allclose(fitted.left_out[left_out], scaled[left_out] @ weights + intercepts, atol=1e-5)


@pytest.mark.parametrize("size", [(40, 60), (80, 20)], ids=["more features", "more examples"])
def test_features_that_stand_apart_count_more_only_where_that_helps(size: tuple[int, int]) -> None:
    values, targets = linear(*size)
    told = np.concatenate([values[:, 2:], values[:, :2]], axis=1)  # the last two tell the targets
    apart, plain = rocket_training.fit_ridge(told, targets, sequence_level=2), rocket_training.fit_ridge(told, targets)
    assert squared_error(apart, targets) < squared_error(plain, targets)
    assert np.abs(apart.weights[-2:]).sum() > np.abs(plain.weights[-2:]).sum()
    noise = np.random.default_rng(5).normal(size=(len(values), 30)).astype(np.float32)
    fitted = rocket_training.fit_ridge(np.hstack([values, noise]), targets, sequence_level=30)
    assert squared_error(fitted, targets) <= squared_error(plain, targets) * (1 + 1e-9)
    assert np.all(np.isfinite(fitted.left_out))


def test_constant_features_get_no_weight_and_equal_examples_the_mean() -> None:
    values, targets = linear(12, 30)
    values[:, 3] = 0.25
    values[:, 4] *= 1e-9  # rounding noise, which would get a huge weight
    fitted = rocket_training.fit_ridge(values, targets)
    assert np.all(fitted.weights[3] == 0)
    assert np.abs(fitted.weights).max() < 10
    assert np.all(np.isfinite(fitted.left_out))
    fitted = rocket_training.fit_ridge(np.ones((4, 6), dtype=np.float32), np.array([[1.0], [1.0], [1.0], [-1.0]]))
    assert np.all(fitted.weights == 0)
    assert fitted.intercepts == pytest.approx([0.5])
