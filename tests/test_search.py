"""`[search]`: the same number of trials for every strategy that trains, each a cell of its own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sffbench import planning, report, runner
from sffbench.errors import InputError
from sffbench.report import trials
from sffbench.search import Search
from sffbench.suite import RunSpec, Suite

Cells = Callable[..., list[RunSpec]]
GRID = {"full": {"lr": [1e-3, 1e-2]}, "default": {"lr": [1e-4, 1e-3]}}
SEARCH = {"trials": 2, "grid": GRID}


def test_a_grid_is_all_combinations_in_its_order() -> None:
    search = Search(trials=4, grid={"sff": {"lr": [0.1, 0.2], "alpha": [0.7, 0.9]}})
    assert search.points("sff", "sff") == [
        {"alpha": alpha, "lr": lr} for alpha in (0.7, 0.9) for lr in (0.1, 0.2)
    ]


def test_of_more_points_than_trials_a_fixed_sample_is_tried() -> None:
    grid = {"full": {"lr": [float(number) for number in range(1, 11)]}}
    chosen = {n: [p["lr"] for p in Search(trials=n, grid=grid).points("full", "full")]
              for n in (3, 4, 10)}  # fmt: skip
    assert [len(points) for points in chosen.values()] == [3, 4, 10]
    assert set(chosen[3]) < set(chosen[4])  # one more trial adds one, and changes none
    assert chosen[3] != [1.0, 2.0, 3.0]  # shuffled, not the first ones
    assert all(points == sorted(points) for points in chosen.values())
    turned = {"full": {"lr": grid["full"]["lr"][::-1]}}
    again = Search(trials=3, grid=turned).points("full", "full")
    assert {point["lr"] for point in again} == set(chosen[3])


def test_every_point_is_as_likely_as_another() -> None:
    """Fifty grids of ten; a point that were favoured by its place would stand out."""
    counts = [0] * 10
    for number in range(50):
        grid = {"full": {"lr": [number + place / 10 for place in range(10)]}}
        for point in Search(trials=3, grid=grid).points("full", "full"):
            counts[round(point["lr"] % 1 * 10)] += 1
    assert sum(counts) == 150
    assert max(counts) < 15 + 4 * 3.3  # binomial: mean 15, deviation 3.2
    assert min(counts) > 15 - 4 * 3.3


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"trials": 3, "grid": {"full": {"lr": [1e-3, 1e-2]}}},
         r"the grid of 'full' has 2 points for 3 trials.*trials = 2 for every"),
        ({"trials": 2, "grid": {"full": {"lr": [1e-3, 1e-3]}}}, "has 1 points for 2 trials"),
        ({"trials": 1, "grid": {"full": {"lr": []}}}, "has 0 points for 1 trials"),
        ({"trials": 2, "grid": {"sff": {"lr": [1e-3, 1e-2]}}}, "'sff'.*allowed: full, default"),
        ({"trials": 2}, r"'full' trains and has no grid: add \[search.grid.full\]"),
        ({"trials": 2, "grid": {"full": {"rl": [1, 2]}}}, "'rl'; did you mean 'lr'"),
        ({"trials": 2, "grid": {"full": {"lr": [1e-3, -1.0]}}}, "lr = -1.0: must be a positive"),
    ],
)  # fmt: skip
def test_a_search_that_cannot_be_fair_is_one_line(
    cells_of: Cells, search: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        cells_of(search=search)
    assert "\n" not in str(caught.value)


def test_a_field_that_the_suite_sets_is_not_searched(cells_of: Cells) -> None:
    with pytest.raises(InputError, match="'full' sets 'lr', and its grid varies it"):
        cells_of(strategies=[{"name": "full", "lr": 0.1, "label": "full"}], search=SEARCH)


def test_a_protocol_without_validation_searches_nothing(cells_of: Cells) -> None:
    with pytest.raises(InputError, match="'speed' has no validation to choose by"):
        cells_of(protocol="speed", budget={}, search=SEARCH)


def test_every_strategy_that_trains_has_as_many_trials_and_the_others_one_run(
    cells_of: Cells,
) -> None:
    specs = cells_of(
        strategies=["last-value", "zero-shot", "full", "sff", "linear-probe"],
        seeds=[0, 1],
        search=SEARCH,
    )
    counts = {label: sum(s.label == label for s in specs) for label in {s.label for s in specs}}
    assert counts == {"last-value": 1, "zero-shot": 1, "full": 4, "sff": 4, "linear-probe": 4}
    assert len({spec.key for spec in specs}) == len(specs)
    assert [s.cell["lr"] for s in specs if s.label == "full"] == [1e-3, 1e-3, 1e-2, 1e-2]
    assert [s.cell["lr"] for s in specs if s.label == "sff"] == [1e-4, 1e-4, 1e-3, 1e-3]


def test_a_label_may_have_a_grid_of_its_own(cells_of: Cells) -> None:
    grid = {"mine": {"alpha": [0.5, 0.9]}, "sff": {"lr": [1e-3, 1e-2]}}
    mine = {"name": "sff", "label": "mine"}
    specs = cells_of(strategies=[mine, "sff"], search={"trials": 2, "grid": grid})
    fields = [spec.cell["strategy"]["fields"] for spec in specs]
    assert [one["alpha"] for one in fields] == [0.5, 0.9, 0.7, 0.7]
    assert [one["lr"] for one in fields] == [None, None, 1e-3, 1e-2]


def test_a_trial_says_in_its_key_which_search_it_belongs_to(cells_of: Cells) -> None:
    first, second = cells_of(search=SEARCH)
    (plain,) = cells_of()
    assert first.cell["search"] == {
        "trial": 1,
        "trials": 2,
        "of": plain.cell["strategy"],
        "points": [{"lr": 1e-3}, {"lr": 1e-2}],
    }
    assert second.cell["strategy"]["fields"] == {"lr": 1e-2}
    assert second.cell["search"]["of"]["fields"] == {"lr": None}
    (alone,) = cells_of(strategies=[{"name": "full", "lr": 1e-3}])
    assert {**first.cell, "search": None} == {**alone.cell, "search": None}
    assert first.key != alone.key  # a trial counts as a trial, an untried setting as itself
    assert "search" not in plain.cell
    assert first.describe() == "ttm:custom ETTh1 H=8 full seed 0 trial 1/2"


def test_what_is_not_searched_keeps_its_key(cells_of: Cells) -> None:
    names = ["last-value", "zero-shot"]
    assert [s.key for s in cells_of(strategies=names)] == [
        s.key for s in cells_of(strategies=[*names, "full"], search=SEARCH)[:2]
    ]


def test_a_plan_counts_the_trials(cells_of: Cells, tmp_path: Any) -> None:
    plan = planning.overview(cells_of(strategies=["last-value", "full"], search=SEARCH), tmp_path)
    assert (plan["cells"], plan["trials"]) == (3, 2)
    assert "3 cells (2 of them trials of a search): 3 missing" in planning.text(plan)


def test_a_suite_file_says_it_in_toml(suite_fields: Callable[..., dict[str, Any]]) -> None:
    import tomllib

    raw = tomllib.loads("[search]\ntrials = 2\n[search.grid.full]\nlr = [1e-3, 1e-2]\n")
    assert Suite(**suite_fields(**raw)).search == Search(trials=2, grid={"full": GRID["full"]})


def test_a_search_runs_and_becomes_one_row(cells_of: Cells) -> None:
    records = [runner.run(spec, torch.device("cpu")) for spec in cells_of(search=SEARCH)]
    assert [record["status"] for record in records] == ["ok", "ok"]
    best = min(records, key=lambda record: record["validation"]["mse"])
    (found,) = trials.fold(records)
    assert found["metrics"] == best["metrics"]
    assert found["cost"]["num_steps"] == 4 + 4
    assert found["cost"]["train_s"] == sum(record["cost"]["train_s"] for record in records)
    assert "full (best of 2)" in report.render(records)
