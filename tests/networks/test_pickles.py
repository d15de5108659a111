"""What training scripts save beside weights is neither in the way of them nor ever run."""

import argparse
import collections
import enum
import functools
import os
import pathlib
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, _utils, nn

from daft.common.errors import UserError
from daft.networks import pickles, weight_files

WEIGHTS = {"conv.weight": torch.arange(24.0).reshape(2, 3, 4), "bn.num_batches_tracked": torch.tensor(7)}


class Colour(enum.Enum):
    RED = 1


class Settings(dict[str, Any]):
    """A dictionary of a class of its own, as EasyDict and Lightning's AttributeDict."""


class Names(list[str]):
    pass


class Averaged:
    """A shadow of the weights, as timm's ModelEma and others keep it."""

    def __init__(self, module: object) -> None:
        self.module, self.decay = module, 0.999


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)
        self.body = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU())
        self.register_buffer("grid", torch.ones(2), persistent=False)
        self.register_buffer("scale", torch.tensor(3.0))
        self.activate = functools.partial(torch.relu)


FORMATS: list[dict[str, Any]] = [
    {},
    {"pickle_protocol": 4},
    {"_use_new_zipfile_serialization": False},
]

BESIDE = {
    "arguments": argparse.Namespace(lr=0.1),
    "metric": np.float64(71.2),
    "path": pathlib.PurePosixPath("/data"),
    "types": [Colour.RED, np.dtype("f4"), torch.float16, int, np.ndarray, len],
    "keys": {Colour.RED: 1, pathlib.PurePosixPath("/a"): 2},
    "items": collections.defaultdict(list, {"a": [1]}),
    "own": [Settings(a=Settings(b=1)), Names(["a"]), {1, 2}, frozenset([3])],
    "text": np.array(["a", "b"], dtype=object),
    "hook": functools.partial(print, "hello"),
    "device": torch.device("cuda", 1),
}


def saved(content: object, file: Path, **keywords: Any) -> Any:
    """What is read of a checkpoint with this content."""
    torch.save(content, file, **keywords)
    return weight_files.read(file)


def same(found: dict[str, Any] | None, expected: dict[str, Tensor]) -> bool:
    return (
        found is not None
        and found.keys() == expected.keys()
        and all(
            torch.equal(found[name], value) and found[name].dtype == value.dtype
            for name, value in expected.items()
        )
    )


@pytest.mark.parametrize("keywords", FORMATS)
@pytest.mark.parametrize("name", BESIDE)
def test_whatever_else_is_in_a_checkpoint_its_weights_are_read(
    tmp_path: Path, name: str, keywords: dict[str, Any]
) -> None:
    found = saved({"epoch": 3, "state_dict": WEIGHTS, name: BESIDE[name]}, tmp_path / "net.pt", **keywords)
    assert found["epoch"] == 3
    assert same(found["state_dict"], WEIGHTS)


@pytest.mark.parametrize("keywords", FORMATS)
def test_weights_in_an_object_are_read_as_its_parts(tmp_path: Path, keywords: dict[str, Any]) -> None:
    found = saved(Settings(model=Settings(WEIGHTS)), tmp_path / "net.pt", **keywords)
    held = pickles.entries(found)
    assert held is not None
    assert same(pickles.entries(held["model"]), WEIGHTS)
    found = saved({"ema": Averaged(WEIGHTS)}, tmp_path / "net.pt", **keywords)
    shadow = pickles.entries(found["ema"])
    assert shadow is not None
    assert shadow["decay"] == 0.999
    assert same(shadow["module"], WEIGHTS)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("keywords", FORMATS)
def test_of_a_network_that_was_saved_whole_its_state_dict_is_read(
    tmp_path: Path, keywords: dict[str, Any]
) -> None:
    network = Net()
    with torch.no_grad():
        for i, tensor in enumerate(network.state_dict().values()):
            tensor.fill_(i + 0.5) if tensor.is_floating_point() else tensor.fill_(9)
    for content in (network, nn.DataParallel(network)):
        expected = content.state_dict()
        assert same(pickles.entries(saved(content, tmp_path / "net.pt", **keywords)), expected)
    assert "scale" in network.state_dict()
    assert "grid" not in network.state_dict()


