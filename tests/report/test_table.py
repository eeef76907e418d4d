"""What the printed table shows, and what it must never do."""

import csv
import io
import json
import subprocess
import sys

import pytest

from sffbench.errors import InputError
from sffbench.report import table
from sffbench.report.build import build
from sffbench.report.exports import CSV_COLUMNS

SIX = ["ETTh1", "ETTh2", "ETTm1", "ETTm2", "Weather", "Exchange"]


def lines(text, strategy):
    """Table lines, as lists of their fields, whose second field is `strategy`."""
    table_lines = (one for one in text.splitlines() if one.startswith("| "))
    fields = ([part.strip() for part in one.strip("|").split(" |")] for one in table_lines)
    return [found for found in fields if found[1] == strategy]


def header(text):
    return lines(text, "strategy")[0]


def field(text, column, strategy):
    (found,) = lines(text, strategy)
    return found[header(text).index(column)]


def test_rows_and_columns_stand_in_the_fixed_order(record):
    strategies = [
        "sff", "ema", "full", "zero-shot", "from-scratch", "last-value", "linear-probe",
        "smoothed-zero-shot", "dropout", "seasonal-naive",
    ]  # fmt: skip
    records = [
        record(strategy=strategy, data=data, model=model)
        for strategy in strategies
        for data in ("Zeta", *reversed(SIX))
        for model in ("ttm:b", "ttm:a")
    ]
    board = build(records)[0]
    assert [column.label for column in board.columns] == [*SIX, "Zeta"]
    ordered = [
        "zero-shot", "smoothed-zero-shot", "from-scratch", "linear-probe", "full", "sff",
        "dropout", "ema",
    ]  # fmt: skip
    assert [(row.model, row.label) for row in board.rows] == [
        ("none", "last-value"),
        ("none", "seasonal-naive"),
        *(("ttm:a", name) for name in ordered),
        *(("ttm:b", name) for name in ordered),
    ]


def test_a_cell_shows_the_mean_and_the_sample_deviation(seeds):
    text = table.render(seeds(0.1, 0.2, 0.3))
    assert field(text, "ETTh1", "full") == "0.2000 ±0.1000"
    assert field(text, "seeds", "full") == "3"


def test_a_single_seed_shows_no_deviation_and_is_unranked(record):
    text = table.render([record(mse=0.12345)])
    assert field(text, "ETTh1", "full") == "0.1235"
    assert field(text, "flags", "full") == "[unranked: fewer than 3 seeds]"


def test_effects_and_losses_are_printed_against_full_and_zero_shot(seeds):
    records = []
    for data in ("ETTh1", "Weather"):
        records += seeds(0.4, 0.4, 0.4, data=data, strategy="full")
        records += seeds(0.2, 0.2, 0.2, data=data, strategy="sff")
        records += seeds(0.3, data=data, strategy="zero-shot")
    text = table.render(records)
    assert field(text, "vs full", "sff") == "-50.00% [-50.00, -50.00]"
    assert field(text, "vs full", "full") == "reference"
    assert field(text, "worse than zero-shot", "full") == "2/2"
    assert field(text, "worse than zero-shot", "sff") == "0/2"
    assert field(text, "worse than zero-shot", "zero-shot") == "reference"
    assert field(text, "ETTh1", "sff") == "**0.2000** ±0.0000"


def test_one_cluster_prints_an_effect_and_no_interval(seeds):
    text = table.render(seeds(0.4, strategy="full") + seeds(0.2, strategy="sff"))
    assert field(text, "vs full", "sff") == "-50.00% [no interval: one cluster]"


def test_failed_missing_and_not_applicable_stand_in_the_cell_and_below_the_table(record):
    records = [record(data=data, strategy="full") for data in SIX[:4]]
    records += [
        record(data="ETTh1", strategy="sff"),
        record(data="ETTh2", strategy="sff", mse=None, status="failed", reason="diverged: NaN"),
        record(data="ETTm1", strategy="sff", mse=None, status="n/a", reason="no head"),
    ]
    text = table.render(records)
    above, below = text.split("Incomplete, not ranked:")
    assert lines(above, "sff") == []
    assert [field(below, data, "sff") for data in SIX[:4]] == [
        "0.4000",
        "failed",
        "n/a",
        "missing",
    ]
    assert field(below, "vs full", "sff") == "+0.00% [no interval: one cluster] (1/4)"
    assert "sff, ETTh2: failed: diverged: NaN" in below


