"""Claims about the protocol: what runs next, what wins, and that the grids are the published ones."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from daft.common.errors import ConfigError
from daft.config.check import validate_section
from daft.config.overrides import rewrite_overrides
from daft.config.schema import SweepConfig
from daft.runs import frames
from daft.sweep import selection
from daft.sweep.protocol import (
    EXTENSIONS,
    CellState,
    Outcome,
    Protocol,
    RateName,
    Rates,
    Stage,
    Trial,
    cell_state,
    count_missing,
    protocol,
)

ROOT = Path(__file__).resolve().parents[2]

FT = Protocol(Rates(0.01), (Stage("lr_backbone", (0.3, 0.1, 0.03)),), (0, 1, 2))
DAFT = Protocol(
    Rates(0.01, 1.0),
    (Stage("lr_backbone", (0.1, 0.03)), Stage("lr_head", (10.0, 3.0, 0.3, 0.1))),
    (0, 1, 2),
)


def trial(lr_backbone: float | None = None, lr_head: float | None = None, seed: int = 0) -> Trial:
    return Trial(Rates(lr_backbone, lr_head), seed)


def finished(**accuracies: float) -> dict[Trial, Outcome]:
    """Trials of FT on seed 0 by rate: finished(_0_1=90) is lr_backbone=0.1 at 90 %."""
    rates = {float(name[1:].replace("_", ".")): accuracy for name, accuracy in accuracies.items()}
    return {trial(rate): Outcome("finished", accuracy) for rate, accuracy in rates.items()}


def waiting(state: CellState, outcomes: dict[Trial, Outcome]) -> list[Trial]:
    return [t for t in state.trials if t not in outcomes]


def go_through(protocol: Protocol, accuracy: Callable[[Any], float]) -> tuple[CellState, list[list[Trial]]]:
    """Run a cell to its end on made-up accuracies by rates; the state, and what ran wave by wave."""
    outcomes: dict[Trial, Outcome] = {}
    waves = []
    while wave := waiting(state := cell_state(protocol, outcomes), outcomes):
        waves.append(wave)
        outcomes |= {t: Outcome("finished", accuracy(t.rates)) for t in wave}
    return state, waves


def test_a_method_without_stages_runs_its_seeds_at_once():
    state, waves = go_through(Protocol(Rates(), (), (0, 1, 2)), lambda rates: 50.0)
    assert waves == [[trial(seed=0), trial(seed=1), trial(seed=2)]]
    assert state.status == "chosen"


@pytest.mark.parametrize("protocol", [Protocol(Rates(), (), (0, 1, 2)), FT, DAFT])
def test_what_lacks_is_counted_from_the_runs_alone(protocol: Protocol):
    state, _ = go_through(protocol, lambda rates: sum(rates.given().values()))
    trials = state.trials
    assert count_missing(protocol, trials, 0, state.rates) == 0
    for absent in trials:
        assert count_missing(protocol, [t for t in trials if t != absent], 0, state.rates) == 1
    others = [Trial(t.rates, t.seed + 5) for t in trials]
    assert count_missing(protocol, others, 5, state.rates) == 0  # seeds of one's own


def test_ft_runs_its_grid_on_the_lowest_seed_then_the_best_rate_on_the_others():
    state, waves = go_through(FT, lambda rates: {0.3: 70.0, 0.1: 90.0, 0.03: 80.0}[rates.lr_backbone])
    assert waves == [
        [trial(0.3), trial(0.1), trial(0.03)],
        [trial(0.1, seed=1), trial(0.1, seed=2)],  # the grid's run counts as seed 0
    ]
    assert state.rates == Rates(0.1)
    assert state.edges == []
    assert [stage.size for stage in state.stages] == [3, 2]


def test_daft_sweeps_the_backbones_rate_at_the_anchor_then_the_heads_at_the_best():
    def accuracy(rates: Any) -> float:
        return {0.1: 50.0, 0.03: 60.0}[rates.lr_backbone] + {3.0: 5.0, 1.0: 4.0}.get(rates.lr_head, 0.0)

    state, waves = go_through(DAFT, accuracy)
    assert waves == [
        [trial(0.1, 1.0), trial(0.03, 1.0)],
        [trial(0.03, head) for head in (10.0, 3.0, 0.3, 0.1)],
        [trial(0.03, 3.0, seed=1), trial(0.03, 3.0, seed=2)],
    ]
    assert state.rates == Rates(0.03, 3.0)
    assert state.edges == ["lr_backbone"]


def test_the_best_of_the_first_stage_is_a_candidate_of_the_second():
    state, waves = go_through(DAFT, lambda rates: 90.0 if rates == Rates(0.03, 1.0) else 50.0)
    assert state.rates == Rates(0.03, 1.0)
    assert waves[-1] == [trial(0.03, 1.0, seed=1), trial(0.03, 1.0, seed=2)]


def test_lp_ft_of_a_segmentation_starts_from_the_best_of_lps_runs():
    """LP's runs are told by `lr_probe` alone; both rates of LP-FT's own runs are then known."""
    stages = (Stage("lr_probe", (1.0, 0.1)), Stage("lr_backbone", (0.03, 0.01)))
    lp_ft = Protocol(Rates(0.01, lr_probe=0.1), stages, (0, 1))
    state, waves = go_through(lp_ft, lambda rates: rates.lr_probe - (rates.lr_backbone or 0))
    assert waves == [
        [Trial(Rates(lr_probe=1.0), 0), Trial(Rates(lr_probe=0.1), 0)],
        [
            Trial(Rates(lr_probe=1.0), 1),  # which the run on seed 1 starts from
            *(Trial(Rates(rate, lr_probe=1.0), 0) for rate in (0.03, 0.01)),  # the anchor is run, too
        ],
        [Trial(Rates(0.01, lr_probe=1.0), 1)],
    ]
    assert [t.is_probe for wave in waves for t in wave] == [True] * 3 + [False] * 3
    assert [stage.size for stage in cell_state(lp_ft, {}).stages] == [3, 2, 1]
    assert state.rates == Rates(0.01, lr_probe=1.0)
    own = [t for t in state.trials if not t.is_probe]  # LP's stand in the cell of LP
    assert count_missing(lp_ft, own, 0, state.rates) == 0
    assert count_missing(lp_ft, own[1:], 0, state.rates) == 1

    _, waves = go_through(Protocol(lp_ft.start, stages[:1], (0, 1)), lambda rates: rates.lr_probe)
    assert waves[1][1:] == [Trial(Rates(0.01, lr_probe=1.0), seed) for seed in (0, 1)]


def test_the_anchor_of_a_heads_rate_is_a_candidate_whichever_stage_it_is_in():
    lp = Protocol(Rates(None, 1.0), (Stage("lr_head", (3.0, 0.3)),), (0,))
    _, waves = go_through(lp, lambda rates: 50.0)
    assert waves == [[trial(None, head) for head in (3.0, 1.0, 0.3)]]


def test_what_follows_a_stage_that_diverged_is_not_to_come():
    outcomes = {trial(rate, 1.0): Outcome("diverged") for rate in (0.1, 0.03)}
    state = cell_state(DAFT, outcomes)
    assert state.status == "diverged"
    assert [stage.size for stage in state.stages] == [2, 0, 0]


def test_a_grid_that_names_the_anchor_does_not_run_it_twice():
    stages = (Stage("lr_backbone", (0.1,)), Stage("lr_head", (3.0, 1.0)))
    _, waves = go_through(Protocol(Rates(0.01, 1.0), stages, (0,)), lambda rates: 50.0)
    assert waves == [[trial(0.1, 1.0)], [trial(0.1, 3.0)]]


def test_nothing_is_chosen_before_the_whole_grid_has_ended():
    outcomes = finished(_0_1=99.0, _0_3=10.0)
    state = cell_state(FT, outcomes)
    assert state.status == "open"
    assert waiting(state, outcomes) == [trial(0.03)]
    assert state.stages[1] == ("seeds", [], 2)


def test_sizes_of_stages_are_known_before_their_trials_are():
    assert [(stage.name, len(stage.trials), stage.size) for stage in cell_state(DAFT, {}).stages] == [
        ("lr_backbone", 2, 2),
        ("lr_head", 0, 4),
        ("seeds", 0, 2),
    ]


@pytest.mark.parametrize("order", [(0.3, 0.1, 0.03), (0.03, 0.3, 0.1)])
def test_ties_keep_the_larger_rate_which_stands_first_in_the_papers_grids(order):
    tied = Protocol(Rates(0.01), (Stage("lr_backbone", order),), (0,))
    assert cell_state(tied, finished(_0_3=80.0, _0_1=90.0, _0_03=90.0)).rates == Rates(0.1)


def test_a_diverged_run_is_never_chosen_and_is_no_edge():
    outcomes = finished(_0_1=80.0, _0_03=70.0) | {trial(0.3): Outcome("diverged")}
    state = cell_state(FT, outcomes)
    assert (state.status, state.rates, state.edges) == ("chosen", Rates(0.1), [])


def test_a_cell_of_which_all_diverged_ends_without_seeds():
    outcomes = {trial(rate): Outcome("diverged") for rate in (0.3, 0.1, 0.03)}
    state = cell_state(FT, outcomes)
    assert state.status == "diverged"
    assert waiting(state, outcomes) == []


def test_with_a_failed_run_in_its_grid_a_cell_chooses_nothing():
    outcomes = finished(_0_1=99.0) | {trial(0.3): Outcome("failed")}
    assert waiting(cell_state(FT, outcomes), outcomes) == [trial(0.03)]  # which may still be of use
    outcomes |= finished(_0_03=1.0)
    state = cell_state(FT, outcomes)
    assert state.status == "failed"
    assert waiting(state, outcomes) == []


def test_a_failed_seed_leaves_the_choice_and_the_other_seeds():
    outcomes = finished(_0_3=1.0, _0_1=9.0, _0_03=1.0) | {trial(0.1, seed=1): Outcome("failed")}
    state = cell_state(FT, outcomes)
    assert state.status == "chosen"
    assert waiting(state, outcomes) == [trial(0.1, seed=2)]


@pytest.mark.parametrize("best", [0.3, 0.03])
def test_a_winner_at_an_edge_is_flagged(best):
    accuracies = {
        trial(rate): Outcome("finished", 90.0 if rate == best else 1.0) for rate in (0.3, 0.1, 0.03)
    }
    assert cell_state(FT, accuracies).edges == ["lr_backbone"]


def test_a_grid_of_one_value_has_no_edge():
    one = Protocol(Rates(0.01), (Stage("lr_backbone", (0.3,)),), (0,), extend=True)
    state, waves = go_through(one, lambda rates: 1.0)
    assert waves == [[trial(0.3)]]
    assert state.edges == []


@pytest.mark.parametrize(
    ("grid", "best", "added"),
    [
        ((0.3, 0.1, 0.03), 1.0, [1.0, 3.0]),  # the best, and one past it
        ((3e-4, 1e-4, 3e-5), 1e-6, [1e-5, 3e-6, 1e-6, 3e-7]),
        ((0.3, 0.1), 2.0, [0.9, 2.7, 8.1]),  # two values have one step
        ((0.3, 0.1, 0.03), 0.1, []),
    ],
)
def test_extend_goes_on_in_the_grids_own_steps_until_the_best_is_inside(grid, best, added):
    cell = Protocol(Rates(0.01), (Stage("lr_backbone", grid),), (0,), extend=True)
    state, waves = go_through(cell, lambda rates: -abs(rates.lr_backbone / best - 1))
    ran = [t.rates.lr_backbone for wave in waves for t in wave]
    assert ran[: len(grid)] == list(grid)
    assert ran[len(grid) :] == pytest.approx(added)
    assert state.edges == []


def test_extend_is_bounded_and_then_the_edge_is_flagged():
    cell = Protocol(Rates(0.01), (Stage("lr_backbone", (0.3, 0.1, 0.03)),), (0,), extend=True)
    state, waves = go_through(cell, lambda rates: rates.lr_backbone)  # the more the better
    assert sum(map(len, waves)) == 3 + EXTENSIONS
    assert state.rates == Rates(30.0)  # 1, 3, 10, 30
    assert state.edges == ["lr_backbone"]


def test_extend_ends_where_rates_do():
    cell = Protocol(Rates(0.01), (Stage("lr_backbone", (3e5, 1e5, 3e4)),), (0,), extend=True)
    state, waves = go_through(cell, lambda rates: rates.lr_backbone)
    assert state.rates == Rates(1e6)
    assert sum(map(len, waves)) == 4
    assert state.edges == ["lr_backbone"]


def test_a_factor_that_leads_beyond_all_rates_is_refused(configure):
    sweep = options("paper", "sweep.head_factors=[1,1e6]")
    config = configure("method=daft", "method.lr_head=10")
    with pytest.raises(
        ConfigError, match=r"^sweep\.head_factors: 10 times a factor is 1e\+07; rates are 1e-12"
    ):
        protocol(sweep, config)


def test_extend_does_not_go_on_into_divergence():
    cell = Protocol(Rates(0.01), (Stage("lr_backbone", (0.3, 0.1, 0.03)),), (0,), extend=True)
    outcomes = finished(_0_3=90.0, _0_1=1.0, _0_03=1.0) | {trial(1.0): Outcome("diverged")}
    state = cell_state(cell, outcomes)
    assert (state.status, state.rates, state.edges) == ("chosen", Rates(0.3), [])


def test_the_lowest_seed_runs_the_grid_wherever_it_stands():
    cell = Protocol(Rates(0.01), (Stage("lr_backbone", (0.3, 0.1)),), (2, 1))
    _, waves = go_through(cell, lambda rates: rates.lr_backbone)
    assert waves == [[trial(0.3, seed=1), trial(0.1, seed=1)], [trial(0.3, seed=2)]]


def test_the_table_selects_the_rates_that_the_sweep_chose():
    """From outcomes of trials and from records, on accuracies with many ties."""
    for shift in range(25):

        def accuracy(rates: Any, shift: int = shift) -> float:
            value = [0.1, 0.03].index(rates.lr_backbone) * 7
            value += [10.0, 3.0, 1.0, 0.3, 0.1].index(rates.lr_head) * 3
            return float((value + shift) * shift % 5 % 3)

        state, waves = go_through(DAFT, accuracy)
        runs = pd.DataFrame(
            {
                **dict.fromkeys(frames.CELL, "x"),
                frames.RATES[0]: t.rates.lr_backbone,
                frames.RATES[1]: t.rates.lr_head,
                frames.SEED: t.seed,
                "id/accuracy": accuracy(t.rates),
                "status": "finished",
                "config.training.selection": "paper",
            }
            for wave in waves
            for t in wave
        )
        chosen = selection.select(runs)
        assert set(chosen[frames.SEED]) == {0, 1, 2}
        assert {Rates(*pair) for pair in chosen[frames.RATES].to_numpy().tolist()} == {state.rates}


def options(name: str, *overrides: str) -> SweepConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [f"sweep={name}", *rewrite_overrides(list(overrides))])
    return validate_section(cfg, "sweep", SweepConfig)


def official() -> list[dict[str, str]]:
    """The learning rates of the configurations that the authors released with their code."""
    with open(ROOT / "tests" / "official_lr_grids.csv") as file:
        return list(csv.DictReader(file))


def test_the_papers_grids_are_those_of_the_authors_configurations(configure):
    sweep = options("paper")
    cells: dict[tuple[str, str, str], dict[str, dict[str, str]]] = {}
    for row in official():
        method, _, stage = row["stage"].partition("/")
        cells.setdefault((row["backbone"], row["dataset"], method), {})[stage or "1"] = row
    assert len(cells) == 45
    for (backbone, dataset, method), rows in cells.items():
        overrides = [f"backbone={backbone}", f"dataset={dataset}", f"method={method}"]
        config = configure(*overrides)
        found = protocol(sweep, config)
        assert config.training.epochs == int(rows["1"]["epochs"])
        grids: dict[RateName, str] = {"lr_backbone": rows["1"]["lr_backbone_grid"]}
        if "2" in rows:
            assert found.start.lr_head == float(rows["1"]["lr_head_grid"])
            grids["lr_head"] = rows["2"]["lr_head_grid"]
        expected = [Stage(rate, tuple(map(float, text.split()))) for rate, text in grids.items()]
        assert list(found.stages) == expected, overrides
        assert found.seeds == (0, 1, 2)


@pytest.mark.parametrize(
    ("ablation", "method"), [("ft_bnc", "ft"), ("lp_ft_bnc", "lp_ft"), ("integrated_lp_ft", "daft")]
)
@pytest.mark.parametrize("cell", [("swav", "living17"), ("clip_rn50", "entity30"), ("moco_v2", "cifar10")])
def test_an_ablation_takes_the_grid_of_its_method(configure, ablation, method, cell):
    where = [f"backbone={cell[0]}", f"dataset={cell[1]}"]
    sweep = options("paper")
    assert protocol(sweep, configure(*where, f"method={ablation}")) == protocol(
        sweep, configure(*where, f"method={method}")
    )


def test_the_heads_grid_is_in_multiples_of_the_backbones_anchor(configure):
    found = protocol(options("paper"), configure("backbone=resnet18_tin64", "dataset=pacs", "method=daft"))
    assert found.start.lr_head == 0.1
    assert found.stages[1] == Stage("lr_head", (1.0, 0.3, 0.03, 0.01))  # to the last bit


def test_ones_own_grid_beats_every_other(configure):
    sweep = options("paper", "sweep.grids.ft=[0.5,0.2]", "sweep.seeds=[3]", "sweep.extend=true")
    found = protocol(sweep, configure("backbone=swav", "dataset=living17", "method=ft"))
    assert (found.stages, found.seeds, found.extend) == ((Stage("lr_backbone", (0.5, 0.2)),), (3,), True)


def test_the_small_protocol_has_three_values_a_grid_for_every_method(configure):
    sweep = options("small")
    for method in sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")):
        found = protocol(sweep, configure("backbone=resnet18_tin64", "dataset=pacs", f"method={method}"))
        for stage in found.stages:
            assert len(stage.grid) + (stage.rate == "lr_head") == 3, method


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sweep.sedes=[0]", ["sweep.sedes", "did you mean 'seeds'"]),
        ("sweep.seeds=[]", ["sweep.seeds"]),
        ("sweep.seeds=[1,1]", ["sweep.seeds", "[1, 1]", "twice"]),
        ("sweep.grids.ft=[0.1,-1]", ["sweep.grids.ft.1", "-1"]),
        ("sweep.grids.tf=[0.1]", ["sweep.grids.tf", "lp_ft", "daft"]),
        ("sweep.grids.lp=[0.1]", ["sweep.grids.lp", "ft"]),
        ("sweep.stages.mine=[lr_backbone]", ["sweep.grids.mine", "missing"]),
        ("sweep.stages.ft=[lr]", ["sweep.stages.ft.0", "'lr'", "lr_backbone"]),
        ("sweep.stages.lp_ft=[lr_backbone,lr_probe]", ["sweep.stages.lp_ft", "LP comes before"]),
        ("sweep.max_jobs=0", ["sweep.max_jobs", "0"]),
        ("sweep.plan=maybe", ["sweep.plan", "'maybe'"]),
    ],
)
def test_a_bad_sweep_option_is_named_with_its_value(override, words):
    with pytest.raises(ConfigError) as caught:
        options("paper", override)
    for word in words:
        assert word in str(caught.value)


def test_a_method_that_no_stage_knows_or_that_has_no_such_rate_is_named(configure):
    mine = configure("method=ft", "method.name=mine")
    with pytest.raises(ConfigError, match=r"sweep\.stages\.mine.*daft"):
        protocol(options("paper"), mine)
    own = options("paper", "sweep.stages.mine=[lr_backbone]", "sweep.grids.mine=[0.1,0.01]")
    assert protocol(own, mine).stages == (Stage("lr_backbone", (0.1, 0.01)),)
    with pytest.raises(ConfigError, match=r"sweep\.stages\.ft: lr_head, but .* null with method\.rates=tied"):
        protocol(options("paper", "sweep.stages.ft=[lr_head]"), configure("method=ft"))
    with pytest.raises(ConfigError, match=r"sweep\.stages\.lp_ft: lr_probe, but method\.lr_probe is null"):
        protocol(options("segmentation"), configure("method=lp_ft"))
