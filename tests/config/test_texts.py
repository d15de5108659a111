"""Claims about names that look like numbers: where only text makes sense, they are text, as spelled."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from daft.common.errors import ConfigError, UserError
from daft.config.check import to_dict, validate
from daft.config.compose import composed, configuration
from daft.config.options import CONF
from daft.config.overrides import rewrite_overrides

WORDS = ["2018", "01", "1e3", "0x1F", "2_000", "1.50", ".5", "-3", "+7", "inf"]
WORDS += ["null", "yes", "no", "true", "OFF", "2020-01-01"]
"""What a reader of YAML, or Hydra's, takes for something else than text."""

OWN = ["dataset=folder", "dataset.root=pets"]


@pytest.fixture
def in_file(tmp_path: Path):
    """A configuration with `dataset=mine`, whose file ends in these lines."""

    def read(lines: str):
        (tmp_path / "dataset").mkdir(exist_ok=True)
        (tmp_path / "dataset" / "mine.yaml").write_text(f"defaults: [folder, _self_]\nroot: pets\n{lines}")
        return configuration("dataset=mine", f"hydra.searchpath=['file://{tmp_path}']")

    return read


@pytest.mark.parametrize("word", WORDS)
def test_on_the_command_line_a_path_a_class_and_a_set_are_text(word: str):
    if word != "null":
        assert configuration(*OWN, f"dataset.train.path={word}").dataset.train.path == word
    config = configuration(*OWN, f"dataset.classes=[a, {word}]")
    assert config.dataset.classes == ["a", word]
    written = [f"dataset.ood={{{word}: {{path: a}}, b: {{path: a}}}}", f"dataset.ood.{word}.path=a"]
    for override in written if "." not in word else written[:1]:
        assert configuration(*OWN, override).dataset.ood[word].path == "a"


@pytest.mark.parametrize("word", [*WORDS, "1:30"])
def test_in_a_file_a_path_a_class_and_a_set_are_text(word: str, in_file):
    dataset = in_file(f"classes: [a, {word}]\nood:\n  {word}: {{path: '{word}'}}\nname: '{word}'\n").dataset
    assert (dataset.classes, [*dataset.ood], dataset.name) == (["a", word], [word], word)
    assert dataset.ood[word].path == word
    if word != "null":
        assert in_file(f"train: {{path: {word}}}\n").dataset.train.path == word


@pytest.mark.parametrize("none", ["{}", "null"])
def test_no_ood_sets_are_asked_for_by_an_empty_mapping(none: str):
    assert [*configuration().dataset.ood]
    assert configuration(f"dataset.ood={none}").dataset.ood == {}
    assert configuration(*OWN, f"dataset.ood={none}").dataset.ood == {}
    assert configuration(f"backbone.model_args={none}").backbone.model_args == {}


def test_what_shall_be_no_text_stays_what_it_is(in_file):
    lines = ["classes: null", "epochs: 0x10", "shift_strength: 1e3"]
    dataset = in_file("\n".join([*lines, "train: &a {images: 2_000}", "id: {<<: *a, path: 07}", ""])).dataset
    assert (dataset.classes, dataset.epochs, dataset.shift_strength) == (None, 16, 1000.0)
    assert (dataset.train.images, dataset.id.images, dataset.id.path) == (2000, 2000, "07")
    config = configuration("backbone.model_args={a: 01, b: 2018, c: [true, null, 1e3]}", "training.epochs=3")
    assert config.backbone.model_args | {"layers": 0, "channels": 0} == {
        **{"layers": 0, "channels": 0},
        **{"a": "01", "b": 2018, "c": [True, None, 1000.0]},
    }
    assert config.training.epochs == 3


