"""Claims about every README: its links lead somewhere, and its commands can be typed as they are shown."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from daft.common.errors import UserError
from daft.config.compose import configuration
from daft.config.options import CONF
from daft.config.overrides import rewrite_overrides
from tests.conftest import TINY
from tests.helpers.waiting import HANG_SECONDS

ROOT = Path(__file__).resolve().parents[1]
FIRST = ROOT / "README.md"
ROOMS = sorted(
    file
    for top in ("conf", "daft", "hydra_plugins", "results", "scripts", "tests")
    for file in (ROOT / top).rglob("README.md")
)
READMES = {str(file.relative_to(ROOT)): file for file in (FIRST, *ROOMS)}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HYDRAS = {"-m", "--multirun", "--cfg", "--help"}
"""Options of train.py, whose parser is Hydra's."""
TAKE_OVERRIDES = ("train.py", "prepare.py", "contact_sheet.py", "fewshot.py")
NOT_FOR_READERS = {
    "a package registry": r"(?i)pypi|pythonhosted|npmjs|proxy\.golang|anaconda|index-url|artifactory|nexus",
    "a folder of one machine": r"(?<![\w.~])/(?:home|root|Users|work|tmp)/",
}


def prose(text: str) -> str:
    """What is around the code blocks."""
    return FENCE.sub("", text)


def links(text: str) -> list[str]:
    """Targets of all links and images to this repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(text)))
    return [target for target in found if not re.match(r"\w+:", target)]


def anchors(text: str) -> set[str]:
    """The headings in the form in which GitHub links to them."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(file: Path, text: str) -> Iterator[str]:
    """The links of a README that lead nowhere."""
    for target in links(text):
        path, _, anchor = target.partition("#")
        there = (file.parent / path).resolve() if path else file
        if not there.exists() or not there.is_relative_to(ROOT):
            yield f"{target}: no such file"
        elif anchor and anchor not in anchors(text if there == file else there.read_text()):
            yield f"{target}: no such heading"


