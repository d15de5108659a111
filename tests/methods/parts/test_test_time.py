"""Claims about evaluation with the BN statistics of the evaluated batches."""

import pytest
import torch
from torch import nn

from daft.batchnorm import batchnorm_layers
from daft.common.errors import UserError
from daft.methods.parts.test_time import batch_statistics


def test_a_shift_that_all_images_share_is_undone():
    """By hand: 2, 4, 6 and 8 are above the running mean, 0; of their own mean, 5, half of them are."""
    layer = nn.BatchNorm1d(1, eps=1e-12).eval()
    x = torch.tensor([[2.0], [4.0], [6.0], [8.0]])
    assert (layer(x) > 0).all()
    with batch_statistics(layer):
        # variance (9 + 1 + 1 + 9) / 4 = 5
        expected = torch.tensor([[-3.0], [-1.0], [1.0], [3.0]]) / 5**0.5
        torch.testing.assert_close(layer(x), expected, rtol=4 * 2**-24, atol=0)


def test_statistics_are_afterwards_what_they_were_also_after_an_error(model, batch):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.eval()
    usual = model(batch[0])

    def fail_within():
        with batch_statistics(model):
            model(batch[0])
            raise KeyError

    with pytest.raises(KeyError):
        fail_within()
    assert {*model.state_dict()} == {*before}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(model(batch[0]), usual)


def test_every_layer_takes_the_statistics_that_it_takes_in_train_mode(model, batch):
    with torch.no_grad():
        for layer in batchnorm_layers(model).values():
            assert layer.running_mean is not None
            layer.running_mean.normal_()
        model.eval()
        with batch_statistics(model):
            found = model(batch[0])
        assert torch.equal(found, model.train()(batch[0]))


def test_batches_of_one_image_are_refused_where_there_can_be_any(configure):
    masks = ["dataset=shapes_masks", "method=ft", "part=test_time"]
    assert configure(*masks).segmentation.eval_batch_size > 1
    with pytest.raises(UserError, match=r"^method\.parts\.test_time: bn, but segmentation.eval_batch_size=1"):
        configure(*masks, "segmentation.eval_batch_size=1")
    with pytest.raises(UserError, match=r"^training\.batch_size: 1 is not allowed"):
        configure("part=test_time", "training.batch_size=1")
