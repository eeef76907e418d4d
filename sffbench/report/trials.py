"""Trials of a search become one record a seed: validation picks, and the cost of all is counted.

    folded = fold(records)       # records without a search pass unchanged

The chosen trial is the one with the lowest error on all validation windows; its test error stands
for the search. A failed trial is a trial. A search that lacks a trial is `missing`: the best of
fewer would be compared with the best of more.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from sffbench.report import identity
from sffbench.report.records import Record, is_ok, preferred

__all__ = ["fold", "fold_by_device"]

SUMS = (
    *("prepare_s", "prepare_cpu_s", "train_s", "train_cpu_s", "validate_s", "warm_up_s"),
    *("train_windows", "warm_up_windows", "num_steps"),
)
PEAKS = ("peak_memory_bytes", "train_peak_memory_bytes")


def fold(records: Iterable[Record]) -> list[Record]:
    """`records` with every search replaced by one record, at the place of its first trial.

    The record is the chosen trial's, with the searched strategy as its strategy, no learning rate
    of its own, `cost` of all trials, and a `search` that says which was chosen and which failed.
    """
    groups: dict[Hashable, list[Record]] = {}
    for number, record in enumerate(records):
        search = record["cell"].get("search")
        groups.setdefault(_group(record["cell"]) if search else number, []).append(record)
    return [
        _folded(group) if "search" in group[0]["cell"] else group[0] for group in groups.values()
    ]


def fold_by_device(records: Iterable[Record]) -> list[Record]:
    """The same device by device: what one machine spent is never added to another's."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(identity.device(record), []).append(record)
    return [folded for group in groups.values() for folded in fold(group)]


def _group(cell: Mapping[str, Any]) -> str:
    """Everything in a trial's key but what the trials of one search differ in."""
    own = {"strategy", "lr", "search", "label"}
    return identity.canonical([_search(cell), {k: v for k, v in cell.items() if k not in own}])


def _search(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in cell["search"].items() if name != "trial"}


def _folded(group: Sequence[Record]) -> Record:
    trials = _by_number(group)
    first, count = trials[0], trials[0]["cell"]["search"]["trials"]
    ran = [trial for trial in trials if trial["status"] != "missing"]
    if len(ran) < count:
        return _outcome(first, "missing", f"{len(ran)} of {count} trials have run")
    scored = [trial for trial in ran if is_ok(trial) and _validation(trial) is not None]
    failed = [_failure(trial) for trial in ran if trial not in scored]
    if not scored:
        outcome = "n/a" if all(trial["status"] == "n/a" for trial in ran) else "failed"
        return _outcome(first, outcome, "; ".join(dict.fromkeys(failed)))
    best = min(scored, key=lambda trial: (_validation(trial), _number(trial)))
    chosen = {"trial": _number(best), "point": _point(best), "failed": failed}
    return best | _names(best) | {"cost": _cost(best, ran), "search": chosen}


def _by_number(group: Sequence[Record]) -> list[Record]:
    by_number: dict[int, list[Record]] = {}
    for record in group:
        by_number.setdefault(_number(record), []).append(record)
    return [preferred(by_number[number]) for number in sorted(by_number)]


def _number(trial: Record) -> int:
    return int(trial["cell"]["search"]["trial"])


def _point(trial: Record) -> dict[str, Any]:
    return dict(trial["cell"]["search"]["points"][_number(trial) - 1])


def _validation(trial: Record) -> float | None:
    value = (trial.get("validation") or {}).get("mse")
    return None if value is None else float(value)


def _failure(trial: Record) -> str:
    return f"trial {_number(trial)}: {trial.get('reason') or 'no validation error'}"


def _names(trial: Record) -> Record:
    """Cell and label of the search, in place of one trial's."""
    cell, search = trial["cell"], _search(trial["cell"])
    return {
        "cell": cell | {"strategy": search["of"], "lr": None, "search": search},
        "label": f"{identity.label(trial)} (best of {search['trials']})",
    }


def _outcome(trial: Record, status: str, reason: str) -> Record:
    kept = {name: trial[name] for name in ("schema", "key", "flags") if name in trial}
    return kept | {"status": status, "reason": reason} | _names(trial)


def _cost(best: Record, trials: Sequence[Record]) -> dict[str, Any]:
    """Sums over the trials and their largest peaks; rates and test are the chosen one's."""
    costs = [trial.get("cost") or {} for trial in trials]

    def known(name: str) -> list[float]:
        return [cost[name] for cost in costs if cost.get(name) is not None]

    total = dict(best.get("cost") or {})
    total |= {name: sum(known(name)) for name in SUMS if known(name)}
    total |= {name: max(known(name)) for name in PEAKS if known(name)}
    return total