def test_a_lost_seed_is_counted_in_the_cell_and_makes_the_row_incomplete(seeds, record):
    lost = record(seed=2, mse=None, status="failed", reason="out of memory")
    records = [*seeds(0.4, 0.5), lost]
    text = table.render(records)
    assert "(2/3 seeds)" in field(text.split("Incomplete")[1], "ETTh1", "full")


@pytest.mark.parametrize(("num_hints", "split"), [(14, False), (15, True)])
def test_in_a_long_table_the_unranked_rows_stand_below(seeds, record, num_hints, split):
    records = [*seeds(0.4, 0.4, 0.4), record(strategy="zero-shot")]
    records += [record(strategy=f"s{number:02}") for number in range(num_hints)]
    text = table.render(records)
    assert ("Complete, not ranked (fewer than 3 seeds):" in text) == split
    above = text.split("Complete, not ranked")[0]
    assert [len(lines(above, name)) for name in ("full", "zero-shot")] == [1, 1]
    assert bool(lines(above, "s00")) != split
    assert len(lines(text, "s00")) == 1


def test_an_ok_record_without_a_finite_error_counts_as_failed(record):
    bad = record(mse=float("nan"))
    assert field(table.render([bad, record(data="Weather")]), "ETTh1", "full") == "failed"


def test_expected_cells_without_a_record_are_missing(record):
    planned = record(data="Weather", label="full")
    expected = [planned["cell"] | {"key": planned["key"], "label": "full"}]
    text = table.render([record()], expected=expected)
    assert field(text, "Weather", "full") == "missing"
    assert field(text, "ETTh1", "full") == "0.4000"


def test_a_plan_without_any_record_shows_missing_everywhere(record):
    planned = [record(data=data, strategy=name) for data in SIX for name in ("full", "sff")]
    expected = [one["cell"] | {"key": one["key"], "label": one["label"]} for one in planned]
    text = table.render([], expected=expected)
    assert lines(text, "sff")[0].count("missing") == 6
    assert table.render([]) == "No records.\n"


@pytest.mark.parametrize(
    "other",
    [
        {"protocol": {"name": "standard", "version": 2, "ranked": True}},
        {"protocol": {"name": "full-shot", "version": 1, "ranked": True}},
        {"source": "synthetic"},
        {"horizon": 192},
    ],
)
def test_what_is_not_comparable_never_shares_a_table(record, other):
    text = table.render([record(mse=0.1), record(mse=0.2, **other)])
    sections = [part for part in text.split("### ") if not part.startswith("Overall")]
    assert all(("0.1000" in part) + ("0.2000" in part) < 2 for part in sections)
    assert "0.1000" in text
    assert "0.2000" in text


def test_a_budget_override_gets_its_own_table_and_says_so(record, standard):
    text = table.render([record(), record(protocol=standard | {"max_steps": 20})])
    assert "standard v1 (max_steps=20) · real data" in text
    assert "standard v1 (max_steps=300) · real data" in text


def test_a_learning_rate_tells_rows_apart_and_not_tables(record):
    board = build([record(lr=0.1), record(lr=0.2)])
    assert [row.title for row in board[0].rows] == ["full (lr=0.1)", "full (lr=0.2)"]


def test_one_label_for_two_settings_is_told_apart(record):
    fields = [{"alpha": 0.7}, {"alpha": 0.9}]
    board = build([record(strategy="sff", fields=one) for one in fields])[0]
    assert [row.title for row in board.rows] == ["sff (alpha=0.7)", "sff (alpha=0.9)"]


def test_two_labels_for_one_setting_are_one_row(record):
    records = [record(data="ETTh1"), record(data="ETTh2"), record(data="Weather", label="mine")]
    assert [row.title for row in build(records)[0].rows] == ["full"]


