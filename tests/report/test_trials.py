"""A search in the table: which trial is shown, what all cost, what is missing and compared."""

import csv
import io
import json

import pytest

from sffbench.report import compare, show, table
from sffbench.report.build import build
from sffbench.report.effects import Baselines
from sffbench.report.trials import fold

POINTS = [{"lr": 1e-4}, {"lr": 3e-4}, {"lr": 1e-3}]


@pytest.fixture
def trial(record):
    """trial(2, validation=.5, mse=.4): the record of the second of three trials."""

    def make(number, *, validation=0.5, points=POINTS, strategy="full", train_s=10.0, **fields):
        point = points[number - 1]
        made = record(strategy=strategy, fields=point, lr=point.get("lr", 1e-4), **fields)
        of = made["cell"]["strategy"] | {"fields": dict.fromkeys(point)}
        search = {"trials": len(points), "of": of, "points": points, "trial": number}
        made["cell"]["search"] = search
        made["key"] = f"{made['key']}{number}"
        if made["metrics"]:
            made["validation"] = {"selected_step": 100 * number, "mse": validation}
            made["cost"] |= {"train_s": train_s, "train_cpu_s": 2 * train_s, "prepare_s": 1.0}
            made["cost"] |= {"train_windows": 256, "num_steps": 300}
        return made

    return make


@pytest.fixture
def search(trial):
    """Three trials: the second wins on validation, the third would have won on test."""
    return [
        trial(1, validation=0.60, mse=0.40, train_s=10.0, peak_memory_bytes=5),
        trial(2, validation=0.50, mse=0.35, train_s=20.0, peak_memory_bytes=9),
        trial(3, validation=0.55, mse=0.30, train_s=40.0, peak_memory_bytes=7),
    ]


def test_validation_chooses_and_the_test_score_is_the_chosen_ones(search):
    (one,) = fold(search)
    assert one["metrics"]["mse"] == 0.35
    assert one["validation"]["selected_step"] == 200
    assert one["search"] == {"trial": 2, "point": {"lr": 3e-4}, "failed": []}
    assert one["key"] == search[1]["key"]  # `show` of this key shows the chosen run


def test_the_cost_is_that_of_all_trials(search):
    cost = fold(search)[0]["cost"]
    assert (cost["train_s"], cost["train_cpu_s"], cost["prepare_s"]) == (70.0, 140.0, 3.0)
    assert (cost["train_windows"], cost["num_steps"], cost["peak_memory_bytes"]) == (768, 900, 9)
    assert cost["test_s"] == 2.0  # of the one that is shown


def test_the_row_is_the_searched_strategy_whatever_was_chosen(search, trial):
    other = [trial(n, validation=1 / n, data="ETTh2") for n in (1, 2, 3)]  # the third wins here
    (row,) = build(search + other)[0].rows
    assert (row.title, row.trials, row.complete) == ("full (best of 3)", 3, True)
    text = table.render(search + other)
    assert "chosen lr=0.0003 (1), lr=0.001 (1)." in text
    assert "Steps and train seconds are of all trials" in text


def test_on_a_tie_the_earlier_trial_is_chosen(trial):
    (one,) = fold([trial(n, validation=0.5, mse=n / 10) for n in (3, 1, 2)])
    assert one["search"]["trial"] == 1


def test_a_search_that_lacks_a_trial_is_missing_and_no_winner_among_fewer(search):
    (row,) = build(search[:2])[0].rows
    (cell,) = row.cells.values()
    assert (cell.status, cell.reasons) == ("missing", ["2 of 3 trials have run"])
    assert "missing: 2 of 3 trials have run" in table.render(search[:2])


def test_a_planned_trial_without_a_record_is_missing_too(search):
    cells = [one["cell"] | {"key": one["key"], "label": one["label"]} for one in search]
    for records in (search[:2], []):
        (row,) = build(records, expected=cells)[0].rows
        assert [cell.status for cell in row.cells.values()] == ["missing"]
    (row,) = build(search, expected=cells)[0].rows
    assert row.complete


def test_a_failed_trial_is_a_trial_and_is_told(search, trial):
    failed = trial(2, mse=None, status="failed", reason="diverged: NaN")
    records = [search[0], failed, search[2]]
    (one,) = fold(records)
    assert one["metrics"]["mse"] == 0.30  # the third now has the lowest validation error
    assert one["search"]["failed"] == ["trial 2: diverged: NaN"]
    assert "1 trials failed" in table.render(records)