DTYPES = ["<f8", ">f4", "<f2", "<i8", ">i4", "<i2", "|i1", "|u1", "|b1", "<c8"]


@pytest.mark.parametrize("keywords", FORMATS)
def test_arrays_of_numpy_are_tensors_of_the_same_numbers(tmp_path: Path, keywords: dict[str, Any]) -> None:
    base = np.arange(24).reshape(2, 3, 4)
    arrays = {kind: base.astype(kind) for kind in DTYPES}
    arrays |= {"transposed": base.T, "part": base[:, ::2], "none": np.zeros((0, 3)), "one": np.array(5.0)}
    found = pickles.entries(saved(arrays, tmp_path / "net.pt", **keywords))
    assert found is not None
    for name, array in arrays.items():
        expected = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name], expected), name


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_alone_is_read_too(tmp_path: Path, protocol: int) -> None:
    content = {"tensors": WEIGHTS | {"part": WEIGHTS["conv.weight"][:, 1:, ::2]}, "arrays": np.eye(3)[1:]}
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(content, protocol))
    found = weight_files.read(tmp_path / "net.pkl")
    assert same(found["tensors"], content["tensors"])
    assert same(pickles.entries({"a": found["arrays"]}), {"a": torch.eye(3, dtype=torch.float64)[1:]})


class Calls:
    """An object that is made by a call."""

    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.call = call, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("keywords", FORMATS)
@pytest.mark.parametrize("call", [os.mkdir, os.system, subprocess.call, eval, exec])
def test_a_checkpoint_that_would_run_something_is_refused_and_nothing_is_run(
    tmp_path: Path, call: Callable[..., object], keywords: dict[str, Any]
) -> None:
    trace = tmp_path / "trace"
    commands: dict[Callable[..., object], object] = {
        os.mkdir: str(trace),
        os.system: f"mkdir {trace}",
        subprocess.call: ["mkdir", str(trace)],
    }
    command = commands.get(call, f"__import__('os').mkdir({str(trace)!r})")
    content = {"state_dict": WEIGHTS, "evil": Calls(call, command)}
    refusal = rf"net\.pt .*it asks for \w+\.{call.__name__}, which weights do not need"
    with pytest.raises(UserError, match=refusal):
        saved(content, tmp_path / "net.pt", **keywords)
    assert not trace.exists()
    torch.load(tmp_path / "net.pt", weights_only=False)  # it would have run
    assert trace.exists()


@pytest.mark.parametrize("keywords", FORMATS)
def test_other_calls_are_not_made_either(tmp_path: Path, keywords: dict[str, Any]) -> None:
    trace = tmp_path / "trace"
    content = {"state_dict": WEIGHTS, "evil": [Calls(pathlib.Path.touch, trace), Calls(getattr, "", "upper")]}
    assert same(saved(content, tmp_path / "net.pt", **keywords)["state_dict"], WEIGHTS)
    assert not trace.exists()


def test_a_pickle_cannot_change_what_it_is_given(tmp_path: Path) -> None:
    """A pair of states sets attributes of what stands before it, here the defaults of a function."""
    file, function = tmp_path / "net.pkl", b"ctorch._utils\n_rebuild_tensor_v2\n"
    file.write_bytes(b"\x80\x02" + function + b"N}X\x0c\x00\x00\x00__defaults__K\x01\x85s\x86b.")
    before = _utils._rebuild_tensor_v2.__defaults__
    with pytest.raises(UserError, match=r"net\.pkl does not load"):
        weight_files.read(file)
    assert _utils._rebuild_tensor_v2.__defaults__ == before
    changed = pickle.loads(file.read_bytes())  # it would have been changed
    assert changed.__defaults__ == (1,)
    changed.__defaults__ = before
