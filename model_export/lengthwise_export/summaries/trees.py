"""Forests and boosted trees as one TreeEnsembleRegressor of ONNX, with the answers of the library that trained them.

Two things go wrong where such tables are converted naively, and are right here:

- **Thresholds** are float64, and the graph compares float32: a summary at a threshold may go to the other side. Values
  are float32 on both sides, so `x <= t` is `x <= t'` with `t'` the largest float32 that is not above `t`.
- **Sums** of leaves depend on their order, which onnxruntime chooses by the number of rows and threads. So each leaf is
  the sum of two numbers on grids on which float32 adds exactly (`_on_two_grids`), and these are added up apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from lengthwise_export.summaries.series import Numbers
from lengthwise_export.summaries.series_graph import GraphNumbers

ML_DOMAIN: Final = "ai.onnx.ml"


class Tree(NamedTuple):
    """A tree as a table: each array has one entry for each node, the root first."""

    feature: NDArray[Any]  # the column that is compared
    threshold: NDArray[np.float64]  # at most this: to the left
    left: NDArray[Any]  # the node to the left; its own number at a leaf
    right: NDArray[Any]
    missing_left: NDArray[np.bool_]  # whether NaN goes to the left
    is_leaf: NDArray[np.bool_]
    values: NDArray[Any]  # [nodes, outputs], what a leaf adds to each output


def forest_tree(tree: Any, values: NDArray[np.float64]) -> Tree:
    """A `sklearn.tree._tree.Tree`, whose `missing_go_to_left` says where NaN goes; `values` are `[nodes, outputs]`."""
    is_leaf = tree.children_left == -1
    return Tree(
        np.where(is_leaf, 0, tree.feature),
        np.where(is_leaf, 0.0, tree.threshold),
        tree.children_left,
        tree.children_right,
        np.asarray(tree.missing_go_to_left, bool),
        is_leaf,
        values,
    )


def boosted_tree(tree: Any, outputs: NDArray[np.float64]) -> Tree:
    """A tree of scikit-learn's HistGradientBoosting. `outputs` are 1 for the output to which it adds, else 0."""
    nodes = tree.nodes
    is_leaf = nodes["is_leaf"].astype(bool)
    threshold = np.where(is_leaf, 0.0, nodes["num_threshold"])
    missing_left, values = nodes["missing_go_to_left"].astype(bool), np.outer(nodes["value"], outputs)
    return Tree(nodes["feature_idx"], threshold, nodes["left"], nodes["right"], missing_left, is_leaf, values)


def xgboost_tree(tree: Mapping[str, Any], outputs: NDArray[np.float64]) -> Tree:
    """A tree of XGBoost, as its JSON has it; it compares `x < t` in float32. `outputs` as of `boosted_tree`."""
    left, right = np.array(tree["left_children"]), np.array(tree["right_children"])
    numbers = np.array(tree["split_conditions"], np.float32)  # the threshold, or what a leaf adds
    below = np.nextafter(numbers, np.float32(-np.inf)).astype(np.float64)
    missing_left, values = np.array(tree["default_left"], bool), np.outer(numbers, outputs)
    return Tree(np.array(tree["split_indices"]), below, left, right, missing_left, left == -1, values)


def lightgbm_tree(tree: Mapping[str, Any], outputs: NDArray[np.float64]) -> Tree:
    """A tree of LightGBM, as its JSON has it: nodes inside each other. `outputs` as of `boosted_tree`."""
    nodes, left = [tree["tree_structure"]], []
    for node in nodes:  # grows
        left.append(len(nodes))
        nodes += [node["left_child"], node["right_child"]] if "left_child" in node else []

    def column(name: str) -> NDArray[Any]:
        """A number of each node; 0 where it has none."""
        return np.array([node.get(name, 0) for node in nodes])

    is_leaf = np.array(["left_child" not in node for node in nodes])
    # A node that saw no NaN in training takes NaN as 0, so it goes left if 0 is at most the threshold
    missing_left = np.where(column("missing_type") == "NaN", column("default_left"), column("threshold") >= 0).astype(
        bool
    )
    values = np.outer(column("leaf_value"), outputs)
    return Tree(
        column("split_feature"), column("threshold"), np.array(left), np.array(left) + 1, missing_left, is_leaf, values
    )


def sum_of_trees(table: GraphNumbers, trees: Sequence[Tree]) -> Numbers:
    """The sums of the leaves that each row of a table `[rows, columns]` comes to, `[rows, outputs]` float64.

    The columns that trees read are taken first, so that the others need not be computed.
    """
    sizes = [len(tree.feature) for tree in trees]
    numbers = np.concatenate([np.arange(size) for size in sizes])
    ids = np.repeat(np.arange(len(trees)), sizes)
    all_nodes = Tree(*map(np.concatenate, zip(*trees, strict=True)))
    is_leaf = all_nodes.is_leaf
    columns, features = np.unique(np.where(is_leaf, 0, all_nodes.feature), return_inverse=True)
    table = table.taken(columns, 1)
    weights = _on_two_grids(np.where(is_leaf[:, None], all_nodes.values, 0.0), len(trees))
    is_written = is_leaf[:, None] & (weights != 0)
    is_written[:, 0] |= is_leaf  # a leaf has one entry at least
    leaves, targets = np.nonzero(is_written)
    sums = table.emit(
        "TreeEnsembleRegressor",
        table,
        domain=ML_DOMAIN,
        n_targets=weights.shape[1],
        nodes_treeids=ids.tolist(),
        nodes_nodeids=numbers.tolist(),
        nodes_featureids=features.tolist(),
        nodes_values=largest_float32(all_nodes.threshold).tolist(),
        nodes_modes=np.where(is_leaf, "LEAF", "BRANCH_LEQ").tolist(),
        nodes_truenodeids=np.where(is_leaf, 0, all_nodes.left).tolist(),
        nodes_falsenodeids=np.where(is_leaf, 0, all_nodes.right).tolist(),
        nodes_missing_value_tracks_true=all_nodes.missing_left.astype(int).tolist(),
        target_treeids=ids[leaves].tolist(),
        target_nodeids=numbers[leaves].tolist(),
        target_ids=targets.tolist(),
        target_weights=weights[leaves, targets].tolist(),
    ).cast(TensorProto.DOUBLE)
    outputs = np.arange(weights.shape[1] // 2)
    return sums.taken(outputs, 1) + sums.taken(outputs + len(outputs), 1)


def largest_float32(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """The largest float32 that is not above each threshold."""
    with np.errstate(over="ignore"):
        nearest = thresholds.astype(np.float32)
    return np.where(nearest > thresholds, np.nextafter(nearest, np.float32(-np.inf)), nearest)


def _on_two_grids(values: NDArray[np.float64], trees: int) -> NDArray[np.float64]:
    """Values `[nodes, outputs]` as sums of two that float32 adds exactly, one of each tree: `[nodes, 2 * outputs]`.

    A grid has a distance, a power of two, of which the sum of all trees is at most `2**24` multiples.
    """
    parts = []
    for _ in range(2):
        largest = float(np.abs(values).max(initial=0.0))
        distance = 2.0 ** (np.ceil(np.log2(max(largest, 1e-30) * trees)) - 23)
        parts.append(np.round(values / distance) * distance)
        values = values - parts[-1]
    return np.concatenate(parts, axis=1)