def test_an_option_of_a_group_may_look_like_a_number(tmp_path: Path):
    (tmp_path / "method").mkdir()
    for name in ("2018", "null"):
        (tmp_path / "method" / f"{name}.yaml").write_text(f"defaults: [ft, _self_]\nname: {name}1\n")
        config = configuration(f"method={name}", f"hydra.searchpath=['file://{tmp_path}']")
        assert config.method.name == f"{name}1"
    assert "sweep" not in composed("sweep=null")


@pytest.mark.parametrize(
    "key", ["dataset.name", "dataset.root", "dataset.train.path", "paths.runs", "wandb.project"]
)
def test_null_is_no_name_where_one_is_needed(key: str):
    with pytest.raises(ConfigError, match=f"^{key}: null is not allowed"):
        configuration(*OWN, f"{key}=null")


def test_a_sweep_goes_over_names_as_they_are_spelled():
    (override,) = rewrite_overrides(["dataset.train.path=2018,1e3,choice"])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        paths = []
        for value in override.split("=")[1].split(","):  # as Hydra hands them to a job
            config = validate(compose("train", [*OWN, f"++dataset.train.path={value}"]))
            paths.append(config.dataset.train.path)
    assert paths == ["2018", "1e3", "choice"]
    config = configuration(*OWN, "seed=7", "dataset.train.path=${seed}")  # as a sweep's range() gives one
    assert config.dataset.train.path == "7"


@pytest.mark.parametrize("path", ["/data/müller/a b", "x#1", "a=b", "~x", "50%&more", "été;"])
def test_a_path_needs_no_quotes_for_what_hydras_grammar_lacks(path: str):
    assert configuration("dataset=folder", f"dataset.root=d{path}").dataset.root == f"d{path}"


def test_keys_may_stand_in_quotes_as_values_do():
    renamed = configuration("backbone.rename={'(conv|bn)(\\d)\\.(.+)': '\\1_\\2.\\3', \"a b\" : 'c'}")
    assert renamed.backbone.rename == {r"(conv|bn)(\d)\.(.+)": r"\1_\2.\3", "a b": "c"}


@pytest.mark.parametrize("value", ["{", "[a", "{a: 1", "[a}", "{]", "{a}", "{'a' b: 1}", "[[[", ",", "'a"])
def test_what_is_not_complete_is_left_to_hydra_which_refuses_it(value: str):
    assert rewrite_overrides([f"dataset.ood={value}"]) == [f"++dataset.ood={value}"]
    with pytest.raises(UserError, match=r"^dataset\.ood=.*cannot be read|no comma"):
        composed(f"dataset.ood={value}")


def test_a_key_that_stands_twice_in_a_dict_is_refused():
    with pytest.raises(UserError, match="the key 'a' stands there twice"):
        configuration("dataset.ood={a: {path: photo, images: 9}, a: {path: neon, images: 9}}")


def test_a_record_keeps_the_spelling():
    config = to_dict(configuration(*OWN, "dataset.ood={01: {path: 1e3}}", "dataset.classes=[no, null]"))
    assert config["dataset"]["ood"]["01"]["path"] == "1e3"
    assert config["dataset"]["classes"] == ["no", "null"]


def test_keys_of_several_overrides_come_together_also_in_a_sweep():
    keys = [
        "dataset.ood.1e3.path=a,b",
        "dataset.ood.1e3.images=3",
        "dataset.ood.01={path: c}",
        "dataset.ood={x: {}}",
    ]
    own, odd = rewrite_overrides(keys)
    assert own.split("=")[0] != odd.split("=")[0]  # else Hydra's sweeper would take the last alone
    with initialize_config_dir(str(CONF), version_base="1.3"):
        values = odd.removeprefix("+dataset.ood=").replace("},{", "}\n{").splitlines()
        read = [
            validate(compose("train", [*OWN, own, f"+dataset.ood={value}"])).dataset.ood for value in values
        ]
    assert [sets["1e3"].path for sets in read] == ["a", "b"]
    assert all(sets["1e3"].images == 3 and sets["01"].path == "c" and "x" in sets for sets in read)
