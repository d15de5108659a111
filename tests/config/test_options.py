"""Claims about the help page: it names every option and key, also those that Hydra composes."""

import re
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from daft.config.compose import composed
from daft.config.options import CONF, ROOT, help_page, options
from tests.helpers.waiting import HANG_SECONDS


def train(*arguments: str) -> str:
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=True)
    return done.stdout


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_the_help_of_train_is_the_page(flag: str):
    assert train(flag).rstrip() == help_page().rstrip()


def test_the_page_names_every_option_and_every_key_with_the_default_that_hydra_composes():
    page = help_page()
    for folder in CONF.iterdir():
        if folder.is_dir() and folder.name != "hydra":
            assert f"\n{folder.name}: {', '.join(options(folder.name))}\n" in page
    keys = OmegaConf.create(page[page.index("\nseed: ") :])
    assert keys == composed()
    assert "# all datasets (authors' configs)" in page
    assert not re.search(r"\$[A-Z]", page)


def test_the_help_of_a_choice_is_composed_by_hydra():
    told = train("--help", "method=lp", "training.momentum=0.5")
    assert "  momentum: 0.5\n" in told
    assert "  rates: frozen\n" in told
    assert options("dataset")[0] in told
