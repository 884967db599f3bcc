"""Training and classifiers take every form of sequences, with the labels of a table, and ask about doubtful axes."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas
import polars
import pytest
from click.testing import CliRunner

import lengthwise
import lengthwise_export
from lengthwise.commands.cli import main
from lengthwise_export.architecture import checkpoint
from lengthwise_export.architecture.spec import Spec

LABELS = ["calm", "loud"] * 8


def cases(length: int = 20, features: int = 2) -> np.ndarray:
    """`[cases, channels, timepoints]`: every other case is louder."""
    random = np.random.default_rng(0)
    return np.stack([random.normal(scale=1 + 3 * (label == "loud"), size=(features, length)) for label in LABELS])


def long_table() -> pandas.DataFrame:
    parts = [
        pandas.DataFrame({"id": f"r{place:02}", "t": range(case.shape[1]), "u": case[0], "v": case[1], "label": label})
        for place, (case, label) in enumerate(zip(cases(), LABELS, strict=True))
    ]
    return pandas.concat(parts)


def trained(*given: Any, **options: Any) -> lengthwise_export.TrainedModel:
    return lengthwise_export.train("rocket", *given, progress=None, **options)


def test_every_form_trains_the_same_model() -> None:
    table, arrays = long_table(), [case.T for case in cases()]
    first = trained(arrays, LABELS)
    for name, given, options in (
        ("channels first", (cases(), LABELS), {"layout": "channels-first"}),
        ("mapping", ({f"r{place:02}": one for place, one in enumerate(arrays)}, LABELS), {}),
        ("pandas", (table,), {}),
        ("shuffled", (table.sample(frac=1, random_state=1).sort_values("id", kind="stable"),), {}),
        ("groups", (table.groupby("id"),), {}),
        ("polars", (polars.from_pandas(table),), {}),
        ("named", (lengthwise.sequences(table.rename(columns={"id": "run"}), id="run"),), {}),
    ):
        run = trained(*given, **options)
        assert without_names(run) == without_names(first), name


def without_names(run: lengthwise_export.TrainedModel) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The bytes of the weights, and what is recorded besides, but for the names that only a table has."""
    tensors, state = checkpoint.read(run.weights)
    state.pop("columns", None)
    state["spec"]["input"].pop("feature_names", None)
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, state


def test_what_the_columns_were_taken_as_is_said_and_other_splits_may_be_tables() -> None:
    run = trained(long_table(), test=long_table())
    assert run.reasons[0] == "columns: id 'id', time 't', label 'label', features 'u', 'v'"
    assert run.report["test"]["accuracy"] == 1.0
    each_step = {"model": {"hidden": 4}, "output": {"task": "per-step"}}
    assert (
        lengthwise_export.train(each_step, long_table(), epochs=1, progress=None).report["training"]["answers"] == 320
    )
    with pytest.raises(lengthwise.errors.ConfigurationError):
        trained(long_table().drop(columns="label"))


def test_keys_of_groups_and_indexes_teach_nothing() -> None:
    random = np.random.default_rng(0)
    index = pandas.MultiIndex.from_product([range(60), range(8)], names=["instances", "timepoints"])
    noise = pandas.DataFrame({"dim_0": random.normal(size=480), "dim_1": random.normal(size=480)}, index=index)
    for form in (noise.groupby(level=0), noise, [rows for _, rows in noise.groupby(level=0)]):
        run = trained(form, ["a"] * 30 + ["b"] * 30)  # in the order of the ids
        assert run.spec["input"]["features"] == 2
        assert "features 'dim_0', 'dim_1'" in run.reasons[0]
        assert "time 'timepoints'" in run.reasons[0]


def test_one_wrong_label_of_a_table_is_named_and_no_labels_of_steps_are_taken() -> None:
    table = long_table().reset_index(drop=True)
    table.loc[25, "label"] = "calm"
    with pytest.raises(lengthwise.errors.InvalidSequences, match="'r01' has the label 'calm', and 'loud'") as told:
        trained(table)
    assert told.value.indices == (1,)


def test_a_classifier_takes_lists_in_cells_and_an_index_of_levels() -> None:
    nested = pandas.DataFrame({"u": [pandas.Series(case[0]) for case in cases()], "v": [*cases()[:, 1]]})
    fitted = lengthwise_export.LengthwiseClassifier("rocket").fit(nested, LABELS)
    levels = long_table().drop(columns="label").set_index(["id", "t"]).rename_axis(["instances", "timepoints"])
    assert fitted.predict(nested).tolist() == fitted.predict(levels).tolist() == LABELS


def test_many_labels_and_names_in_a_spec_take_time_in_proportion(tmp_path: Any) -> None:
    def seconds(size: int) -> float:
        names = ", ".join(f'"n{place}"' for place in range(size))
        path = tmp_path / "s.toml"
        path.write_text(f"[input]\nfeatures = {size}\nfeature_names = [{names}]\n[output]\nlabels = [{names}]\n")
        began = time.process_time()
        Spec.read(path)
        return time.process_time() - began

    seconds(100)
    assert any(seconds(16_000) < 24 * max(seconds(2_000), 1e-3) for _ in range(5))


def test_a_classifier_takes_tables_and_axes_that_are_said() -> None:
    fitted = lengthwise_export.LengthwiseClassifier("rocket").fit(long_table())
    channels = lengthwise_export.LengthwiseClassifier("rocket", layout="channels-first").fit(cases(), LABELS)
    assert fitted.predict(long_table()).tolist() == channels.predict(cases()).tolist() == LABELS


def test_axes_that_may_be_transposed_are_asked_about() -> None:
    assert any("transposed" in warning for warning in trained(cases(length=50), LABELS).warnings)
    assert not trained(cases(length=50), LABELS, layout="channels-first").warnings
    ragged = [case[:, : 10 + place] for place, case in enumerate(cases())]
    with pytest.raises(lengthwise.errors.InvalidSequences):
        trained(ragged, LABELS)


@pytest.mark.parametrize("name", ["d.csv", "d.parquet"])
def test_the_command_trains_on_a_row_for_each_step(tmp_path: Any, name: str) -> None:
    table = long_table().rename(columns={"label": "state"})
    (tmp_path / "s.toml").write_text(
        '[input]\nfeatures = 2\n[model]\nkind = "rocket"\n[output]\nlabels = ["calm", "loud"]\n'
    )
    path = tmp_path / name
    table.to_csv(path, index=False) if name == "d.csv" else table.to_parquet(path, index=False)
    run = CliRunner().invoke(
        main, ["train", str(tmp_path / "s.toml"), str(path), "--out", str(tmp_path / "run"), "--column", "label=state"]
    )
    assert run.exit_code == 0, run.output
    assert f"{name}: id 'id', time 't', label 'state', features 'u', 'v'; 16 sequences" in run.output
    asked = CliRunner().invoke(main, ["train", str(tmp_path / "s.toml"), str(path), "--out", str(tmp_path / "other")])
    assert asked.exit_code == 2
    assert "'state'" in asked.output