def test_another_file_under_the_same_name_is_another_column(record):
    other = record(mse=0.9)
    other["cell"]["data"]["sha256"] = "f" * 64
    other["key"] = "other"
    labels = [column.label for column in build([record(), other])[0].columns]
    assert len(labels) == 2
    assert all(label.startswith("ETTh1@") for label in labels)


def test_synthetic_tiny_and_quick_are_marked_in_every_row(record, quick):
    records = [
        record(strategy=name, source="synthetic", model="ttm:tiny", protocol=quick, seed=seed)
        for name in ("last-value", "zero-shot", "full")
        for seed in range(3)
    ]
    text = table.render(records)
    assert text.count("[synthetic] [unranked: quick protocol]") == 1  # last-value has no model
    assert text.count("[synthetic] [tiny] [unranked: quick protocol]") == 2
    assert "they say nothing about real data" in text


def test_leaks_and_unrolled_forecasts_name_their_data_sets(record):
    records = [
        record(data="ETTh1", leaked="yes", unrolled=True),
        record(data="Weather", leaked="unknown", unrolled=True),
    ]
    text = table.render(records)
    assert "[unrolled] [leaked: ETTh1]" in field(text, "flags", "full")
    assert "not known of: ttm:r2-512-96" in text


def test_costs_come_from_the_device_with_most_records_alone(record):
    mine = [record(data=data, device_name="A", train_windows_per_s=100.0) for data in SIX]
    theirs = [
        record(data="ETTh1", device_name="H100", train_windows_per_s=9e6, finished_at="2027-01-01"),
        record(data="ETTh1", device_name="H100", strategy="sff", train_windows_per_s=9e6),
    ]
    text = table.render(mine + theirs)
    assert field(text, "train windows/s", "full") == "100"
    assert field(text, "train windows/s", "sff") == "n/a"
    assert field(text, "device", "full") == "A x1*, H100 x1"
    assert field(text, "device", "sff") == "H100 x1"
    assert "9,000,000" not in text


def test_throughput_is_the_median_and_memory_the_maximum_over_runs(record):
    rates = [100.0, 300.0, 1000.0]
    peaks = [2**20, 7 * 2**20, 2 * 2**20]
    records = [
        record(seed=seed, train_windows_per_s=rate, peak_memory_bytes=peak)
        for seed, (rate, peak) in enumerate(zip(rates, peaks, strict=True))
    ]
    text = table.render(records)
    assert field(text, "train windows/s", "full") == "300"
    assert field(text, "peak MiB", "full") == "7"


def test_trademarks_and_clock_rates_do_not_widen_the_device_column(record):
    text = table.render([record(device_name="Intel(R) Xeon(R) CPU E5 @ 2.20GHz")])
    assert field(text, "device", "full") == "Intel Xeon E5 x1"


def test_differing_window_counts_in_a_column_raise_a_warning(record):
    odd = record(seed=1)
    odd["metrics"]["num_windows"] = 19000
    assert "WARNING: ETTh1 was scored on differing numbers of windows" in table.render(
        [record(), odd]
    )


def test_naive_rows_are_compared_with_the_only_model(record):
    records = [record(), record(strategy="last-value", mse=0.8)]
    text = table.render(records)
    assert field(text, "vs full", "last-value").startswith("+100.00%")
    two = table.render([*records, record(model="timer:base")])
    board = two.split("### ")[-1]
    assert field(board, "vs full", "last-value") == "n/a"


def test_a_pipe_in_a_label_cannot_break_the_table(record):
    assert "a\\|b" in table.render([record(label="a|b")])


def test_csv_has_one_line_per_cell_and_seed_with_full_precision(seeds, record):
    records = seeds(0.1234567890123456, 0.2, data="ETTh1")
    records += [record(data="Weather", seed=0, mse=None, status="failed", reason="diverged")]
    found = list(csv.DictReader(io.StringIO(table.render(records, "csv"))))
    assert [(one["dataset"], one["seed"], one["status"]) for one in found] == [
        ("ETTh1", "0", "ok"),
        ("ETTh1", "1", "ok"),
        ("Weather", "0", "failed"),
        ("Weather", "1", "missing"),
    ]
    assert float(found[0]["mse"]) == 0.1234567890123456
    assert (found[0]["cluster"], found[0]["synthetic"], found[2]["mse"]) == ("ett1", "False", "")
    assert found[0]["train_windows_per_s"] == "1000.0"


