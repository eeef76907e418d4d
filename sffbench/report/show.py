"""One run, readable: what it was, what came out, how it got there, what it cost, where it ran.

print(show(records, "3f2a"))       # a prefix of KEY or KEY/PERFORMANCE_KEY
find(records, "3f2a")              # the record itself, for `--json`
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sffbench.errors import InputError
from sffbench.report import identity
from sffbench.report.records import Record, preferred

__all__ = ["find", "show"]

MAX_LISTED = 4
LABEL_WIDTH = 12


def find(records: Sequence[Record], prefix: str) -> Record:
    """The record whose `key` (or `key/performance_key`) starts with `prefix`.

    Of several performance records of one accuracy key, the newest ok one.

    Raises:
        InputError: no key or several keys match; the line names the nearest.
    """
    found = [record for record in records if _address(record).startswith(prefix)]
    keys = sorted({record["key"] for record in found})
    if len(keys) == 1:
        return preferred(found)
    if not keys:
        raise _no_match(records, prefix)
    raise InputError(f"run {prefix!r} is ambiguous, {len(keys)} match: {_listed(found)}")


def _address(record: Record) -> str:
    return f"{record['key']}/{record.get('performance_key') or ''}"


def _no_match(records: Sequence[Record], prefix: str) -> InputError:
    if not records:
        return InputError(f"no run {prefix!r}: the results folder holds no records")
    lengths = {id(record): _shared(_address(record), prefix) for record in records}
    longest = max(lengths.values())
    nearest = [record for record in records if lengths[id(record)] == longest]
    return InputError(f"no run {prefix!r}; nearest: {_listed(nearest)}")


def _shared(left: str, right: str) -> int:
    """Length of the common prefix."""
    pairs = zip(left, right, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def _listed(records: Sequence[Record]) -> str:
    by_key = {record["key"]: record for record in records}
    lines = [f"{key[:12]} ({summary(by_key[key])})" for key in sorted(by_key)[:MAX_LISTED]]
    more = f" and {len(by_key) - MAX_LISTED} more" if len(by_key) > MAX_LISTED else ""
    return ", ".join(lines) + more


def summary(record: Record) -> str:
    """The run in one phrase: model, strategy, data set, horizon, seed."""
    cell = record["cell"]
    model = identity.model_name(cell["model"])
    horizon = cell["task"].get("horizon")
    return (
        f"{model} {identity.label(record)} {cell['data']['name']} H={horizon} seed {cell['seed']}"
    )


def show(records: Sequence[Record], prefix: str) -> str:
    """The run as text; see `find` for how it is looked up."""
    record = find(records, prefix)
    sections = [
        _identity(record),
        _results(record),
        _curve(record),
        _pairs("cost", record.get("cost")),
        _pairs("environment", record.get("environment")),
    ]
    return "\n\n".join("\n".join(lines) for lines in map(list, sections) if lines) + "\n"


def _line(label: str, text: Any) -> str:
    return f"{label:<{LABEL_WIDTH}} {text}"


def _fields(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_value(value)}" for name, value in values.items())


def _value(value: Any) -> str:
    """Floats to six digits, digests to twelve (`--json` has all), whole numbers in full."""
    if isinstance(value, dict):
        return f"{{{_fields(value)}}}"
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{40,}", value):
        return f"{value[:12]}..."
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _identity(record: Record) -> Iterator[str]:
    cell = record["cell"]
    model, data, strategy = cell["model"], cell["data"], cell["strategy"]
    reason = f": {record['reason']}" if record.get("reason") else ""
    yield _line("run", record["key"])
    if record.get("performance_key"):
        yield _line("performance", record["performance_key"])
    yield _line("status", f"{record['status']}{reason}")
    yield _line("model", f"{identity.model_name(model)} {_rest(model)}".rstrip())
    yield _line("data", f"{data['name']} {_rest(data)}")
    yield _line("task", f"{_fields(cell['task'])}, lookback={cell.get('lookback')}")
    yield _line(
        "strategy", f"{strategy['name']} {_rest(strategy)} labelled {identity.label(record)!r}"
    )
    if search := cell.get("search"):
        point = search["points"][search["trial"] - 1]
        yield _line("trial", f"{search['trial']} of {search['trials']}: {_fields(point)}")
    yield _line("protocol", _fields(_set(cell["protocol"])))
    yield _line("seed", f"{cell['seed']}, lr={cell.get('lr')}, {cell.get('precision', 'float32')}")
    yield _line("flags", " ".join(f"[{flag}]" for flag in sorted(identity.flags(record))) or "none")
    for warning in record.get("warnings") or ():
        yield _line("warning", warning)
    yield _line("time", f"{record.get('started_at')} to {record.get('finished_at')}")


def _set(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _rest(part: Mapping[str, Any]) -> str:
    """Everything in a part of the cell beside its names, in brackets."""
    named = {"name", "preset"}
    return f"({_fields({name: value for name, value in _set(part).items() if name not in named})})"


def _results(record: Record) -> Iterator[str]:
    metrics = record.get("metrics") or {}
    single = {name: value for name, value in metrics.items() if not isinstance(value, list | dict)}
    if single:
        yield _line("test", _fields(single))
    for name, value in metrics.items():
        if isinstance(value, list):
            yield _line(name, " ".join(_value(item) for item in value))
        elif isinstance(value, dict):
            yield _line(name, _fields(value))
    validation = record.get("validation") or {}
    if validation:
        chosen, mse = validation.get("selected_step"), validation.get("mse")
        how = "on validation only" if mse is not None else "nothing was validated"
        yield _line("selected", f"step {chosen}, {how}")
        if mse is not None:
            yield _line("validation", f"mse={_value(mse)}")
    for candidate in validation.get("candidates") or ():
        yield _line("candidate", _fields(candidate))


def _curve(record: Record) -> list[str]:
    curve = record.get("curve") or []
    if not curve:
        return []
    selected = (record.get("validation") or {}).get("selected_step")
    lines = [f"{'step':>8}  {'train loss':>12}  {'validation mse':>14}"]
    for point in curve:
        loss, error = _or_blank(point.get("train_loss")), _or_blank(point.get("validation_mse"))
        mark = "  <- selected" if point.get("step") == selected else ""
        lines.append(f"{point.get('step')!s:>8}  {loss:>12}  {error:>14}{mark}")
    return lines


def _or_blank(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _pairs(title: str, values: Mapping[str, Any] | None) -> list[str]:
    if not values:
        return []
    width = max(map(len, values))
    return [title, *(f"  {name:<{width}}  {_value(value)}" for name, value in values.items())]
