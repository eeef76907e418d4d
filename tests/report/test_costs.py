"""The cost view: what it computes, that devices never mix, and that it ranks and hides nothing."""

import csv
import io
import json
import re

import pytest

from sffbench.errors import InputError
from sffbench.report import cost_view, costs, render, table
from sffbench.report.build import build

MIB = 2**20


def untrained(record, **fields):
    made = record(**fields)
    made["cell"]["model"]["weights"] = "random:0"
    return made


def timed(record, *, train=100.0, peak=10 * MIB, **fields):
    made = record(train_windows_per_s=train, **fields)
    made["cost"] |= {
        "train_peak_memory_bytes": peak,
        "test_peak_memory_bytes": peak // 2,
        "num_parameters": 1234,
        "num_trained": 34,
        "train_batch": 8,
        "test_batch": 32,
    }
    return made


def test_a_rate_is_the_median_over_runs_and_a_peak_the_largest(record):
    records = [
        timed(record, seed=seed, train=rate, peak=peak * MIB)
        for seed, (rate, peak) in enumerate([(1.0, 5), (9.0, 7), (3.0, 6)])
    ]
    (found,) = costs.build(records)
    (row,) = found.rows
    assert (row.cost["train_windows_per_s"], row.num_runs) == (3.0, 3)
    assert row.cost["train_peak_memory_bytes"] == 7 * MIB
    assert (row.cost["num_parameters"], row.lookback) == (1234, 512)


def test_each_device_has_a_table_of_its_own(record):
    records = [
        timed(record, device="cpu", device_name="A CPU", train=1.0),
        timed(record, device="cuda", device_name="A GPU", train=1000.0),
    ]
    cpu, gpu = costs.build(records)
    assert [(t.device, t.on_cpu) for t in (cpu, gpu)] == [("A CPU x1", True), ("A GPU x1", False)]
    assert cpu.rows[0].cost["train_windows_per_s"] == 1.0
    text = cost_view.markdown([cpu, gpu])
    assert "train windows/CPU-s" in text.split("A GPU x1")[0]
    assert "train windows/s" in text.split("###")[2]


def test_a_row_that_did_not_run_on_a_device_is_missing_there_and_a_failure_says_why(record):
    records = [
        timed(record, model="ttm:r2", device_name="A"),
        timed(record, model="timer:1.0", device_name="B"),
        record(model="units:x32", device_name="A", mse=None, status="failed", reason="too large"),
    ]
    first, second = costs.build(records)
    status = {
        found.device: {row.row.model: row.status for row in found.rows} for found in (first, second)
    }
    assert status["A x1"] == {"ttm:r2": "ok", "timer:1.0": "missing", "units:x32": "failed"}
    assert status["B x1"] == {"ttm:r2": "missing", "timer:1.0": "ok", "units:x32": "missing"}
    assert "units:x32 full: failed: too large" in cost_view.markdown([first])


def test_planned_cells_without_any_record_are_missing(record):
    cell = untrained(record)["cell"]
    text = render([], view="cost", expected=[cell | {"key": "0" * 24, "label": "full"}])
    assert "no device yet" in text
    assert "missing" in text
    assert render([], view="cost") == "No records.\n"


def test_random_weights_enter_no_accuracy_table_and_are_counted_below_it(record):
    records = [record(seed=seed) for seed in range(3)] + [untrained(record, model="units:x32")]
    text = render(records)
    assert "units:x32" not in text
    assert "1 runs from random weights" in text
    assert "units:x32" not in render(records, "csv")
    assert "units:x32" not in render(records, "json")
    assert "[untrained]" in render(records, view="cost")


def test_a_row_from_random_weights_is_never_ranked(record):
    (board,) = build([untrained(record, seed=seed) for seed in range(3)])
    (row,) = board.rows
    assert (row.ranked, row.unranked) == (False, "random weights")


def test_a_folder_of_nothing_but_random_weights_shows_its_costs(record):
    assert render([untrained(record)]).startswith("### Cost: forecast, H = 96")
    assert render([record()]).startswith("### forecast, H = 96")


def test_csv_and_json_hold_the_numbers_unrounded(record):
    records = [timed(record, train=1 / 3)]
    (line,) = csv.DictReader(io.StringIO(render(records, "csv", view="cost")))
    assert tuple(line) == cost_view.CSV_COLUMNS
    assert float(line["train_windows_per_s"]) == 1 / 3
    document = json.loads(render(records, "json", view="cost"))
    assert document["view"] == "cost"
    (row,) = document["tables"][0]["rows"]
    assert row["cost"]["train_windows_per_s"] == 1 / 3
    assert row["cost"]["num_trained"] == 34


def test_the_order_of_records_changes_nothing(record):
    records = [timed(record, seed=s, device_name=d) for s in range(2) for d in "AB"]
    for format in table.FORMATS:
        forward, backward = (render(r, format, view="cost") for r in (records, records[::-1]))
        assert forward == backward


def test_an_unknown_view_is_one_line(record):
    with pytest.raises(InputError, match=r"view 'costs'.*'cost'"):
        render([record()], view="costs")


def test_every_column_of_the_view_is_described(record):
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "throughput.md").read_text(encoding="utf-8")
    text = render([timed(record, device="cpu")], view="cost")
    head = next(line for line in text.splitlines() if line.startswith("| model"))
    for name in (cell.strip() for cell in head.strip("|").split("|")):
        assert re.search(rf"`{re.escape(name.replace('/CPU-s', '/s'))}`", page), name