def test_json_holds_the_same_numbers_without_rounding(seeds):
    records = seeds(0.1, 0.2, 0.4) + seeds(0.2, 0.4, 0.8, strategy="sff")
    document = json.loads(table.render(records, "json"))
    assert document["schema"] == 1
    full, sff = document["tables"][0]["rows"]
    assert full["cells"]["ETTh1"]["mse"]["by_seed"] == {"0": 0.1, "1": 0.2, "2": 0.4}
    assert full["is_full"]
    assert sff["vs_full"]["percent"] == pytest.approx(100)
    assert sff["vs_full"]["percent_limits"] is None


def test_an_unknown_format_names_the_nearest(record):
    with pytest.raises(InputError, match=r"unknown format 'jso'; did you mean 'json'"):
        table.render([record()], "jso")


@pytest.mark.parametrize("format", ["md", "csv", "json"])
def test_the_order_of_records_changes_no_byte(record, format):
    records = [
        record(data=data, strategy=strategy, seed=seed, mse=0.1 * (seed + 1.1))
        for data in SIX
        for strategy in ("full", "sff", "last-value", "zero-shot")
        for seed in range(3)
    ]
    assert table.render(records, format) == table.render(records[::-1], format)


def test_every_printed_column_is_explained_in_the_docs(record, docs_columns):
    text = table.render([record()])
    printed = [name for name in header(text) if name not in SIX]
    absent = [
        name for name in [*printed, *CSV_COLUMNS, "unranked"] if f"`{name}`" not in docs_columns
    ]
    assert absent == []


def test_the_report_loads_no_torch_and_no_pandas(tmp_path, record):
    program = (
        "import sys; from sffbench import report; from sffbench.report import records\n"
        "import json; made = json.load(sys.stdin)\n"
        "report.render(made); report.render(made, 'csv'); report.render(made, 'json')\n"
        "report.show(made, made[0]['key']); report.compare(made, 'sff', 'full')\n"
        "print([name for name in ('torch', 'pandas', 'scipy.stats') if name in sys.modules])"
    )
    made = [record(data=data, strategy=name) for data in SIX for name in ("full", "sff")]
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(made), capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_cpu_row_is_timed_in_processor_seconds(record):
    text = table.render([record(device="cpu", train_windows_per_s=100.0)])
    assert field(text, "train windows/CPU-s", "full") == "200"
    assert "train windows/s" not in text


@pytest.fixture
def timed(standard):
    rules = {name: value for name, value in standard.items() if name != "max_steps"}
    return rules | {"max_steps": None, "train_s": 20.0, "num_checks": 6}


def test_a_budget_of_time_has_a_table_of_its_own_with_steps_and_seconds(record, timed):
    run = record(protocol=timed)
    run["cost"] |= {"num_steps": 123, "train_s": 19.5, "prepare_s": 0.5}
    text = table.render([run, record(), record(strategy="zero-shot", protocol=timed)])
    assert "standard v1 (num_checks=6, train_s=20.0) · real data" in text
    assert "standard v1 (max_steps=300) · real data" in text
    mine = next(part for part in text.split("### ") if "train_s=20.0" in part)
    assert (field(mine, "steps", "full"), field(mine, "train s", "full")) == ("123", "20")
    assert field(mine, "steps", "zero-shot") == "n/a"
    assert "[timed]" in field(mine, "flags", "full")
    assert "[timed]" not in field(mine, "flags", "zero-shot")
    assert "trained for 20 seconds of its device" in mine


def test_timed_runs_of_two_devices_raise_a_warning(record, timed):
    runs = [record(protocol=timed, seed=seed, device_name=f"GPU {seed}") for seed in range(2)]
    assert "WARNING: the timed runs are of several devices" in table.render(runs)
    assert "WARNING" not in table.render(runs[:1])
