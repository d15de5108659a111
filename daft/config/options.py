"""What conf/ offers, read without Hydra: the options of each group, and the help page of scripts/train.py."""

from pathlib import Path
from string import Template
from textwrap import indent

from daft.config import yaml_files

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"


def options(group: str) -> list[str]:
    """The names of a group's options."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def help_page() -> str:
    """Groups with their options, examples, and every key with its default and comment.

    The template and the defaults are those of conf/train.yaml, which Hydra takes seconds to compose.
    """
    text, config = yaml_files.read(CONF / "train.yaml"), yaml_files.load(CONF / "train.yaml")
    groups = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name != "hydra")
    keys = text[text.index("\nseed:") + 1 : text.index("\nhydra:")]
    for group, option in (
        (group, name)
        for entry in config["defaults"]
        if entry != "_self_"
        for group, name in entry.items()
        if group in groups and name
    ):
        keys += f"\n{group}:\n" + indent((CONF / group / f"{option}.yaml").read_text(encoding="utf-8"), "  ")
    return Template(config["hydra"]["help"]["template"]).substitute(
        APP_CONFIG_GROUPS="".join(f"{group}: {', '.join(options(group))}\n" for group in groups), CONFIG=keys
    )
