from pathlib import Path

import pytest

from lengthwise_export.training import figures
from lengthwise_export.training.objective import EvaluationScores
from lengthwise_export.training.train import Epoch, TrainingProgress

PNG = b"\x89PNG"


def test_a_learning_curve_is_drawn_with_and_without_validation(tmp_path: Path) -> None:
    for name, figure in (("with.png", 0.5), ("without.png", None)):
        progress = TrainingProgress()
        for number in range(3):
            progress.add(Epoch(number, 1.0 / (number + 1), figure, figure))
        figures.learning_curve(progress, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(PNG)


@pytest.mark.parametrize("classes", [2, 31])
def test_a_confusion_matrix_is_drawn_for_few_labels_and_many(tmp_path: Path, classes: int) -> None:
    counts = [[int(row == column) for column in range(classes)] for row in range(classes)]
    scores = EvaluationScores(0.1, 1.0, 1.0, classes, counts)
    labels = [f"label {number}" for number in range(classes)]
    figures.confusion_matrix(scores, labels, "single-label", tmp_path / "c.png", title="test split")
    assert (tmp_path / "c.png").read_bytes().startswith(PNG)