def commands(text: str) -> list[list[str]]:
    """The words of each command for one of our scripts or make, in code blocks and in sentences."""
    blocks = [code for language, code in FENCE.findall(text) if not language]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`([^`]+)`", prose(text))
    return [shlex.split(line, comments=True) for line in lines if re.match(r"python scripts/|make ", line)]


def first_values(override: str) -> str:
    """A list of a sweep with its first value alone."""
    (prepared,) = rewrite_overrides([override])
    (parsed,) = OverridesParser.create().parse_overrides([prepared])
    if not parsed.is_sweep_override():
        return override
    return f"{parsed.get_key_element()}={next(iter(parsed.sweep_string_iterator()))}"


@cache
def options(script: str) -> set[str]:
    """All options in the usage of a script."""
    if script == "train.py":
        return HYDRAS
    command = [sys.executable, str(ROOT / "scripts" / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=True)
    return {"--help", *re.findall(r"--[a-z][\w-]*", done.stdout.partition("\n\n")[0])}


def wrong(words: list[str]) -> Iterator[str]:
    """What a script would refuse in a command line."""
    script = Path(words[1])
    if not (ROOT / script).is_file():
        yield f"{script}: no such script"
        return
    given = [word for word in words[2:] if word.startswith("-")]
    overrides = [word for word in words[2:] if "=" in word or word.startswith("~")]
    unknown = {word.partition("=")[0] for word in given} - options(script.name)
    yield from (f"{script.name} {option}: no such option" for option in unknown)
    if script.name in TAKE_OVERRIDES:
        lists = script.name == "prepare.py" or bool({"-m", "--multirun"} & {*given})
        if any(word.startswith("sweep=") for word in overrides) and not lists:
            yield "sweep= needs -m"
        try:
            configuration(*(first_values(word) if lists else word for word in overrides))
        except UserError as error:
            yield f"{shlex.join(words)}: {error}"


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The configuration with the files that the READMEs tell their readers to write."""
    folder = tmp_path_factory.mktemp("readmes") / "conf"
    shutil.copytree(CONF, folder)
    for file in READMES.values():
        written = re.findall(r"`conf/([\w/]+\.yaml)`:\n\n```yaml\n(.*?)^```$", file.read_text(), re.M | re.S)
        for name, content in written:
            assert not (folder / name).exists(), f"{name} is one of ours"
            (folder / name).write_text(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("daft.config.compose.CONF", folder)
        yield folder


@pytest.mark.parametrize("name", READMES)
def test_every_link_leads_to_a_file_and_a_heading(name: str):
    assert not [*broken(READMES[name], READMES[name].read_text())]


def test_links_of_readmes_go_both_ways():
    for file in ROOMS:
        back = {(file.parent / link.partition("#")[0]).resolve() for link in links(file.read_text())}
        assert FIRST in back, f"{file}: no way back to README.md"
        above = [FIRST, *(other for other in ROOMS if other.parent in file.parent.parents)]
        forth = {
            (other.parent / link.partition("#")[0]).resolve()
            for other in above
            for link in links(other.read_text())
        }
        assert file in forth, f"{file}: nothing above it leads there"


@pytest.mark.parametrize("name", READMES)
def test_every_command_for_a_script_can_be_typed_as_it_is_shown(name: str, conf: Path):
    shown = [words for words in commands(READMES[name].read_text()) if words[0] == "python"]
    assert shown or name == "daft/README.md"
    assert not [problem for words in shown for problem in wrong(words)]


def test_every_target_and_variable_of_make_is_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    shown = [words for file in READMES.values() for words in commands(file.read_text()) if words[0] == "make"]
    words = {word for command in shown for word in command[1:]}
    targets = sorted(word for word in words if "=" not in word)
    variables = {word.partition("=")[0] for word in words if "=" in word}
    assert not [variable for variable in variables if f"$({variable})" not in makefile]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--dry-run", "-C", str(ROOT), *targets]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=HANG_SECONDS, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_first_readme_is_short():
    assert len(FIRST.read_text().splitlines()) <= 195


@pytest.mark.parametrize("name", READMES)
def test_no_readme_names_a_package_registry_or_somebodys_folder(name: str):
    text = READMES[name].read_text()
    assert not {what: found[0] for what, this in NOT_FOR_READERS.items() if (found := re.search(this, text))}


def test_what_is_broken_is_found(conf: Path):
    text = "# A `b`: c\n[x](#a-b-c) [x](#c) ![x](no.png) [x](conf/README.md#no) [x](https://example.org)\n"
    assert [problem.partition(":")[0] for problem in broken(FIRST, text)] == [
        *("#c", "no.png", "conf/README.md#no"),
    ]
    text = "`make demo`\n```\npython scripts/no.py\npython scripts/tables.py x --no y  # comment\n```\n"
    shown = commands(text)
    assert [words[0] for words in shown] == ["python", "python", "make"]
    assert [[*wrong(words)] for words in shown[:2]] == [
        ["scripts/no.py: no such script"],
        ["tables.py --no: no such option"],
    ]
    for line, problem in {
        "method=no": "no such option",
        "method=ft,daft": "several values need -m",
        "sweep=paper": "needs -m",
        "-m method.no=1,2": "method.no",
    }.items():
        assert problem in " ".join(wrong(["python", "scripts/train.py", *line.split()])), line


def test_a_run_from_python_is_as_it_is_shown(tmp_path: Path, monkeypatch, capsys):
    text = READMES["daft/README.md"].read_text()
    (shown,) = (code for _, code in FENCE.findall(text) if "experiment.run" in code)
    small = [word for word in TINY if word.startswith("~dataset") or "image_size" in word or "ood" in word]
    words = [*small, "wandb.mode=disabled", "compute.device=cpu"]
    monkeypatch.chdir(tmp_path)
    exec(shown.replace('configuration("', f'configuration(*{words}, "'), {})
    directory, accuracy = capsys.readouterr().out.split()
    assert (tmp_path / directory / "record.json").exists()
    assert 0 <= float(accuracy) <= 100
