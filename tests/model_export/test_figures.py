import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from lengthwise_export.training import figures, report_page
from lengthwise_export.training.objective import EvaluationScores
from lengthwise_export.training.train import Epoch, TrainingProgress

PNG = b"\x89PNG"


def test_a_learning_curve_is_drawn_with_and_without_validation(tmp_path: Path) -> None:
    for name, figure in (("with.png", 0.5), ("without.png", None)):
        progress = TrainingProgress()
        for number in range(3):
            progress.add(Epoch(number, 1.0 / (number + 1), figure, figure))
        figures.learning_curve(progress, tmp_path / name, origin="seed 7, 270 records of vowels.ts")
        assert (tmp_path / name).read_bytes().startswith(PNG)
        assert b"270 records of vowels.ts" in (tmp_path / name).read_bytes()
    wide, narrow = (np.asarray(imread(tmp_path / name)).shape[1] for name in ("with.png", "without.png"))
    assert narrow < 0.7 * wide  # no empty plot beside the losses


@pytest.mark.parametrize("classes", [2, 31])
def test_a_confusion_matrix_is_drawn_for_few_labels_and_many(tmp_path: Path, classes: int) -> None:
    counts = [[int(row == column) for column in range(classes)] for row in range(classes)]
    scores = EvaluationScores(0.1, 1.0, 1.0, classes, counts)
    labels = [f"label {number}" for number in range(classes)]
    figures.confusion_matrix(scores, labels, "single-label", tmp_path / "c.png", title="test split")
    assert (tmp_path / "c.png").read_bytes().startswith(PNG)


SCORES = {
    "answers": 341,
    "accuracy": 0.9,
    "confusion": [[300, 40], [0, 1]],
    "reliability": [
        {"from": 0.5, "to": 0.6, "answers": 1, "confidence": 0.55, "accuracy": 1.0},
        {"from": 0.9, "to": 1.0, "answers": 340, "confidence": 0.97, "accuracy": 0.95},
    ],
}
MADE = {"date": "2026-11-23", "version": "1", "seed": 7, "data": "vowels.ts", "records": 270, "test_records": 0}


def test_the_charts_of_the_page_have_axes_counts_colours_and_their_origin() -> None:
    epochs = [{"training_loss": 2.18, "validation_loss": None}, {"training_loss": 0.4, "validation_loss": None}]
    report = {"labels": ["a", "b"], "validation": SCORES, "epochs": epochs, "made": MADE, "spec": {"input": {"x": 1}}}
    page = report_page.page(report, "runs/vowels")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", page)
    assert {"predicted probability", "accuracy", "epoch", "loss", "1", "340", "0.5"} <= set(texts)
    assert "validation" not in texts  # no line of what was not measured
    strengths = [float(each) for each in re.findall(r'fill-opacity="([\d.]+)"', page)]
    assert strengths[0] < 0.5 * strengths[1]
    shares = [int(each) for each in re.findall(r"var\(--accent\) (\d+)%", page)]
    assert shares[1] < shares[0]
    assert shares[2] == 0
    for part in ("2026-11-23", "seed 7", "270 records of vowels.ts", "[input]"):
        assert part in page
