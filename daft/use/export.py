"""Networks of finished runs in formats of others, each compared with the run's own before it counts."""

import io
import json
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from daft.batchnorm import full_precision
from daft.common.errors import UserError, first_line
from daft.common.files import write_together
from daft.common.memory import is_lack_of_memory
from daft.config.operations import Resize
from daft.data.transforms import gives_one_shape, min_side
from daft.networks.classifier import Classifier
from daft.networks.folding import fold_batchnorm
from daft.use.loaded import LoadedRun

Format = Literal["onnx", "timm", "torchscript"]
InputType = Literal["uint8", "float32"]

FILES: dict[Format, str] = {"onnx": "model.onnx", "timm": "model.safetensors", "torchscript": "model.pt"}
"""What the network is called in each format."""

README = "README.md"
"""Beside it."""

NEEDED = ("onnx", "onnxscript", "onnxruntime")
"""Packages for ONNX."""

IMAGES = 8
"""That exports are compared on."""

SLACK = 8.0
"""Of the tolerance, over the rounding error that the run's own network has on the same images."""

ANY_SIDE = (64, 96)
"""Height and width in pixels of these images where the network takes any."""


@dataclass(frozen=True)
class Exported:
    """A network in another format, and how far it is from the run's own."""

    format: Format
    file: Path
    height: int | None
    width: int | None
    """in pixels, of the images that it takes; None: any"""
    input_type: InputType
    folded: int
    """BN layers that are gone"""
    difference: float
    """the largest of any logit"""
    tolerance: float

    @property
    def size(self) -> str:
        """Of the images, in words."""
        return f"{self.height} x {self.width} pixels" if self.height else "any size"


def export(
    run: LoadedRun,
    kind: Format,
    out: Path,
    *,
    fold_bn: bool = False,
    input_type: InputType = "uint8",
    card: Callable[[Exported], str] | None = None,
) -> Exported:
    """Write a run's network to a folder, and compare it.

    fold_bn: without the BN layers that follow a convolution. input_type: of images [B, 3, H, W] in RGB:
    uint8, or float32 in [0, 1]. timm's networks take neither, but floats that are normalised already. card:
    what is written to README.md.

    Raises UserError, and writes nothing, for what the format cannot hold, and if the logits are not those of
    the run within rounding.
    """
    _require_possible(run, kind, fold_bn)
    side = _sides(run)
    told = f"{run.run}: --to {kind}"
    with _in_one_line(told):
        model = deepcopy(run.model).cpu().to(memory_format=torch.contiguous_format).eval()
        given = _as(sample(IMAGES, *(side or ANY_SIDE)), input_type)
        exact, tolerance = _reference(model, given)
        folded = len(fold_batchnorm(model, _as(given, "float32"))) if fold_bn else 0
    with tempfile.TemporaryDirectory() as made:
        write = {"onnx": _to_onnx, "timm": _to_timm, "torchscript": _to_torchscript}[kind]
        with _in_one_line(told):
            compute = write(run, model, given, side, Path(made))
            # One image and several; where it takes them, others of another size.
            difference = _distance(torch.cat([compute(given[:1]), compute(given[1:])]), exact)
            if side is None:
                given = _as(sample(IMAGES, *reversed(ANY_SIDE)), input_type)
                exact, allowed = _reference(run.model.cpu(), given)
                difference = max(difference, _distance(compute(given), exact) * tolerance / allowed)
        if not difference <= tolerance:
            raise UserError(
                f"{run.run}: the logits of the export are up to {difference:.3g} from the run's own, where "
                f"rounding explains {tolerance:.3g}; it is not written"
            )
        files = {file.name: file.read_bytes() for file in sorted(Path(made).iterdir())}
    height, width = side or (None, None)
    done = Exported(kind, out / FILES[kind], height, width, input_type, folded, difference, tolerance)
    write_together(out, files | ({README: card(done).encode()} if card else {}))
    return done


@contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    """Raise what a library complains of, by whatever kind of error, as a UserError."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        if is_lack_of_memory(error):
            raise
        raise UserError(f"{what}: {_reason(error)}; nothing is written") from error


def _reason(error: BaseException) -> str:
    """The operator that is lacking, or else the first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    if operator := re.search(r"OpOverload\(op='([\w.]+)'", text):
        return f"ONNX has no operator for {operator[1]}, which --to torchscript may take"
    if operator := re.search(r"ONNXRuntimeError.*NOT_IMPLEMENTED.*implementation for (\w+)", text):
        return f"onnxruntime, which compares it, does not compute {operator[1]}"
    if "data-dependent" in text:
        return "what the network computes depends on the values of its images, by an if or a size"
    return first_line(Exception(text)) if text.strip() else type(error).__name__


def _require_possible(run: LoadedRun, kind: Format, fold_bn: bool) -> None:
    if kind == "onnx" and (absent := [name for name in NEEDED if find_spec(name) is None]):
        raise UserError(f"--to onnx needs {', '.join(absent)}; pip install {' '.join(NEEDED)}")
    if kind != "timm":
        return
    backbone, hidden = run.run.config.backbone, run.run.config.method.head_hidden
    if run.segments:
        reason = "the run is a segmentation, and timm's networks classify images"
    elif backbone.source == "import":
        reason = f"{backbone.model} is no network of timm"
    elif hidden:
        reason = f"its head has hidden layers ({hidden}), and timm's have one layer"
    elif fold_bn:
        reason = "timm's networks have their BN layers; leave --fold-bn out"
    else:
        return
    raise UserError(f"{run.run}: --to timm: {reason}; --to onnx or torchscript takes it as it is")


def _sides(run: LoadedRun) -> tuple[int, int] | None:
    """Height and width of what the transform gives, None if they are the image's."""
    operations, only = run.transform.operations, run.transform.input_size
    if not gives_one_shape(operations):
        return (only, only) if only else None
    least = max(min_side(operations), *ANY_SIDE)
    _, height, width = run.transform.transformed(torch.zeros(3, least, least, dtype=torch.uint8)).shape
    return height, width


def _as(images: Tensor, input_type: InputType) -> Tensor:
    return images / 255 if input_type == "float32" and images.dtype == torch.uint8 else images


def _distance(logits: Tensor, exact: Tensor) -> float:
    return float((logits - exact).abs().max())


def sample(count: int, height: int, width: int) -> Tensor:
    """Smooth pictures in random colours, uint8 [count, 3, height, width], always the same."""
    generator = torch.Generator().manual_seed(0)
    coarse = F.interpolate(
        torch.rand(count, 3, 6, 6, generator=generator), (height, width), mode="bicubic", antialias=True
    )
    noise = 0.1 * torch.randn(count, 3, height, width, generator=generator)
    return (255 * (coarse + noise)).clamp(0, 255).byte()


@torch.no_grad()
def _reference(model: nn.Module, images: Tensor) -> tuple[Tensor, float]:
    """Logits in float64, and how far an export may be from them.

    An export adds up the same products in float32, in another order. So its error is drawn from the same
    distribution as that of the network itself in float32, whose largest value is measured here. The largest
    of as many draws is above SLACK times that only if something else than rounding is wrong. Values that
    happen to be all but exact are off by some units in the last place all the same.
    """
    with full_precision(torch.device("cpu")):
        exact = deepcopy(model).double()(images)
        error = (model(images) - exact).abs().max()
    last_place = torch.finfo(torch.float32).eps * exact.abs().max()
    return exact, SLACK * float(torch.maximum(error.double(), last_place))


