"""Fetch, verify and unpack datasets and pretrained networks; with --check only say what is there.

python scripts/prepare.py dataset=cifar10,domainnet backbone=swav
python scripts/prepare.py --check all
python scripts/prepare.py --check dataset=living17 dataset.root=/datasets/imagenet
"""

import shlex
import sys
from pathlib import Path

from _door import cli

from daft.common.errors import UserError
from daft.config.options import CONF, options

GROUPS = ("dataset", "backbone")


def main() -> int:
    """Prepare (or check) each named thing; 0 if all of them are there and right."""
    parser = cli.parser(__doc__)
    parser.add_argument("--check", action="store_true", help="fetch nothing; say what is there")
    parser.add_argument("--keep-archives", action="store_true", help="do not remove what has been unpacked")
    parser.add_argument(
        "what", nargs="+", help="all, dataset=NAME[,NAME], backbone=NAME[,NAME], or a key=value of theirs"
    )
    args = parser.parse_intermixed_args()

    from daft.config.check import validate_section
    from daft.config.compose import composed
    from daft.config.overrides import SECTIONS
    from daft.config.schema import BackboneConfig, DatasetConfig, PathsConfig

    named, overrides = _named(args.what, SECTIONS)
    shared = [word for word in _of("dataset", overrides) if not word.startswith("paths.")]
    if shared and [group for group, _ in named].count("dataset") > 1:
        raise UserError(f"{shared[0]} would be that of several datasets; name one, or set paths.data")
    kinds = {"dataset": DatasetConfig, "backbone": BackboneConfig}
    configurations = []
    for group, name in named:
        config = composed(f"{group}={name}", *_of(group, overrides))
        paths = validate_section(config, "paths", PathsConfig)
        configurations.append((group, validate_section(config, group, kinds[group]), Path(paths.cache)))

    # Seconds of imports: only now that every configuration makes sense.
    from daft.common import progress
    from daft.prepare import doctor

    whole = True
    for group, cfg, cache in configurations:
        try:
            if isinstance(cfg, DatasetConfig):
                if not args.check:
                    doctor.prepare_dataset(cfg, cache, args.keep_archives)
                findings = list(doctor.check_dataset(cfg))
            else:
                if not args.check:
                    doctor.prepare_backbone(cfg, cache)
                findings = list(doctor.check_backbone(cfg))
        except (UserError, OSError) as error:
            print(f"prepare.py: {group}={cfg.name}: {error}", file=sys.stderr)
            whole = False
            continue
        progress.console.print(doctor.table(f"{group}={cfg.name}", findings))
        if any(finding.state != "present" for finding in findings):
            whole = False
            words = [f"{group}={cfg.name}", *_of(group, overrides)]
            command = shlex.join(["python", "scripts/prepare.py", *words])
            progress.console.print(doctor.remedy(cfg, findings, command), soft_wrap=True, highlight=False)
    return 0 if whole else 1


def _named(what: list[str], sections: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """(group, name) of everything asked for, and the other overrides."""
    named, overrides = [], []
    for word in what:
        group, _, names = word.partition("=")
        if word == "all":
            for each in GROUPS:  # but for those that wait for a user's own values
                texts = {
                    name: (CONF / each / f"{name}.yaml").read_text(encoding="utf-8") for name in options(each)
                }
                named += [(each, name) for name, text in texts.items() if "???" not in text]
        elif group in GROUPS and names:
            named += [(group, name) for name in names.split(",")]
        elif group.lstrip("~").split(".")[0] in sections and ("=" in word or word.startswith("~")):
            overrides.append(word)
        else:
            raise UserError(f"{word}: write all, dataset=NAME, backbone=NAME, or a key=value below them")
    if not named:
        raise UserError("name what to prepare: all, dataset=NAME or backbone=NAME")
    return named, overrides


def _of(group: str, overrides: list[str]) -> list[str]:
    """The overrides that concern this group."""
    return [word for word in overrides if word.lstrip("~").split(".")[0] in (group, "paths")]


if __name__ == "__main__":
    cli.run(main)
