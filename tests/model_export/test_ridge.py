import numpy as np
import pytest

from lengthwise_export.training import rocket


def data(examples: int, features: int, targets: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    values = random.normal(size=(examples, features)).astype(np.float32)
    wanted = values[:, :targets] + random.normal(size=(examples, targets))
    return values, np.sign(wanted)


def solved(values: np.ndarray, targets: np.ndarray, penalty: float, importance: np.ndarray) -> tuple[np.ndarray, ...]:
    """A ridge regression by its normal equations, with an intercept that has no penalty."""
    weight = importance / importance.mean()
    with_one = np.column_stack([values.astype(np.float64), np.ones(len(values))])
    penalties = penalty * np.diag([1.0] * values.shape[1] + [0.0])
    solution = np.linalg.solve(
        with_one.T @ (weight[:, None] * with_one) + penalties, with_one.T @ (weight[:, None] * targets)
    )
    return solution[:-1], solution[-1]


def squared_error(fitted: rocket.RidgeFit, targets: np.ndarray) -> float:
    """Of the answers that were left out."""
    return float(((fitted.left_out - targets) ** 2).sum())


@pytest.mark.parametrize("size", [(12, 30), (40, 5)], ids=["more features", "more examples"])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_weights_solve_the_normal_equations_and_answers_left_out_are_those_of_fits_without_the_example(
    size: tuple[int, int], is_weighted: bool
) -> None:
    values, targets = data(*size)
    importance = np.random.default_rng(1).uniform(0.5, 2, size[0]) if is_weighted else np.ones(size[0])
    fitted = rocket.fit_ridge(values, targets, importance if is_weighted else None)
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
def test_features_that_stand_apart_count_more_where_that_helps_and_do_no_harm_elsewhere(size: tuple[int, int]) -> None:
    values, targets = data(*size)
    told = np.concatenate([values[:, 2:], values[:, :2]], axis=1)  # the last two tell the targets
    apart, plain = rocket.fit_ridge(told, targets, apart=2), rocket.fit_ridge(told, targets)
    assert squared_error(apart, targets) < squared_error(plain, targets)
    assert np.abs(apart.weights[-2:]).sum() > np.abs(plain.weights[-2:]).sum()
    noise = np.random.default_rng(5).normal(size=(len(values), 30)).astype(np.float32)
    fitted = rocket.fit_ridge(np.hstack([values, noise]), targets, apart=30)
    assert squared_error(fitted, targets) <= squared_error(plain, targets) * (1 + 1e-9)
    assert np.all(np.isfinite(fitted.left_out))


def test_features_that_never_change_get_no_weight() -> None:
    values, targets = data(12, 30)
    values[:, 3] = 0.25
    values[:, 4] *= 1e-9  # rounding noise, which would get a huge weight
    fitted = rocket.fit_ridge(values, targets)
    assert np.all(fitted.weights[3] == 0)
    assert np.abs(fitted.weights).max() < 10
    assert np.all(np.isfinite(fitted.left_out))


def test_examples_that_are_all_the_same_get_the_mean() -> None:
    fitted = rocket.fit_ridge(np.ones((4, 6), dtype=np.float32), np.array([[1.0], [1.0], [1.0], [-1.0]]))
    assert np.all(fitted.weights == 0)
    assert fitted.intercepts == pytest.approx([0.5])
