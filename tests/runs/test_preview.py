"""Claims about what a run says before its work starts."""

from dataclasses import replace

import torch

from daft.data import datasets
from daft.data.labelled import Labelled
from daft.runs.preview import preview


def test_a_run_says_what_it_found_and_what_it_will_do(tiny):
    config = tiny("method=daft", "method.lr_head=auto")
    listed = datasets.listing(config)
    found = preview(config, listed, "cpu", "fp32")
    assert found.of_run == [
        "shapes: 10 classes (circle, ring, crescent, triangle, square, pentagon, …)",
        "  train  70 images: 7 of each class",
        "  ID     40 images: 4 of each class",
        "  photo  40 images: 4 of each class",
        "  neon   40 images: 4 of each class",
        "daft on shapes_resnet10, cpu, fp32: 2 epochs, 4 steps of 64 images, η_θ=0.01, "
        "η_w=1 times the rate that fits the features",
    ]
    assert found.of_sweep == [*found.of_run[:-1], "  on cpu, fp32"]
    assert preview(tiny("method=lp"), listed, "cpu", "fp32").work == (
        "lp on shapes_resnet10, cpu, fp32: the head is solved for, nothing is trained by gradients"
    )


def test_classes_are_told_with_their_numbers_where_these_are_unequal_few_or_none(tiny):
    config = tiny("method=ft")
    listed = datasets.listing(config)

    def of(*counts: int) -> Labelled:
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        return Labelled(torch.empty(len(labels), 3, 1, 1, dtype=torch.uint8), labels, "x")

    def told(*counts: int, classes=("cat", "dog")) -> str:
        found = replace(listed, classes=[*classes], train=of(*counts), evaluation={})
        return preview(config, found, "cpu", "fp32").images[1]

    assert told(100, 80) == "  train  180 images"
    assert told(100, 20) == "  train  120 images: cat 100, dog 20"
    assert told(9, 9) == "  train  18 images: 9 of each class"
    assert told(1000, 0) == "  train  1,000 images: cat 1,000, dog 0"
    many = [f"c{i}" for i in range(20)]
    text = told(*[30] * 18, 0, 90, classes=many)
    assert text == "  train  630 images: from 0 (c18) to 90 (c19) a class; none of c18"
