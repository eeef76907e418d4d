"""The tutorial works as printed: its files are written, its commands run, its claims checked."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parent.parent / "docs"
TUTORIAL = (DOCS / "adding-a-strategy.md").read_text(encoding="utf-8")
MAX_LINES = 40


def printed(marker: str) -> str:
    """The code block after `<!-- marker -->`."""
    found = re.search(rf"<!-- {re.escape(marker)} -->\n```\w*\n(.*?)```", TUTORIAL, re.DOTALL)
    assert found is not None, f"the tutorial lost its block {marker!r}"
    return found[1]


def sffbench(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from sffbench.cli import main; main()", *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def errors(folder: Path) -> dict[str, float]:
    rows = csv.DictReader(
        io.StringIO(sffbench(folder, "table", "--results", "out", "--format", "csv"))
    )
    return {row["label"]: float(row["mse"]) for row in rows}


@pytest.fixture(scope="module")
def after_tutorial(tmp_path_factory):
    """A folder in which a reader has done what the page says."""
    folder = tmp_path_factory.mktemp("tutorial")
    for name in ("anchored.py", "anchored.toml"):
        (folder / name).write_text(printed(f"file: {name}"), encoding="utf-8")
    outputs = [sffbench(folder, *line.split()[1:]) for line in printed("run").splitlines()]
    return folder, outputs


def test_the_example_is_shorter_than_forty_lines():
    assert len(printed("file: anchored.py").splitlines()) < MAX_LINES


def test_the_tutorial_ends_in_a_table_with_its_strategy(after_tutorial):
    _, (checked, summary, table) = after_tutorial
    assert "nothing failed" in checked
    assert "4 cells: 4 ok; 4 ran now." in summary
    assert "anchored, off" in table


def test_the_example_without_its_extras_is_full_and_with_them_is_not(after_tutorial):
    folder, _ = after_tutorial
    mse = errors(folder)
    assert mse["anchored, off"] == mse["full"]
    assert len({mse["full"], mse["anchored"], mse["zero-shot"]}) == 3


def test_an_edited_plugin_is_run_again_and_nothing_else_is(after_tutorial):
    folder, _ = after_tutorial
    plugin = folder / "anchored.py"
    plugin.write_text(plugin.read_text() + "\n# another thought\n", encoding="utf-8")
    command = "run anchored.toml --plugin anchored.py --results out"
    assert "2 ran now." in sffbench(folder, *command.split())
    assert "0 ran now." in sffbench(folder, *command.split())


def test_every_field_of_a_record_is_described(after_tutorial):
    folder, _ = after_tutorial
    described = (DOCS / "json.md").read_text(encoding="utf-8")
    for path in (folder / "out" / "runs").glob("*/*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        del record["cell"]["protocol"], record["cell"]["strategy"]["fields"]
        absent = [
            name for name in names_in(record) if not re.search(rf"[`\"]{name}[`\"]", described)
        ]
        assert absent == []


def names_in(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*(names_in(item) for item in value.values()))
    return set().union(*(names_in(item) for item in value)) if isinstance(value, list) else set()


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_stands_in_the_index():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index, page.name


def test_the_models_page_prints_every_preset_with_its_numbers():
    from sffbench import listing

    page = (DOCS / "models.md").read_text(encoding="utf-8")
    for row in listing.rows("models"):
        shown = (f"`{row['model']}`", f"{row['parameters']:,}", row["lookback"], row["horizon"])
        assert f"| {' | '.join(map(str, shown))} | {row['licence']} |" in page, row["model"]


@pytest.mark.parametrize(
    "name", ["quick", "standard", "full-shot", "sff-paper", "speed", "speed-gpu"]
)
def test_the_rules_page_prints_the_numbers_of_the_protocols(name):
    from sffbench import protocol

    rules = (DOCS / "rules.md").read_text(encoding="utf-8")
    header = next(line for line in rules.splitlines() if line.startswith("| field"))
    column = [cell.strip(" `") for cell in header.split("|")].index(name)
    printed_values = {
        cells[1].strip(" `"): cells[column].strip(" `")
        for line in rules.splitlines()
        if len(cells := line.split("|")) > column
    }
    for key, value in protocol.get(name).model_dump().items():
        if key != "name":
            assert printed_values[key] == str(value).lower(), key