def test_when_every_trial_fails_the_cell_fails_with_their_reasons(trial):
    records = [trial(n, mse=None, status="failed", reason="diverged") for n in (1, 2, 3)]
    (one,) = fold(records)
    assert one["status"] == "failed"
    assert "trial 1: diverged; trial 2: diverged" in one["reason"]
    records = [trial(n, mse=None, status="n/a", reason="no head") for n in (1, 2, 3)]
    assert fold(records)[0]["status"] == "n/a"


def test_seeds_and_searches_are_never_mixed(search, trial):
    seed = [trial(n, seed=1) for n in (1, 2, 3)]
    wider = [{"lr": 1.0}, *POINTS]
    other = [trial(n, points=wider) for n in (1, 2, 3, 4)]
    shifted = [trial(n, points=[{"lr": 2.0}, *POINTS[1:]]) for n in (1, 2, 3)]
    folded = fold(search + seed + other + shifted)
    assert [len(one["cell"]["search"]["points"]) for one in folded] == [3, 3, 4, 3]
    titles = [row.title for row in build(search + seed + other + shifted)[0].rows]
    assert len(set(titles)) == 3
    assert "full (best of 4)" in titles


def test_records_without_a_search_pass_unchanged(search, record):
    plain = record(data="ETTh2")
    assert fold([plain, *search, plain])[0] is plain
    assert len(fold([plain, *search])) == 2


def test_what_was_tuned_is_compared_with_what_was_tuned_as_often(search, trial, record):
    points = [{"alpha": a} for a in (0.5, 0.7, 0.9)]
    tuned = [trial(n, strategy="sff", points=points, mse=0.2) for n in (1, 2, 3)]
    plain = [record(), record(strategy="sff"), record(strategy="zero-shot")]
    board = build([*search, *tuned, *plain])[0]
    rows = {row.title: row for row in board.rows}
    baselines = Baselines.of(board)
    full = {name: baselines.find(row, "full") for name, row in rows.items()}
    assert full["sff (best of 3)"] is full["full (best of 3)"] is rows["full (best of 3)"]
    assert full["sff"] is full["zero-shot"] is rows["full"]
    assert baselines.find(rows["sff (best of 3)"], "zero-shot") is rows["zero-shot"]


def test_a_tuned_row_without_a_tuned_full_is_compared_with_none(trial, record):
    points = [{"alpha": a} for a in (0.5, 0.7, 0.9)]
    records = [trial(n, strategy="sff", points=points) for n in (1, 2, 3)] + [record()]
    text = table.render(records)
    assert "sff (best of 3): no `full` has as many trials" in text


def test_unequal_trials_permit_no_claim(search, record):
    text = compare([*search, record(strategy="sff")], "sff", "full (best of 3)")
    assert "unequal numbers of trials" in text


def test_the_seconds_of_all_trials_stand_in_the_table_where_there_is_a_search(search, record):
    def header(records):
        return next(line for line in table.render(records).splitlines() if "strategy" in line)

    assert "| train s |" in " ".join(header(search).split()).replace(" | ", " | ")
    assert "train s |" not in " ".join(header([record()]).split())
    line = next(one for one in table.render(search).splitlines() if "best of 3)" in one)
    assert "| 900 |" in " ".join(line.split())
    assert "| 73 |" in " ".join(line.split())  # 70 of steps and 3 of preparation


def test_trials_on_two_devices_have_no_cost_together(search):
    search[1]["environment"]["device_name"] = "Another"
    (row,) = build(search)[0].rows
    assert (row.complete, row.cost.train_s) == (True, None)


def test_programs_see_the_trials(search):
    document = json.loads(table.render(search, "json"))
    (row,) = document["tables"][0]["rows"]
    assert (row["trials"], row["lr"], row["cost"]["train_s"]) == (3, None, 73.0)
    (found,) = csv.DictReader(io.StringIO(table.render(search, "csv")))
    assert (found["trials"], found["trial"]) == ("3", "2")


def test_show_says_which_trial_a_run_is(search):
    assert "2 of 3: lr=0.0003" in show(search, search[1]["key"])


@pytest.mark.parametrize("format", table.FORMATS)
@pytest.mark.parametrize("view", ["accuracy", "cost"])
def test_the_order_of_trials_changes_no_byte(search, trial, record, format, view):
    records = [*search, *(trial(n, seed=1, mse=n / 7) for n in (1, 2, 3)), record()]
    texts = {table.render(r, format, view=view) for r in (records, records[::-1])}
    assert len(texts) == 1
