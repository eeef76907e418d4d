"""Publish a store: copy its records, print its table, and say where both come from.

    python -m sffbench.report.publish results/local results/ttm-r2 --suite ttm-r2

writes `runs/`, `table.md` and `SOURCE.json` (command, commits, devices, hashes of data and
weights), and puts the table between the markers `<!-- table:ttm-r2 -->` of README.md. A test
renders both again from the records and fails when they drift apart.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sffbench.errors import InputError
from sffbench.report.records import Record, load
from sffbench.report.table import render
from sffbench.store import write_json

__all__ = ["headline", "publish", "quoted", "source"]

_COSTS = ("train windows", "test windows", "peak", "device")


def publish(results: Path, target: Path, suite: str, readme: Path | None = None) -> None:
    """Fill `target` from the store `results`; with `readme`, renew the table quoted there."""
    for record_file in sorted((results / "runs").glob("*/*.json")):
        copy = target / "runs" / record_file.parent.name / record_file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(record_file, copy)
    records = load(target)
    table = render(records)
    (target / "table.md").write_text(table, encoding="utf-8")
    write_json(target / "SOURCE.json", source(records, suite, table))
    if readme is not None:
        readme.write_text(
            quoted(readme.read_text(encoding="utf-8"), suite, table), encoding="utf-8"
        )


def source(records: Iterable[Record], suite: str, table: str) -> dict[str, Any]:
    """Everything a stranger needs to make the table again."""
    records = list(records)
    data = {r["cell"]["data"]["name"]: r["cell"]["data"]["sha256"] for r in records}
    models = [r["cell"]["model"] for r in records if r["cell"]["model"]["name"] != "none"]
    weights = {f"{m['name']}:{m['preset']}": m["weights"] for m in models}
    environments = [r["environment"] for r in records]
    return {
        "command": f"sffbench run {suite}",
        "num_records": len(records),
        "commits": sorted({str(e["commit"]) for e in environments}),
        "dirty": any(e["dirty"] for e in environments),
        "devices": sorted({f"{e['device_name']} x{e['threads']}" for e in environments}),
        "torch": sorted({e["torch"] for e in environments}),
        "python": sorted({e["python"] for e in environments}),
        "data_sha256": dict(sorted(data.items())),
        "weights_sha256": dict(sorted(weights.items())),
        "table_sha256": hashlib.sha256(table.encode()).hexdigest(),
    }


def headline(table: str) -> str:
    """The first Markdown table of a rendered document, without costs: narrow enough to quote."""
    lines = table.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rest = lines[first:]
    length = next((n for n, line in enumerate(rest) if not line.startswith("|")), len(rest))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in rest[:length]]
    kept = [place for place, header in enumerate(cells[0]) if not header.startswith(_COSTS)]
    return "\n".join("| " + " | ".join(row[place] for place in kept) + " |" for row in cells)


def quoted(text: str, suite: str, table: str) -> str:
    """`text` with the table between this suite's markers replaced."""
    opening, closing = f"<!-- table:{suite} -->", f"<!-- /table:{suite} -->"
    pattern = re.compile(f"{re.escape(opening)}.*?{re.escape(closing)}", re.DOTALL)
    if not pattern.search(text):
        raise InputError(f"no {opening} ... {closing} to fill")
    return pattern.sub(lambda _: f"{opening}\n{headline(table)}\n{closing}", text)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--suite", required=True)
    parser.add_argument("--readme", type=Path)
    arguments = parser.parse_args()
    try:
        publish(arguments.results, arguments.target, arguments.suite, arguments.readme)
    except InputError as error:
        sys.exit(f"publish: {error}")


if __name__ == "__main__":
    main()
