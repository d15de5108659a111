"""Claims about what Hydra complains of: one line, with the key and what is right."""

import pytest

from daft.common.errors import UserError
from daft.config.compose import composed


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method=sgd", ["method=sgd: no such option", "daft, ft"]),
        ("sede=1", ["sede: no such key", "seed"]),
        ("hydra.runn.dir=x", ["hydra.runn.dir: no such key", "--cfg hydra"]),
        ("method=lp,ft", ["several values need -m", "train.py -m method=lp,ft"]),
        ("method", ["method: write key=value"]),
        ("dataset.ood_mean=[photo],", ["a list has no comma at its end"]),
        ("dataset.root=/x(y)", ["dataset.root=/x(y): cannot be read", "with both quotes"]),
    ],
)
def test_an_error_of_hydra_is_one_line(override: str, words: list[str]):
    with pytest.raises(UserError) as caught:
        composed(override)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
