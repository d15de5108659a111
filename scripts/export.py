"""Export the network of a finished run, with a model card.

python scripts/export.py runs/pets-resnet50-daft-s0-0123456789ab --to onnx
python scripts/export.py RUN --to onnx --fold-bn --input float32 --out shipped
python scripts/export.py RUN --to timm

onnx, torchscript: images of uint8 (or of floats in [0, 1]) to logits, normalisation inside, any batch size;
names of classes are in the file. timm: weights that timm.create_model(…, num_classes=K, checkpoint_path=…)
takes; normalisation is then outside. Each is compared with the run's own network before it is written.
"""

from functools import partial

from _door import cli

from daft.common.errors import UserError


def main() -> None:
    """Write the network and README.md, and say how far it is from the run's own."""
    parser = cli.parser(__doc__)
    parser.add_argument("run", type=cli.path, help="directory of a finished run")
    parser.add_argument("--to", choices=["onnx", "timm", "torchscript"], required=True)
    parser.add_argument(
        "--out", type=cli.path, help="a folder; default: one named as the format in the run's"
    )
    parser.add_argument("--fold-bn", action="store_true", help="fold BN layers into the convolutions before")
    parser.add_argument(
        "--input", choices=["uint8", "float32"], help="type of the images; default: uint8 (timm: neither)"
    )
    args = parser.parse_args()
    if args.to == "timm" and args.input:
        parser.error(f"--input {args.input}: timm's networks take normalised floats; leave it out")
    out = args.out or args.run / args.to
    cli.require_out(out)

    from daft.use import card, export, loaded

    known = [name for name in export.FILES.values() if (out / name).exists()]
    if (out / export.README).exists() and not known:
        raise UserError(f"--out {out}: has a README.md that is not of an export; name another folder")
    run = loaded.load_run(args.run)
    of, about = args.input or "uint8", partial(card.card, run)
    done = export.export(run, args.to, out, fold_bn=args.fold_bn, input_type=of, card=about)
    folded = f", {done.folded} BN layers folded" if args.fold_bn else ""
    print(
        f"wrote {done.file} and README.md: images of {done.size}{folded}; the largest difference of a logit "
        f"is {done.difference:.1e}, rounding explains {done.tolerance:.1e}"
    )


if __name__ == "__main__":
    cli.run(main)
