"""The model card of an exported network: how it was made, on what, how good it is, and what is not known."""

from typing import Any

import pandas as pd
from huggingface_hub import EvalResult, ModelCardData

from daft.common.numbers import fixed
from daft.config.schema import selected_on
from daft.report.methods import describe
from daft.report.tables import format_head_rate, in_markdown, pipe_table
from daft.runs.frames import BALANCED, unequal_splits
from daft.runs.layout import MEASURES
from daft.use.export import Exported
from daft.use.loaded import LoadedRun

LIBRARIES = {"onnx": "onnx", "timm": "timm", "torchscript": "pytorch"}

PAPER = "Domain-Aware Fine-Tuning: Enhancing Neural Network Adaptability (Ha, Jeong, Lee, AAAI 2024)"

USE = {
    "onnx": """import json
import onnxruntime

session = onnxruntime.InferenceSession("{file}")
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
(logits,) = session.run(None, {{"images": images}})""",
    "torchscript": """import json
import torch

extra = {{"classes": ""}}
model = torch.jit.load("{file}", _extra_files=extra)
classes = json.loads(extra["classes"])
logits = model(images)""",
    "timm": """import timm

model = timm.create_model("{model}", num_classes={classes}, checkpoint_path="{file}"{arguments}).eval()
logits = model(images)""",
}


def card(run: LoadedRun, exported: Exported) -> str:
    """The card as Markdown below the metadata that the Hub shows, in YAML."""
    sections = [
        f"---\n{_metadata(run, exported).to_yaml()}\n---",
        f"# {in_markdown(run.directory.name)}\n\n{_summary(run)}",
        f"## How to use it\n\n{_use(run, exported)}",
        f"## How good it is\n\n{_numbers(run)}",
        f"## How it was made\n\n{_training(run)}",
        f"## What is not known\n\n{_limits(run)}",
    ]
    return "\n\n".join(sections) + "\n"


def _splits(run: LoadedRun) -> dict[str, float]:
    """What the network is judged by, in percent, on each split that was evaluated."""
    metrics = run.record["metrics"]
    found = {name.partition("/")[0]: v for name, v in metrics.items() if name.endswith(MEASURES)}
    return {split: value for split, value in found.items() if split != "ood" and value is not None}


def _place(run: LoadedRun, split: str) -> str:
    return "out of" if split in run.run.config.dataset.ood else "in"


def _metric(run: LoadedRun) -> str:
    return "mIoU" if run.segments else "accuracy"


def _metadata(run: LoadedRun, exported: Exported) -> ModelCardData:
    config = run.run.config
    task = "image-segmentation" if run.segments else "image-classification"
    results = [
        EvalResult(
            task_type=task,
            dataset_type=config.dataset.name,
            dataset_name=f"{config.dataset.name}, {_place(run, split)} distribution ({split})",
            dataset_split=split,
            metric_type="mean_iou" if run.segments else "accuracy",
            metric_name=f"{_metric(run)} (%)",
            metric_value=float(fixed(value)),
        )
        for split, value in _splits(run).items()
    ]
    return ModelCardData(
        model_name=run.directory.name,
        library_name=LIBRARIES[exported.format],
        pipeline_tag=task,
        tags=["domain-aware-fine-tuning", config.method.name, exported.format],
        base_model=f"timm/{config.backbone.model}" if config.backbone.weights == "hub" else None,
        eval_results=results,
    )


def _summary(run: LoadedRun) -> str:
    config = run.run.config
    what = "segments images into" if run.segments else "classifies images as"
    title = describe(config.method.name).title
    return (
        f"{in_markdown(config.backbone.model)}, fine-tuned by {in_markdown(title)} on "
        f"{in_markdown(config.dataset.name)}. It {what} {len(run.classes)} classes: "
        f"{in_markdown(', '.join(run.classes))}.\n\nThe method, and what it is compared with: {PAPER}."
    )


def _use(run: LoadedRun, exported: Exported) -> str:
    cfg = run.run.config.backbone
    arguments = "".join(f", {name}={value!r}" for name, value in cfg.model_args.items())
    code = USE[exported.format].format(
        file=exported.file.name, model=cfg.model, classes=len(run.classes), arguments=arguments
    )
    kind = {"uint8": "uint8 from 0 to 255", "float32": "float32 from 0 to 1"}[exported.input_type]
    inside = f"{kind}; normalisation is inside the network"
    if exported.format == "timm":
        inside = (
            f"float32 from 0 to 1, then {list(cfg.mean)} taken out, and divided by {list(cfg.std)}: "
            "normalisation is outside the network"
        )
    steps = ", ".join(f"`{step}`" for step in run.record["config"]["dataset"]["eval_transform"]) or "none"
    folded = (
        f" Its {exported.folded} folded BN layers are part of the convolutions." if exported.folded else ""
    )
    return (
        f"```python\n{code}\n```\n\n"
        f"- `images`: [B, 3, H, W] in RGB, {exported.size}, any B; {inside}.\n"
        f"- Before that, in the run's evaluation: {steps} (`daft.load_run(…).transform` does exactly this).\n"
        f"- `logits`: [B, {len(run.classes)}{', H, W' if run.segments else ''}], in the order of the classes "
        "above.\n"
        f"- Compared with the run's own network on export: the largest difference of a logit is "
        f"{exported.difference:.1e}, and rounding explains {exported.tolerance:.1e}.{folded}"
    )


