"""Files of weights: known by their content, and what is none is called what it is, with what to do."""

import argparse
import gzip
import io
import json
import pickle
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from timm.utils.checkpoint_saver import CheckpointSaver
from torch import Tensor

from daft.common.errors import UserError
from daft.networks import backbones, weight_files

STATE = {"conv.weight": torch.arange(4000.0), "bn.running_var": torch.ones(3)}


def packed(pack: Callable[[io.BytesIO], object]) -> bytes:
    content = io.BytesIO()
    pack(content)
    return content.getvalue()


def zipped(content: io.BytesIO) -> None:
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("weights/net.pt", packed(lambda file: torch.save(STATE, file)))


def tarred(content: io.BytesIO) -> None:
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("net.pt"))


WRITTEN = {
    "safetensors": safetensors.torch.save(STATE),
    "torch": packed(lambda file: torch.save(STATE, file)),
    "torch before 1.6": packed(lambda file: torch.save(STATE, file, _use_new_zipfile_serialization=False)),
    "a pickle of arrays": pickle.dumps({name: tensor.numpy() for name, tensor in STATE.items()}),
}


def same(found: dict[str, Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin", ".SAFETENSORS", ""])
@pytest.mark.parametrize("kind", ["safetensors", "torch", "torch before 1.6"])
def test_the_content_decides_how_a_file_is_read_and_not_its_name(
    tmp_path: Path, kind: str, suffix: str
) -> None:
    (tmp_path / "original").write_bytes(WRITTEN[kind])
    file = tmp_path / f"net{suffix}"
    file.symlink_to("original")
    assert same(weight_files.read(file))


def test_a_long_header_is_no_pickle(tmp_path: Path) -> None:
    """Whose length begins with the byte that pickles begin with."""
    starts = [safetensors.torch.save(STATE, {"note": "n" * length})[:2] for length in range(2000)]
    length = next(i for i, start in enumerate(starts) if start[0] == 0x80 and start[1] > 1)
    (tmp_path / "net").write_bytes(safetensors.torch.save(STATE, {"note": "n" * length}))
    assert same(weight_files.read(tmp_path / "net"))


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_file_that_is_cut_short_anywhere_is_refused_by_its_name(tmp_path: Path, kind: str) -> None:
    file, whole = tmp_path / "net.pt", WRITTEN[kind]
    for length in [0, 1, 7, 8, 9, 20, 200, *range(500, len(whole) - 1, 3000), len(whole) - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"net\.pt .*again|net\.pt .*expected safetensors") as caught:
            weight_files.read(file)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty: copy or fetch it again"),
        (bytes(5000), r"begins with nothing but zeros: copy or fetch it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 44700000\n",
            r"run `git lfs pull`",
        ),
        (
            b"\n<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title>",
            r"a web page \('Google Drive - Virus scan warning'\), not the weights: fetch the file itself",
        ),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", r"a web page, not the weights"),
        (json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}).encode(), r"JSON.* index of"),
        (gzip.compress(WRITTEN["torch"]), r"packed files, not weights: unpack it"),
        (packed(tarred), r"packed files, not weights: unpack it"),
        (packed(zipped), r"unpack it.*\(there is weights/net\.pt\)"),
        (packed(lambda file: np.savez(file, a=np.ones(3))), r"packed files.*\(there is a\.npy\)"),
        (
            packed(lambda file: np.save(file, np.ones(3))),
            r"an array of NumPy: save the weights",
        ),
        (b"\x89HDF\r\n\x1a\n" + bytes(9), r"HDF5"),
        (b"once upon a time", r"no file of weights, it begins with b'once upon a '"),
    ],
)
def test_what_is_no_file_of_weights_is_called_what_it_is(
    tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "net.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"{re.escape(str(file))} (is )?.*{message}") as caught:
        weight_files.read(file)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "net.pt"
    file.write_bytes(WRITTEN["torch"])

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refused)  # root may read everything
    with pytest.raises(UserError, match=r"net\.pt cannot be read: Permission denied"):
        weight_files.read(file)


def test_a_file_of_timms_checkpoint_saver_loads_with_the_keys_that_a_message_names(tmp_path, configure):
    """It holds a Namespace and the optimiser beside the weights."""
    model = timm.create_model("resnet10t", num_classes=7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    arguments = argparse.Namespace(model="resnet10t", device=torch.device("cpu"), out=tmp_path)
    saver = CheckpointSaver(
        model, optimizer, arguments, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path)
    )
    saver.save_checkpoint(3, metric=12.5)
    file = tmp_path / "last.pth.tar"
    named = ["backbone=timm", "backbone.model=resnet10t", "backbone.weights=file"]
    named.append(f"backbone.checkpoint={file}")
    with pytest.raises(
        UserError, match=r"would fit with backbone\.wrapper=state_dict backbone\.drop=\[fc\.\]"
    ):
        backbones.load(configure(*named).backbone)
    right = configure(*named, "backbone.wrapper=state_dict", "backbone.drop=[fc.]")
    loaded = backbones.load(right.backbone).state_dict()
    weight = next(tensor for name, tensor in loaded.items() if name.endswith("layer1.0.conv1.weight"))
    assert torch.equal(weight, model.state_dict()["layer1.0.conv1.weight"])


def test_a_variable_that_forbids_to_read_more_than_tensors_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, plain = tmp_path / "net.pt", tmp_path / "plain.pt"
    torch.save({"state_dict": STATE, "args": argparse.Namespace(lr=0.1)}, file)
    torch.save(STATE, plain)
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    assert same(weight_files.read(plain))
    with pytest.raises(
        UserError, match=r"net\.pt holds more .* TORCH_FORCE_WEIGHTS_ONLY_LOAD=1 .*; unset it"
    ):
        weight_files.read(file)
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    assert same(weight_files.read(file)["state_dict"])
