"""TorchScript archives: the tensors that torch.jit reads, bit for bit, and nothing is ever run."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from daft.common.errors import UserError
from daft.networks import torchscript
from tests.helpers import fabricate_weights

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")

DTYPES = (torch.float64, torch.bfloat16, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


class Varied(nn.Module):
    """Every kind of attribute and of tensor that the pickle of a module has its own words for."""

    def __init__(self) -> None:
        super().__init__()
        noise = torch.arange(24.0).reshape(4, 6)
        self.transposed, self.sliced = nn.Parameter(noise.T), nn.Parameter(noise[1:3, ::2])
        self.tied, self.scalar = self.sliced, nn.Parameter(torch.tensor(2.5))
        self.parts = nn.ModuleDict({"0": nn.Linear(2, 3), "-1": nn.Sequential(nn.BatchNorm1d(3), nn.ReLU())})
        self.register_buffer("empty", torch.empty(0, 4))
        for dtype in DTYPES:
            self.register_buffer(
                f"of_{str(dtype).removeprefix('torch.')}", torch.tensor([0, 1, 100]).to(dtype)
            )
        self.number, self.text, self.nothing, self.pair = 3, "text", None, (1, 2.5)
        self.numbers, self.rates, self.flags, self.words = [1, 2], [0.5], [True], {"a": 1}

    def forward(self, x: Tensor) -> Tensor:
        return x


def saved(network: nn.Module, path: Path) -> Path:
    torch.jit.save(torch.jit.script(network), path)
    return path


def assert_read_as_by_torch(path: Path) -> dict[str, Tensor]:
    found, expected = torchscript.read_state_dict(path), torch.jit.load(path).state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        assert found[key].stride() == value.stride(), key
        assert torch.equal(found[key], value), key
    return found


def test_every_kind_of_tensor_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    found = assert_read_as_by_torch(saved(Varied(), tmp_path / "net.pt"))
    assert {value.dtype for value in found.values()} == {torch.float32, torch.int64, *DTYPES}
    assert "parts.-1.0.running_var" in found


def test_clips_archive_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "RN50.pt"
    fabricate_weights.clip(path, fabricate_weights.clip_visual())
    found = assert_read_as_by_torch(path)
    assert found["visual.conv1.weight"].dtype == torch.float16
    assert found["input_resolution"] == 224
    assert torchscript.is_archive(path)


def test_what_torch_saves_otherwise_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save({"weight": torch.ones(3)}, path)
    assert not torchscript.is_archive(path)
    with pytest.raises(UserError, match=r"net\.pt .*no module but dict"):
        torchscript.read_state_dict(path)
    path.write_bytes(b"<html>404</html>")
    assert not torchscript.is_archive(path)


def forged(path: Path, pickled: bytes, values: bytes = bytes(16), order: bytes = b"little") -> Path:
    members = {"data.pkl": pickled, "constants.pkl": b"", "data/0": values, "byteorder": order}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"x/{name}", content)
    return path


def module_of(offset: int = 0, size: int = 4, stride: int = 1, numel: int = 4, kind: str = "Float") -> bytes:
    """The pickle of a module whose `w` is a vector in the storage `0`."""
    words = ("w", "storage", "0", "cpu")
    text = {word: b"X" + len(word).to_bytes(4, "little") + word.encode() for word in words}
    number = {n: b"K" + bytes([n]) for n in (offset, size, stride, numel)}
    storage = b"(" + text["storage"] + f"ctorch\n{kind}Storage\n".encode() + text["0"] + text["cpu"]
    storage += number[numel] + b"tQ"
    shape = number[offset] + b"(" + number[size] + b"t(" + number[stride] + b"t\x89"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + shape + b"ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02c__torch__\nM\n)\x81}(" + text["w"] + tensor + b"ub."


def test_a_forged_archive_that_keeps_the_rules_is_read(tmp_path: Path) -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    path = forged(tmp_path / "net.pt", module_of(offset=1, size=2, stride=2), values.numpy().tobytes())
    assert torchscript.read_state_dict(path)["w"].tolist() == [2, 4]


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (module_of(size=5), "out of bounds"),
        (module_of(offset=1), "out of bounds"),
        (module_of(stride=2), "out of bounds"),
        (module_of(numel=3), "storage 0 has 16 bytes for 3 of torch.float32"),
        (module_of(numel=200), "storage 0 has 16 bytes for 200"),
        (module_of(kind="ComplexFloat"), "asks for torch.ComplexFloatStorage"),
        (module_of()[:-9], "ran out of data|truncated"),
        (b"\x80\x02c__torch__\nM\n.", "no module but type"),
        (b"\x80\x02c__torch__\nM\n)\x81.", "attributes"),
        (pickle.dumps(3), "no module but int"),
    ],
)
def test_a_pickle_of_anything_but_modules_and_their_tensors_is_refused(
    tmp_path: Path, pickled: bytes, message: str
) -> None:
    path = forged(tmp_path / "net.pt", pickled)
    with pytest.raises(UserError, match=rf"net\.pt cannot be read as a TorchScript archive: .*({message})"):
        torchscript.read_state_dict(path)


class Malice:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("call", [os.mkdir, eval, getattr, torch.load, pickle.loads])
def test_a_function_in_the_pickle_is_named_and_never_run(tmp_path: Path, call: Any) -> None:
    trace = tmp_path / "trace"
    arguments = (str(trace),) if call is os.mkdir else (f"__import__('os').mkdir({str(trace)!r})",)
    path = forged(tmp_path / "net.pt", pickle.dumps(Malice(call, *arguments), protocol=2))
    with pytest.raises(UserError, match=rf"asks for \S+\.{call.__name__}, which tensors do not need"):
        torchscript.read_state_dict(path)
    assert not trace.exists()
    if call is os.mkdir:
        pickle.loads(pickle.dumps(Malice(call, *arguments)))  # it would have run
        assert trace.exists()


def test_a_cut_off_or_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = saved(nn.Linear(50, 50), tmp_path / "net.pt")
    whole = path.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"net\.pt cannot be read"):
            torchscript.read_state_dict(path)
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as archive:
        weight = archive.read("net/data/0")
    at = whole.index(weight) + 5
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(UserError, match=r"Bad CRC-32"):
        torchscript.read_state_dict(path)


def test_values_in_another_byte_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"byte order is big, this machine's little"):
        torchscript.read_state_dict(forged(tmp_path / "net.pt", module_of(), order=b"big"))
