#!/usr/bin/env bash
# scikit-learn 1.9.1: a transformer that makes one row of each sequence works, until its output is to be a table.
#
# A long table has a row a step and a column of ids; a transformer of it gives a row a sequence. With arrays this works
# in a pipeline. `set_output(transform="pandas")`, also where it is set for all, wraps an array with the index of the
# *input*, which has more rows, and raises about the shape of passed values from within scikit-learn. Only a transformer
# that gives a table of its own keeps its index; nothing in the message says so.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q scikit-learn==1.9.1 pandas==3.0.6 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import pandas
from sklearn.base import BaseEstimator, TransformerMixin


class Means(TransformerMixin, BaseEstimator):
    def __init__(self, as_table):
        self.as_table = as_table

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        means = X.groupby("id").mean()
        return means if self.as_table else means.to_numpy()

    def get_feature_names_out(self, input_features=None):
        return ["x"]


steps = pandas.DataFrame({"id": ["a", "a", "b"], "x": [1.0, 2.0, 5.0]})
arrays = Means(False).fit_transform(steps)
table = Means(True).set_output(transform="pandas").fit_transform(steps)
try:
    said = str(Means(False).set_output(transform="pandas").fit_transform(steps))
except ValueError as error:
    said = str(error)
print(f"as arrays: {arrays.tolist()}; as a table of its own: {table.x.to_dict()}; an array as a table: {said}")
assert arrays.tolist() == [[1.5], [5.0]]
assert table.x.to_dict() == {"a": 1.5, "b": 5.0}
assert said == "Shape of passed values is (2, 1), indices imply (3, 1)"
PYTHON
