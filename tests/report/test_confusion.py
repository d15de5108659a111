"""Claims about the picture of a confusion matrix."""

from typing import Any

import numpy as np
import torch

from daft.report.figures import confusion
from daft.use.predictions import score
from tests.report.test_figures import images, texts

COUNTS = torch.tensor([[3, 1, 0], [0, 0, 0], [2, 0, 2]])


def test_cells_are_percent_of_a_class_and_a_class_without_images_has_none():
    figure: Any = confusion.figure(COUNTS, ["cat", "dog", "a very long name of a newt"])
    (shares,) = map(np.ma.asarray, images(figure))
    assert shares[[0, 2]].tolist() == [[75, 25, 0], [50, 0, 50]]
    assert np.ma.getmaskarray(shares)[1].all()
    said = texts(figure).splitlines()
    assert {"75", "25", "50", "cat", "a very long n…"} <= {*said}


def test_its_accuracies_are_those_that_are_printed():
    found = score(COUNTS)
    assert found is not None
    assert (found.images, found.accuracy, found.balanced_accuracy, found.classes) == (8, 62.5, 62.5, 2)
    figure: Any = confusion.figure(COUNTS, ["cat", "dog", "newt"])
    assert "n = 8, accuracy 62.50 %, balanced 62.50 %" in texts(figure)


def test_of_many_classes_some_are_named_and_no_cell_is_written():
    figure: Any = confusion.figure(torch.eye(200, dtype=torch.int64), [f"class {i}" for i in range(200)])
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()][:2] == ["class 0", "class 5"]
    assert len(axes.get_xticks()) == 40
    assert not axes.texts
    assert axes.get_ylabel() == "is, of 200 classes in label order"
