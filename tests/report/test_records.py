"""Reading a store: what is skipped, what stops, what stands for a cell."""

import json
import time
from pathlib import Path

import pytest

from sffbench.errors import InputError
from sffbench.report import records, table

HISTORIC = Path(__file__).parent / "data"


def write(root, record, name=None):
    folder = root / "runs" / record["key"]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or f"{record['performance_key']}.json")
    path.write_text(json.dumps(record))
    return path


def test_records_come_back_as_written_in_a_stable_order(tmp_path, record):
    made = [record(seed=seed) for seed in range(5)]
    for one in reversed(made):
        write(tmp_path, one)
    assert records.load(tmp_path) == sorted(made, key=lambda one: one["key"])


def test_temporary_files_and_strangers_are_skipped_in_silence(tmp_path, record):
    write(tmp_path, record(), name=".a.json.123.tmp")
    write(tmp_path, record(), name=".hidden.json")
    write(tmp_path, record(), name="notes.txt")
    lines = []
    assert records.load(tmp_path, warn=lines.append) == []
    assert lines == []


@pytest.mark.parametrize("content", ["{", "", "[]", '{"schema": 1}'])
def test_an_unreadable_file_costs_one_warning_and_nothing_else(tmp_path, record, content):
    good = record()
    path = write(tmp_path, good).with_name("bad.json")
    path.write_text(content)
    lines = []
    assert records.load(tmp_path, warn=lines.append) == [good]
    assert len(lines) == 1
    assert "bad.json" in lines[0]


def test_a_record_of_a_newer_schema_is_refused_in_one_line(tmp_path, record):
    write(tmp_path, record() | {"schema": 2})
    with pytest.raises(InputError, match=r"schema 2, but this version reads up to 1; upgrade"):
        records.load(tmp_path)


def test_a_missing_folder_is_an_error_and_an_empty_one_is_not(tmp_path):
    assert records.load(tmp_path) == []
    with pytest.raises(InputError, match="no results folder"):
        records.load(tmp_path / "nowhere")


def test_an_ok_record_wins_over_a_newer_failure_and_the_newest_ok_over_an_older(record):
    old = record(mse=0.4, finished_at="2026-01-01", device_name="a")
    new = record(mse=0.5, finished_at="2026-01-02", device_name="b")
    failure = record(mse=None, status="failed", finished_at="2026-01-03", device_name="c")
    assert records.newest([new, failure, old]) == [new]
    assert records.newest([failure]) == [failure]


def test_an_expected_cell_without_a_record_becomes_missing(record):
    done, planned = record(seed=0), record(seed=1)
    expected = [one["cell"] | {"key": one["key"], "label": "full"} for one in (done, planned)]
    found = records.with_missing([done], expected)
    assert [one["status"] for one in found] == ["ok", "missing"]
    assert found[1]["cell"] == planned["cell"] | {"label": "full"}


def test_every_historic_record_loads_and_renders():
    found = records.load(HISTORIC)
    files = list(HISTORIC.glob("runs/*/*.json"))
    assert len(found) == len(files) > 0
    assert "0.4123" in table.render(found)


def test_ten_thousand_records_load_and_render_in_seconds(tmp_path, record):
    names = ["ETTh1", "ETTh2", "ETTm1", "ETTm2", "Weather", "Exchange"]
    made = (
        record(data=data, strategy="sff", fields={"alpha": alpha}, seed=seed, model=f"m{model}:x")
        for data in names
        for alpha in range(42)
        for seed in range(5)
        for model in range(8)
    )
    for one in made:
        write(tmp_path, one)
    start = time.process_time()
    found = records.load(tmp_path)
    loaded = time.process_time()
    text = table.render(found)
    assert len(found) == 10_080
    assert text.count("m7:x") >= 42
    assert loaded - start < 3  # processor seconds: the machine may be busy
    assert time.process_time() - loaded < 3
