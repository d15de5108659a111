#!/bin/sh
# Every run behind the tables of this folder: a ResNet-18 at 64 pixels on PACS, and on CIFAR-10.
# Two processes at a time, one thread each: about 1 h for PACS and 1 h for CIFAR-10 on two CPU cores.
# A finished run is not repeated, a killed one goes on after its last epoch.
#
#   sh results/small/run.sh pacs            # then the same with cifar10
#
# Needs data/pacs/<domain>/<class>/*.jpg (here: resized to 128 pixels), data/cifar10/{train,test}/<class>/* and
# weights/resnet18_tin64.safetensors, or other places by DAFT_DATA and DAFT_WEIGHTS.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}

train() {
    "$python" scripts/train.py backbone=resnet18_tin64 compute.threads=1 compute.workers=1 \
        wandb.mode=disabled paths.runs="$runs" "$@"
}

# The whole training split of the sketches, 5 epochs.
pacs() { train dataset=pacs training.epochs=5 "$@"; }

# Stratified subsets of 10,000 training and 2,500 test images, 2 epochs.
cifar10() {
    train dataset=cifar10_folder training.epochs=2 dataset.train.images=10000 \
        dataset.id.images=2500 dataset.ood.gray.images=2500 dataset.ood.lowres.images=2500 "$@"
}

# The grids on seed 0; for DAFT η_θ in half-decades with η_w at its anchor of 0.1.
grid() {
    "$1" method=lp
    "$1" -m method=daft method.lr_backbone=0.1,0.03,0.01,0.003,0.001 &
    daft=$!
    "$1" -m method=ft method.lr_backbone=0.03,0.01,0.003
    "$1" -m method=lp_ft method.lr_backbone=0.01,0.003,0.001
    wait "$daft"
}

# The rates that the grid selected by ID accuracy (table.md), on two more seeds.
seeds() {
    "$1" -m method=lp seed=1,2
    "$1" -m method=daft method.lr_backbone="$2" seed=1,2 &
    daft=$!
    "$1" -m method=ft method.lr_backbone="$3" seed=1,2
    "$1" -m method=lp_ft method.lr_backbone="$4" seed=1,2
    wait "$daft"
}

case ${1:-} in
    pacs) rates="0.1 0.03 0.003" ;;
    cifar10) rates="0.01 0.01 0.003" ;;
    *)
        echo "usage: $0 pacs | cifar10" >&2
        exit 2
        ;;
esac
runs=runs/small/$1 out=results/small/$1
grid "$1"
seeds "$1" $rates
"$python" scripts/tables.py "$runs" --out "$out"
"$python" scripts/figures.py "$runs" --kind id_ood --out "$out/id_ood.png"
"$python" scripts/figures.py "$runs" --out "$out/overview.png"
