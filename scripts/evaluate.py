"""Evaluate finished runs on further OOD sets; nothing is trained.

python scripts/evaluate.py runs/pets-resnet50-daft-s0-0123456789ab 'dataset.ood={art: {path: art}}'
python scripts/evaluate.py runs/pets-* 'dataset.ood={art: {path: /other/art.csv}}'     of several runs

A result is a file beside the run's record, which tables and figures show; the OOD mean stays that of the run.
What is there is not repeated. Paths are below the run's own dataset.root.
"""

import os
from pathlib import Path

from _door import cli

from daft.common.errors import UserError


def main() -> int:
    """Evaluate, a line per run and set; 1 if a run could not be."""
    parser = cli.parser(__doc__)
    parser.add_argument(
        "words", nargs="+", metavar="RUN… dataset.ood=…", help="folders of runs, and the sets"
    )
    parser.add_argument("--device", type=cli.device, help="default: a GPU if there is one")
    parser.add_argument("--threads", type=cli.cores, help="of the CPU; default: torch's")
    args = parser.parse_args()
    overrides = [word for word in args.words if "=" in word and not Path(word).exists()]
    runs = [Path(os.path.expanduser(word)) for word in args.words if word not in overrides]
    if not runs or not overrides:
        lacking = "a set, as in 'dataset.ood={art: {path: art}}'" if runs else "a run's folder"
        parser.error(f"name {lacking}")

    import torch

    from daft.common import devices, progress
    from daft.runs import evaluations, reopened

    device = devices.find(args.device, "--device")
    if args.threads:
        torch.set_num_threads(args.threads)
    whole = True
    for directory in runs:
        try:
            run = reopened.open_run(directory)
            config = evaluations.with_sets(run, overrides)
            for name, result in evaluations.evaluate(run, config, device):
                print(f"{run}: {evaluations.in_words(name, result)}", flush=True)
        except UserError as error:
            if len(runs) == 1:
                raise
            progress.warn_left_out(error)
            whole = False
    return 0 if whole else 1


if __name__ == "__main__":
    cli.run(main)
