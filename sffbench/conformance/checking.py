"""What `sffbench check` shows: the findings of every strategy of a file, as rows and as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tabulate import tabulate

from sffbench import strategies
from sffbench.conformance.rules import UNPROVEN, check


def findings(target: str, model: str, plugins: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """A row for every rule and strategy: strategy, rule, verdict, words.

    `target` is a file with strategies, or the name of one that is registered. Raises `InputError`
    where neither is there.
    """
    names = [target]
    for plugin in plugins:
        strategies.load_plugin(plugin)
    if target.endswith(".py") or Path(target).is_file():
        names = strategies.load_plugin(target)
        plugins = (*plugins, target)
    for name in names:
        strategies.strategy_class(name)
    return [
        {"strategy": name, "rule": one.rule, "verdict": one.verdict, "words": one.words}
        for name in names
        for one in check(name, model=model, plugins=plugins)
    ]


def text(rows: list[dict[str, Any]]) -> str:
    """The rows as a table, then what no check can show."""
    table = [[row["strategy"], row["rule"], row["verdict"], row["words"]] for row in rows]
    shown = tabulate(table, headers=["strategy", "rule", "verdict", "words"], maxcolwidths=72)
    limits = "\n".join(f"- {line}" for line in UNPROVEN)
    num_failed = sum(row["verdict"] == "failed" for row in rows)
    verdict = f"{num_failed} of {len(rows)} rules failed" if num_failed else "nothing failed"
    return f"{shown}\n\n{verdict}. What no check can show:\n{limits}"
