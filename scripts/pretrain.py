"""Pretrain a small backbone of this repository's own results, and save it without its head.

python scripts/pretrain.py shapes --out daft/networks/weights/shapes_resnet10.safetensors
python scripts/pretrain.py tiny_imagenet --out weights/resnet18_tin64.safetensors --epochs 5

`shapes` takes about eight minutes on one core. `tiny_imagenet` wants a GPU (hours on a CPU) and the images
(scripts/prepare.py). One thread on a CPU, so that the same machine gives the same weights.
"""

from _door import cli

FIRST_SEED = 1000
"""The splits of the dataset are drawn from seeds below this one."""


def main() -> None:
    """Train, measure on held-out images, save."""
    parser = cli.parser(__doc__)
    parser.add_argument("data", choices=["shapes", "tiny_imagenet"])
    parser.add_argument("--out", type=cli.path, required=True, help="a .safetensors file")
    parser.add_argument("--epochs", type=cli.up_to(100_000), help="default: the recipe's")
    parser.add_argument("--seed", type=cli.count, default=FIRST_SEED, help=f"at least {FIRST_SEED}")
    parser.add_argument("--device", type=cli.device, help="default: cuda if there is one, else cpu")
    parser.add_argument("overrides", nargs="*", help="dataset.root=…, paths.data=…, dataset.train.images=…")
    args = parser.parse_intermixed_args()
    if args.seed < FIRST_SEED:
        parser.error(f"--seed {args.seed}: at least {FIRST_SEED}")
    cli.require_out(args.out, "safetensors")
    if args.data == "shapes" and args.overrides:
        parser.error(f"shapes are drawn; {args.overrides[0]} has no effect")

    from daft.prepare.pretrain import pretrain

    pretrain(args.data, args.out, args.seed, args.epochs, args.device, args.overrides)


if __name__ == "__main__":
    cli.run(main)
