"""Claims about the package as other projects install it: it needs no folder of the repository."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import daft
from daft.use.loaded import Predictions

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, sys
import daft, torch

torch.set_num_threads(int(sys.argv[1]))
run, files = daft.load_run(sys.argv[2]), sys.argv[3:]
same = daft.best_run(run.directory.parent, dataset="drawn", method="daft")
assert same.directory == run.directory
from daft.data.sources import imagenet, shapes
print(json.dumps([daft.__file__, run.classes, run.predict(files).logits.tolist()]))
"""


def installed(folder: Path) -> Path:
    """Where pip puts the package, built from a copy of what it is built from, without a network."""
    pytest.importorskip("setuptools")
    for name in ("daft", "hydra_plugins"):
        shutil.copytree(ROOT / name, folder / "copy" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / "copy" / name)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    pip += ["--no-build-isolation", "--target", folder / "library", folder / "copy"]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "library"


def test_a_finished_run_predicts_from_any_directory_by_the_installed_package(
    copied: Path, images: Path, tmp_path: Path
):
    library = installed(tmp_path)
    for name in ("networks/weights/shapes_resnet10.safetensors", "data/sources/breeds.json"):
        assert (library / "daft" / name).read_bytes() == (ROOT / "daft" / name).read_bytes()
    files = [str(file) for file in sorted((images / "val" / "star").iterdir())]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(torch.get_num_threads()), copied, *files],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(library)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    file, classes, logits = json.loads(done.stdout)
    assert Path(file).is_relative_to(library)
    run = daft.load_run(copied)
    assert classes == run.classes
    found = run.predict(files)
    assert isinstance(found, Predictions)
    assert logits == found.logits.tolist()  # to the last bit
