"""The comparison of two strategies as text and as JSON, with the one sentence it permits.

print(render(records, "sff", "full"))
print(render(records, "sff", "full", as_json=True))
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from sffbench.report import stats
from sffbench.report.comparison import Comparison, Pair, compare
from sffbench.report.exports import effect_json
from sffbench.report.markdown import error_text, pipe_table
from sffbench.report.notes import summary_rules
from sffbench.report.records import Record

__all__ = ["SCHEMA", "claim", "render"]

SCHEMA = 1
"""Version of the JSON layout; raised with every incompatible change."""

MAX_LEFT_OUT = 12


def render(records: Iterable[Record], a: str, b: str, *, as_json: bool = False) -> str:
    """What `compare a b` prints; see `comparison.compare` for what it refuses."""
    found = compare(records, a, b)
    if not as_json:
        return "\n".join(_text(one) for one in found)
    document = {"schema": SCHEMA, "comparisons": [_json(one) for one in found]}
    return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def claim(found: Comparison) -> str:
    """One sentence: what the records show of `a` against `b`, and where that ends."""
    models, clusters = found.distinct("model"), found.distinct("cluster")
    scope = ", ".join(models)
    limits, hints = found.effect.limits, _hints(found)
    opening = f"A hint, no claim ({'; '.join(hints)}): on" if hints else "On"
    if limits is None:
        verdict = "too few clusters give no interval, so that nothing is shown beyond these cells"
    elif limits[0] <= 0 <= limits[1]:
        verdict = "neither is shown to have the lower error, nor are they shown to be equal"
    else:
        side = "lower" if limits[1] < 0 else "higher"
        verdict = f"{found.a} has a {side} error than {found.b}"
    only = "this checkpoint alone" if len(models) == 1 else "these checkpoints"
    return (
        f"{opening} {scope} ({only}) and the data clusters {', '.join(clusters)}, {verdict}; "
        "nothing is said of other checkpoints, data, horizons or budgets."
    )


def _hints(found: Comparison) -> list[str]:
    """Why no claim can be made at all."""
    reasons = {row.unranked for row in found.rows} - {None}
    flags = {flag for row in found.rows for flag in row.flagged} & {"synthetic", "tiny"}
    if len({row.trials for row in found.rows if row.tunable}) > 1:
        reasons.add("unequal numbers of trials")
    words = {"synthetic": "synthetic data", "tiny": "tiny presets"}
    return sorted(str(reason) for reason in reasons) + sorted(words[flag] for flag in flags)


def _text(found: Comparison) -> str:
    lines = [f"### {found.a} against {found.b}: {summary_rules(found.boards)}", ""]
    lines += [*_facts(found), "", _cells(found), ""]
    return "\n".join([*lines, claim(found)]) + "\n"


def _facts(found: Comparison) -> Iterator[str]:
    effect, clusters = found.effect, found.distinct("cluster")
    families = found.distinct("family")
    how = f"{len(clusters)} data clusters ({', '.join(clusters)})"
    if len(families) > 1:
        how = f"{len(families)} models and {how}, clustered both ways"
    ratio = f"{1 + effect.percent / 100:.4f}, {effect.percent:+.2f}%"
    yield f"- Error of {found.a} / error of {found.b}, geometric mean: {ratio}"
    yield f"- 95 % t interval over {how}: {_limits(effect.limits)}"
    seeds = found.over_seeds
    yield (
        f"- over {seeds.df + 1} seeds, these data held fixed: {_limits(_percents(seeds))}"
        if seeds
        else "- over seeds: none, for fewer than two seeds are in every cell"
    )
    unknown = found.count(None)
    yield (
        f"- {len(found.pairs)} cells: {found.count('won')} won, {found.count('tied')} tied, "
        f"{found.count('lost')} lost by more than the sum of both deviations over seeds"
        + (f"; {unknown} with too few seeds to tell" if unknown else "")
    )
    yield from _left_out(found)


def _left_out(found: Comparison) -> Iterator[str]:
    if not found.left_out:
        yield "- left out: nothing"
    lines = Counter(f"{one.model} {one.data} H={one.horizon}: {one.why}" for one in found.left_out)
    yield from (f"- left out: {line}" for line in list(lines)[:MAX_LEFT_OUT])
    if len(lines) > MAX_LEFT_OUT:
        yield f"- left out: {len(lines) - MAX_LEFT_OUT} more; `--json` lists all"


def _percents(interval: stats.Interval) -> tuple[float, float] | None:
    if interval.low is None or interval.high is None:
        return None
    return stats.percent(interval.low), stats.percent(interval.high)


def _limits(limits: tuple[float, float] | None) -> str:
    return f"[{limits[0]:+.2f}, {limits[1]:+.2f}] %" if limits else "none: one cluster"


def _cells(found: Comparison) -> str:
    headers = ["model", "data", "H", found.a, found.b, "change", "outcome", "seeds"]
    body = [_cell(pair) for pair in found.pairs]
    return pipe_table(headers, body, ["left", "left", *["right"] * 4, "left", "right"])


def _cell(pair: Pair) -> list[str]:
    means = [error_text(stats.mean(errors.values())) for errors in (pair.ours, pair.theirs)]
    change = f"{stats.percent(pair.log_ratio):+.2f}%"
    outcome = pair.outcome or "unknown"
    return [pair.model, pair.data, str(pair.horizon), *means, change, outcome, str(len(pair.ours))]


def _json(found: Comparison) -> dict[str, Any]:
    board, seeds = found.boards[0], found.over_seeds
    limits = _percents(seeds) if seeds else None
    return {
        "a": found.a,
        "b": found.b,
        "rules": summary_rules(found.boards),
        "protocol": board.protocol,
        "source": board.source,
        "precision": board.precision,
        "models": found.distinct("model"),
        "clusters": found.distinct("cluster"),
        "horizons": sorted({pair.horizon for pair in found.pairs}),
        "effect": effect_json(found.effect),
        "over_seeds": seeds and {"num_seeds": seeds.df + 1, "percent_limits": limits},
        "won": found.count("won"),
        "tied": found.count("tied"),
        "lost": found.count("lost"),
        "unknown": found.count(None),
        "cells": [_json_cell(pair) for pair in found.pairs],
        "left_out": [vars(one) for one in found.left_out],
        "hints": _hints(found),
        "claim": claim(found),
    }


def _json_cell(pair: Pair) -> dict[str, Any]:
    return {
        "model": pair.model,
        "data": pair.data,
        "cluster": pair.cluster,
        "horizon": pair.horizon,
        "a": {str(seed): error for seed, error in pair.ours.items()},
        "b": {str(seed): error for seed, error in pair.theirs.items()},
        "log_ratio": pair.log_ratio,
        "outcome": pair.outcome,
    }
