"""Claims about unequal classes."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from daft.data import balance


def test_classes_are_unequal_from_one_and_a_half_times_as_many_images():
    assert not balance.is_unequal([10, 15, 12])
    assert balance.is_unequal([10, 16])
    assert not balance.is_unequal([10, 10, 0])
    assert not balance.is_unequal([5])


def test_weights_are_scikit_learns_balanced_ones_and_an_image_weighs_one_on_average():
    labels = torch.tensor([0] * 7 + [1] * 2 + [3] * 11)
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels.numpy())
    weights = balance.weights(labels, 5)
    assert weights[[0, 1, 3]].tolist() == pytest.approx(expected.tolist())
    assert weights[[2, 4]].tolist() == [0, 0]
    assert float(weights[labels].mean()) == pytest.approx(1)
    assert balance.counts(labels, 5) == [7, 2, 0, 11, 0]