def _numbers(run: LoadedRun) -> str:
    record, config = run.record, run.run.config
    prints = record["identity"]["dataset"]["images"]
    means = config.dataset.ood_mean or list(config.dataset.ood)
    values = _splits(run)
    unequal = unequal_splits(record)  # of which accuracy may be that of the largest class
    rows: list[list[str]] = []
    for split, count in record["data"].get("images", {}).items():
        kind = {"train": "training", "id": "in distribution", "holdout": "held out of training"}
        value = fixed(values[split]) if split in values else "-"
        name = kind.get(split, "out of distribution")
        of = prints.get(split, "")  # a hash, or how drawn images are drawn
        row = [in_markdown(split), name, f"`{of if '/' in of else of[:12]}`", f"{count:,}", value]
        balanced = record["metrics"].get(f"{split}/{BALANCED}")
        rows.append([*row, *(["-" if balanced is None else fixed(balanced)] if unequal else [])])
    header = ["split", "what it is", "fingerprint", "n images", f"{_metric(run)} %"]
    header += ["balanced %"] if unequal else []
    table = pipe_table(pd.DataFrame(rows, columns=header), texts=3)
    mean = record["metrics"].get(f"ood/{'miou' if run.segments else 'accuracy'}")
    of = (
        f"Mean over the OOD sets ({in_markdown(', '.join(means))}): {fixed(mean)} %. "
        if mean is not None
        else ""
    )
    return f"{table}\n\n{of}n = 1 run (seed {config.seed}): a spread over seeds is not part of this card."


def _training(run: LoadedRun) -> str:
    record, config = run.record, run.run.config
    method, libraries = config.method, record["environment"].get("libraries", {})
    bn = f"BN conversion {'yes' if method.bn_conversion else 'no'}, BN in {method.bn_mode} mode in training"
    return "\n".join(
        [
            f"- Method: `{method.name}`: head {method.head_init}, {bn}.",
            *([_fitted(run)] if method.lr_backbone is None and method.lr_head is None else _trained(run)),
            f"- Pretrained weights: `{in_markdown(str(record['identity']['backbone']['weights']))}`.",
            f"- Seed {config.seed}, precision {run.run.precision}, run `{record['run']}`, code "
            f"`{record['environment'].get('code', 'unknown')}`.",
            f"- Libraries: {', '.join(f'{name} {version}' for name, version in libraries.items())}.",
        ]
    )


def _fitted(run: LoadedRun) -> str:
    """Of a linear probe, the line on its fit."""
    selected = selected_on(run.run.config.training.selection, None)
    return (
        f"- The head is fitted by ℓ2-regularised logistic regression, C = {run.record['probe']['C']:.3g} by "
        f"{selected}; the backbone is as it was pretrained. OOD images select nothing."
    )


def _trained(run: LoadedRun) -> list[str]:
    """Learning rates and the choice of epoch, a line each."""
    record, config = run.record, run.run.config
    method, training, best = config.method, config.training, record["best_epoch"]
    frozen = "not trained" if method.lr_backbone is None else f"{method.lr_backbone:g}"
    head = "the same" if method.lr_head is None else format_head_rate(method.lr_head, method.lr_head_unit)
    if method.lr_head_unit and (fitting := record.get("head_rate")):
        assert method.lr_head is not None
        head = f"{method.lr_head * fitting['rate']:.3g} ({method.lr_head:g} times what fits the features)"
    length = f"{training.steps:,} steps" if training.steps else f"{training.epochs} epochs"
    chosen = f"epoch {best}, the best by {selected_on(training.selection, config.segmentation)}"
    if training.selection == "last" or best is None:
        chosen = "those before training" if best is None else "the last epoch"
    return [
        f"- Learning rates: backbone (η_θ) {frozen}, head (η_w) {head}; SGD, momentum {training.momentum:g}, "
        f"weight decay {training.weight_decay:g}, batches of {training.batch_size}, {length}.",
        f"- Weights: {chosen}; OOD images select none.",
    ]


def _limits(run: LoadedRun) -> str:
    selection: Any = run.run.config.training.selection
    leak = {
        "paper": "Selection was on the ID evaluation set itself: its number is optimistic.",
        "holdout": "Selection was on images held out of training, so no evaluation set had a part in it.",
        "last": "No epoch was selected; learning rates may have been, on the ID evaluation set.",
    }[selection]
    ood = list(run.run.config.dataset.ood)
    shifts = f"the sets above ({in_markdown(', '.join(ood))})" if ood else "no set at all"
    every = "pixel" if run.segments else "image"
    half = "- The run computed in bfloat16, this network in float32: some numbers may differ a little.\n"
    return (half if run.run.precision == "bf16" else "") + "\n".join(
        [
            f"- {leak}",
            f"- Numbers out of distribution are of {shifts}; they say nothing of other shifts.",
            f"- Every {every} is given one of the classes above, whatever it shows.",
            "- Probabilities (the softmax of the logits) are not calibrated.",
            "- Licence and bias are those of images and pretrained weights; this card does not know them.",
        ]
    )
