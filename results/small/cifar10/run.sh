#!/bin/sh
# Every run behind this folder: a ResNet-18 at 64 pixels on CIFAR-10, two processes at a time, one thread each: about
# an hour on two CPU cores. A finished run is not repeated, a killed one goes on after its last epoch.
# Needs data/cifar10/{train,test}/<class>/* and weights/resnet18_tin64.safetensors, or other places by DAFT_DATA and
# DAFT_WEIGHTS.
set -eu
cd "$(dirname "$0")/../../.."
python=${PYTHON:-.venv/bin/python}
runs=runs/small/cifar10 out=results/small/cifar10

# Stratified subsets of 10,000 training and 2,500 test images, 2 epochs.
train() {
    "$python" scripts/train.py -m dataset=cifar10_folder backbone=resnet18_tin64 training.epochs=2 \
        dataset.train.images=10000 dataset.id.images=2500 dataset.ood.gray.images=2500 \
        dataset.ood.lowres.images=2500 compute.threads=1 compute.workers=1 wandb.mode=disabled paths.runs="$runs" "$@"
}

# The grids on seed 0, for DAFT with η_w at its anchor of 0.1; then the rates with the best ID accuracy on two more seeds.
{
    train method=daft method.lr_backbone=0.1,0.03,0.01,0.003,0.001
    train method=daft method.lr_backbone=0.01 seed=1,2
} &
daft=$!
train method=lp seed=0,1,2
train method=ft method.lr_backbone=0.03,0.01,0.003
train method=ft method.lr_backbone=0.01 seed=1,2
train method=lp_ft method.lr_backbone=0.01,0.003,0.001
train method=lp_ft method.lr_backbone=0.003 seed=1,2
wait "$daft"
"$python" scripts/tables.py "$runs" --out "$out"
for kind in id_ood overview; do
    "$python" scripts/figures.py "$runs" --kind "$kind" --out "$out/$kind.png"
done
