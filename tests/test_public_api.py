"""What both packages export: these names and no others, each documented and typed, none that is not stable."""

import inspect
from typing import Any, get_type_hints

import click
import pytest

import lengthwise
import lengthwise_export
from lengthwise.commands.cli import main

EXPORTED = {
    lengthwise: [
        *("AsyncClient", "Client", "DictStates", "InputSequences", "KeyedStreams", "Model", "Prediction"),
        *("Predictions", "PreparedSequences", "RedisStates", "SQLiteStates", "Scorer", "SequenceSummaries", "Settings"),
        *("StateConflict", "StateStore", "StoredState", "Stream", "__version__", "errors", "export", "load"),
        *("make_app", "sequences"),
    ],
    lengthwise_export: [
        *("CheckReport", "LengthwiseClassifier", "PublishedModel", "SequenceSummaries", "TrainedModel"),
        *("__version__", "check", "errors", "export", "train"),
    ],
}
OF_CLASSES = {
    lengthwise.Model: [
        *("features", "has_attention", "labels", "long", "max_length", "min_length", "missing", "name"),
        *("names", "predict", "provider", "stream", "task", "version", "vocabulary"),
    ],
    lengthwise.Prediction: [
        *("assigned", "attention", "decided", "fitted", "id", "label", "length", "offset", "probabilities", "score"),
        *("state", "step_labels", "step_scores", "values", "version", "windows"),
    ],
    lengthwise.Stream: ["push", "state"],
    lengthwise.Client: ["close", "get", "post", "predict", "prepare", "stream"],
    lengthwise.AsyncClient: ["aclose", "get", "post", "predict", "prepare", "stream"],
    lengthwise.Scorer: [
        *("attention", "batches", "columns", "id", "keep_steps", "max_batch_cost_steps", "max_batch_rows", "on_error"),
        *("open", "path", "predictions", "prefix", "provider", "recurrent_kernels", "static", "steps"),
        "threads",
    ],
    lengthwise_export.CheckReport: [
        *("batch_invariant", "exit_code", "fix", "ignored", "leaks", "max_length", "min_length", "notes", "notices"),
        *("padding_safe", "ran", "reason", "served", "target", "to_dict", "to_sarif", "tolerance", "trials", "verdict"),
    ],
    lengthwise_export.TrainedModel: [
        *("directory", "export", "labels", "reasons", "report", "spec", "warnings", "weights")
    ],
    lengthwise_export.PublishedModel: [
        *("cases", "directory", "labels", "manifest", "mend", "mend_accuracy", "nodes", "notices", "sample"),
        "version",
    ],
}
FUNCTIONS = [
    *(lengthwise.sequences, lengthwise.load, lengthwise.Model.predict),
    *(lengthwise.Client.predict, lengthwise.AsyncClient.predict),
    *(lengthwise_export.check, lengthwise_export.export, lengthwise_export.train),
]

PREPARING = (lengthwise.Client.prepare, lengthwise.AsyncClient.prepare)


def command_named(name: str) -> click.Command:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return command


@pytest.mark.parametrize("package", EXPORTED, ids=lambda package: package.__name__)
def test_these_names_are_exported_and_no_others(package: Any) -> None:
    assert package.__all__ == EXPORTED[package]
    assert {*package.__all__} <= {*dir(package)}
    assert inspect.getdoc(package)
    for name in package.__all__:
        assert name == "__version__" or inspect.getdoc(getattr(package, name))
        assert f"`{name}`" in package.__doc__
    with pytest.raises(AttributeError):
        package.nothing  # noqa: B018


@pytest.mark.parametrize("kind", OF_CLASSES, ids=lambda kind: kind.__name__)
def test_classes_have_these_names(kind: type) -> None:
    documented = inspect.getdoc(kind) or ""
    hints = {name for parent in kind.__mro__ for name in getattr(parent, "__annotations__", {})}
    attributes = {line.partition(":")[0] for line in documented.partition("Attributes:\n")[2].splitlines()}
    names = {name for name in {*dir(kind), *hints, *(one.strip() for one in attributes)} if name.isidentifier()}
    assert sorted(name for name in names if not name.startswith("_")) == OF_CLASSES[kind]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__qualname__)
def test_functions_say_what_they_take_give_and_raise(function: Any) -> None:
    text = inspect.getdoc(function) or ""
    for part in ("Args:", "Returns:", "Raises:", "Example:"):
        assert f"\n{part}\n" in text
    for name, parameter in inspect.signature(function).parameters.items():
        assert name == "self" or f"\n    {name}: " in text
        assert name == "self" or parameter.annotation is not parameter.empty


@pytest.mark.parametrize("function", [lengthwise_export.check, lengthwise_export.export], ids=lambda one: one.__name__)
def test_an_exporters_function_takes_what_its_command_takes(function: Any) -> None:
    of_shell = {"annotations", "as_json", "badge", "changed", "explain", "html", "sarif", "strict"}
    in_python = {"seed"} if function is lengthwise_export.export else set()
    command = {parameter.name for parameter in command_named(function.__name__).params}
    assert {*inspect.signature(function).parameters} - {"progress", "options"} - in_python == command - of_shell


def test_train_takes_what_its_command_takes() -> None:
    of_shell = {"words", "resume", "as_json", "channels_first", "columns", "static"}
    command = {parameter.name for parameter in command_named("train").params}
    in_python = {"spec", "sequences", "labels", "layout", "progress", "options"}
    in_python |= {"batch_rows", "learning_rate", "weight_decay", "patience", "class_weights", "calibration", "threads"}
    in_python |= {"overwrite"}  # in a shell, the folder is deleted first
    assert {*inspect.signature(lengthwise_export.train).parameters} - in_python == command - of_shell


def test_what_a_function_returns_is_exported() -> None:
    exported = {name for names in EXPORTED.values() for name in names}
    returned = {inspect.signature(function).return_annotation for function in (*FUNCTIONS, *PREPARING)}
    assert returned - exported == set()


@pytest.mark.parametrize("kind", OF_CLASSES, ids=lambda kind: kind.__name__)
def test_no_public_class_says_that_a_part_of_it_is_not_stable(kind: type) -> None:
    assert "not a stable" not in " ".join((inspect.getdoc(kind) or "").split()).lower()


@pytest.mark.parametrize("package", EXPORTED, ids=lambda package: package.__name__)
def test_errors_are_one_tree(package: Any) -> None:
    kinds = [kind for kind in vars(package.errors).values() if inspect.isclass(kind) and issubclass(kind, Exception)]
    assert kinds
    assert all(issubclass(kind, lengthwise.errors.LengthwiseError) and kind.__doc__ for kind in kinds)


def test_hints_can_be_resolved() -> None:
    assert get_type_hints(lengthwise.load)["return"] is lengthwise.Model
