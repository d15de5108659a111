"""Claims about predictions: measures of libraries, and by class what is counted by hand."""

import math

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, log_loss
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

from daft.training import predictions
from daft.training.predictions import BINS, Predictions
from tests.training.test_loop import loader

CLASSES = 4


def drawn(images: int = 500, sure: float = 2.0) -> tuple[Predictions, torch.Tensor]:
    """Predictions of unequal classes, and their probabilities [N, K]."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.tensor([8.0, 4.0, 1.0, 0.0]), images, True, generator=generator)
    logits = sure * torch.randn(images, CLASSES, generator=generator)
    logits[torch.arange(images), labels] += 1
    probability = logits.softmax(1)
    loss = nn.functional.cross_entropy(logits, labels, reduction="none")
    return Predictions(labels, logits.argmax(1), probability.amax(1), loss), probability


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("sure", [0.0, 0.3, 2.0, 30.0])
def test_measures_are_those_of_torchmetrics_and_scikit_learn(sure: float):
    found, probability = drawn(sure=sure)
    measures = found.measures(CLASSES)
    ece = multiclass_calibration_error(probability, found.labels, CLASSES, n_bins=BINS, norm="l1")
    # It adds up in float32: BINS sums of at most N terms below 1, each N ε / 2 off at most, over N.
    assert measures["ece"] == pytest.approx(100 * float(ece), abs=100 * BINS * 500 * 2**-24)
    expected = balanced_accuracy_score(found.labels, found.predicted)
    assert measures["balanced_accuracy"] == pytest.approx(100 * expected)
    if sure < 30:  # else a probability of float32 is 0 where its logarithm is not
        exact = probability.double() / probability.double().sum(1, keepdim=True)
        assert measures["nll"] == pytest.approx(
            log_loss(found.labels, exact, labels=range(CLASSES)), rel=1e-5
        )
    assert found.confusion(CLASSES).tolist() == (
        confusion_matrix(found.labels, found.predicted, labels=range(CLASSES)).tolist()
    )


def test_what_is_sure_and_right_is_calibrated_and_what_is_sure_and_wrong_is_not():
    labels, ones = torch.tensor([0, 1]), torch.ones(2)
    assert Predictions(labels, labels, ones, ones).measures(2) == {
        "balanced_accuracy": 100,
        "nll": 1,
        "ece": 0,
    }
    assert Predictions(labels, 1 - labels, ones, ones).measures(2)["ece"] == 100


def test_accuracy_is_by_class_and_none_where_there_is_no_image():
    labels, predicted = torch.tensor([0, 0, 0, 2]), torch.tensor([0, 1, 0, 2])
    found = Predictions(labels, predicted, torch.ones(4), torch.ones(4))
    assert found.per_class(4) == {
        "images": [3, 0, 1, 0],
        "accuracy": [pytest.approx(200 / 3), None, 100, None],
    }
    assert found.measures(4)["balanced_accuracy"] == pytest.approx((200 / 3 + 100) / 2)


def test_nothing_is_measured_of_logits_that_are_not_finite():
    head = nn.Linear(3, 2)
    nn.init.constant_(head.weight, math.nan)
    found = predictions.of_features(head, torch.ones(10, 3), loader())
    assert all(math.isnan(value) for value in found.measures(2).values())


def test_predictions_of_a_head_are_its_own_in_order():
    head, features = nn.Linear(3, 2), torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    found = predictions.of_features(head, features, loader())  # 4 + 4 + 2 images
    logits = head(features)
    assert torch.equal(found.predicted, logits.argmax(1))
    assert torch.equal(found.labels, loader().labels)
    assert torch.allclose(found.loss, nn.functional.cross_entropy(logits, found.labels, reduction="none"))