def _to_onnx(
    run: LoadedRun, model: Classifier, images: Tensor, side: tuple[int, int] | None, folder: Path
) -> Callable[[Tensor], Tensor]:
    """Batch of any size; names of classes and what the input is are in the metadata."""
    import onnx_ir as ir
    import onnxruntime

    dynamic: dict[int, Any] = {0: torch.export.Dim("batch")}
    if side is None:
        dynamic |= {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    with _quiet():
        program = torch.onnx.export(
            model,
            (images[:2],),  # torch.export takes a batch of one for a constant
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=(dynamic,),
            verbose=False,
        )
    assert program is not None
    if run.segments and side is None:  # else it is a formula of the padding
        program.model.graph.outputs[0].shape = ir.Shape(["batch", len(run.classes), "height", "width"])
    program.model.metadata_props.update(metadata(run))
    file = folder / FILES["onnx"]
    program.save(file, external_data=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(np.asarray(session.run(None, {"images": x.numpy()})[0]))


def _to_torchscript(
    run: LoadedRun, model: Classifier, images: Tensor, side: tuple[int, int] | None, folder: Path
) -> Callable[[Tensor], Tensor]:
    """A trace; names of classes and what the input is are in the archive's `extra` files."""
    file = folder / FILES["torchscript"]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch prefers newer formats, and what it doubts is compared below
        traced = torch.jit.trace(model, images[:2])
        torch.jit.save(traced, str(file), _extra_files=metadata(run))
        loaded = torch.jit.load(str(file))

    def compute(x: Tensor) -> Tensor:
        with torch.no_grad():
            return loaded(x)

    return compute


def _to_timm(
    run: LoadedRun, model: Classifier, images: Tensor, side: tuple[int, int] | None, folder: Path
) -> Callable[[Tensor], Tensor]:
    """Weights by timm's names, and the file that the Hub and `local-dir:` read; normalisation is outside."""
    cfg, own = run.run.config.backbone, run.model
    arguments: dict[str, Any] = cfg.model_args | {"num_classes": len(run.classes)}
    network: Any = timm.create_model(cfg.model, pretrained=False, **arguments)
    classifier = network.pretrained_cfg.get("classifier")
    if not isinstance(classifier, str):
        raise UserError(f"{run.run}: --to timm: {cfg.model} has no classifier of its own; --to onnx takes it")
    expected = network.state_dict()
    head = {name.replace("linear1", classifier): value for name, value in own.head.state_dict().items()}
    try:
        head = {
            name: value.view_as(expected[name]) for name, value in head.items()
        }  # of 1 x 1 pixels in some
        network.load_state_dict(own.backbone.network.state_dict() | head)
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{run.run}: --to timm: {cfg.model} has other layers with a classifier") from error
    about = {"label_names": run.classes, "pretrained_cfg": _preprocessing(run, side)}
    about["model_args"] = cfg.model_args
    timm.models.save_for_hf(network, str(folder), about, safe_serialization=True)
    file = folder / FILES["timm"]
    save_file({k: v.cpu().contiguous() for k, v in network.state_dict().items()}, file, metadata(run))
    loaded = timm.create_model(cfg.model, checkpoint_path=str(file), **arguments).eval()

    @torch.no_grad()
    def compute(x: Tensor) -> Tensor:
        return loaded(model.backbone.normalised(x))

    return compute


def _preprocessing(run: LoadedRun, side: tuple[int, int] | None) -> dict[str, Any]:
    """What timm says of a network's images, in place of what it says of its own weights of that name."""
    cfg = run.run.config.backbone
    about: dict[str, Any] = {"mean": cfg.mean, "std": cfg.std, "tag": "", "origin_url": "", "paper_ids": ""}
    if side is None:
        return about
    share, interpolation = 1.0, "bilinear"
    resizes = [op for op in run.transform.operations if isinstance(op, Resize)]
    if resizes:
        resized, interpolation = resizes[-1].size, resizes[-1].interpolation
        share = side[0] / (resized if isinstance(resized, int) else resized[0])
    size = (3, *side)
    about |= {"input_size": size, "test_input_size": size, "interpolation": interpolation}
    return about | {"crop_pct": share, "test_crop_pct": share, "crop_mode": "center"}


def metadata(run: LoadedRun) -> dict[str, str]:
    """What goes with a network in every format, as texts; `classes` is a JSON list in the order of logits."""
    return {
        "classes": json.dumps(run.classes),
        "run": str(run.record["run"]),
        "transform": json.dumps(run.record["config"]["dataset"]["eval_transform"]),
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch prints and logs of its steps; what fails is told in one line."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
