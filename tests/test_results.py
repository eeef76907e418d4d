"""Published results: their tables are what their records say, and their cells can be run again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sffbench import report
from sffbench.report.publish import quoted, source

ROOT = Path(__file__).parent.parent
PUBLISHED = sorted(path.parent for path in ROOT.glob("results/*/SOURCE.json"))


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_a_published_table_is_what_its_records_say(folder):
    records = report.load(folder)
    table = report.render(records)
    assert (folder / "table.md").read_text(encoding="utf-8") == table
    stated = json.loads((folder / "SOURCE.json").read_text())
    suite = stated["command"].removeprefix("sffbench run ")
    assert stated == source(records, suite, table)


def test_the_readme_quotes_the_published_table():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = (ROOT / "results" / "ttm-r2" / "table.md").read_text(encoding="utf-8")
    assert quoted(text, "ttm-r2", table) == text


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_every_published_key_is_still_the_key_of_its_cell(folder):
    """Strategies that get new fields must not orphan the records that they already have."""
    from sffbench import strategies
    from sffbench.suite import digest

    records = report.load(folder)
    assert records
    for record in records:
        known = record["cell"]["strategy"]
        today = strategies.identity(strategies.get(known["name"], **known["fields"]))
        assert today == known
        assert digest(record["cell"] | {"strategy": today}) == record["key"]


@pytest.mark.parametrize("label", ["last-value", "zero-shot", "linear-probe"])
def test_a_published_cell_can_be_run_again(label, real_data, checkpoints, monkeypatch):
    """Exchange, the smallest set: the same key, and the same error to rounding."""
    import torch

    from sffbench import cells, runner, suite

    specs = cells.expand(suite.load("ttm-r2"), suite.Places(data=str(real_data)))
    spec = next(s for s in specs if s.label == label and s.cell["data"]["name"] == "Exchange")
    published = report.find(report.load(ROOT / "results" / "ttm-r2"), spec.key)
    again = runner.run(spec, torch.device("cpu"))
    assert again["status"] == "ok"
    # Matrix products differ in the last digits between processors; training amplifies that.
    assert again["metrics"]["mse"] == pytest.approx(published["metrics"]["mse"], rel=2e-3)
    assert again["metrics"]["num_windows"] == published["metrics"]["num_windows"]
