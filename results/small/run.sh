#!/bin/sh
# Every run behind the tables of this folder: PACS and CIFAR-10 with a ResNet-18 at 64 pixels.
# On two CPU cores; each process takes one. A finished run is not repeated, a killed one goes on.
#   sh results/small/run.sh
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}

train() {
    "$python" scripts/train.py backbone=resnet18_tin64 compute.threads=1 compute.workers=1 \
        wandb.mode=disabled paths.runs=runs/small "$@"
}

# PACS: the whole training split of the sketches, 5 epochs.
pacs() { train dataset=pacs training.epochs=5 "$@"; }

# CIFAR-10: stratified subsets of 10,000 training and 2,500 test images, 2 epochs.
cifar10() {
    train dataset=cifar10_folder training.epochs=2 dataset.train.images=10000 \
        dataset.id.images=2500 dataset.ood.gray.images=2500 dataset.ood.lowres.images=2500 "$@"
}

# The grids, on seed 0. η_θ in half-decades with η_w at its anchor of 0.1 for DAFT.
grid() {
    "$1" method=lp
    "$1" -m method=daft method.lr_backbone=0.1,0.03,0.01,0.003,0.001 &
    "$1" -m method=ft method.lr_backbone=0.03,0.01,0.003
    "$1" -m method=lp_ft method.lr_backbone=0.01,0.003,0.001
    wait
}
