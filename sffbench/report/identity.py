"""What makes two records comparable, and what makes them the same row: keys, names and order.

    board_key(record)   # records with different board keys never share a table
    row_key(record)     # records with equal row keys differ by data set and seed alone
    column_key(record)  # the data set, by name and by content

Rows are told apart by everything that is in a run's key, not by their label: two rows that would
read alike get the differing settings as a suffix (`distinguishing`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from sffbench.report.records import Record

__all__ = [
    "FLAGS",
    "board_key",
    "canonical",
    "cluster",
    "column_key",
    "columns_of",
    "data_order",
    "device",
    "device_name",
    "distinguishing",
    "flags",
    "label",
    "model_name",
    "model_unit",
    "named",
    "overlap_unknown",
    "row_key",
    "row_order",
    "settings",
    "strategy_key",
    "trains",
    "untrained",
]

DATA_ORDER = ("ETTh1", "ETTh2", "ETTm1", "ETTm2", "Weather", "Exchange")
STRATEGY_ORDER = (
    "zero-shot",
    "smoothed-zero-shot",
    "from-scratch",
    "linear-probe",
    "lp-ff",
    "lora",
    "full",
    "sff",
    "sam",
    "swa",
)
FLAGS = ("synthetic", "tiny", "untrained", "timed", "unrolled", "leaked")

# Protocol fields that a model's card or a strategy may set: they tell rows apart, not tables.
ROW_FIELDS = frozenset({"lr", "lookback"})


def canonical(value: Any) -> str:
    """One text per value, whatever the order of its keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def board_key(record: Record) -> tuple[str, ...]:
    """Task and horizon, resolved protocol (all but ROW_FIELDS), real or synthetic, precision."""
    cell = record["cell"]
    rules = {name: value for name, value in cell["protocol"].items() if name not in ROW_FIELDS}
    return (
        canonical(cell["task"]),
        canonical(rules),
        cell["data"].get("source", "real"),
        cell.get("precision", "float32"),
    )


def model_name(model: Mapping[str, Any]) -> str:
    """`name:preset`; `none` for the naive rows."""
    return "none" if model["name"] == "none" else f"{model['name']}:{model['preset']}"


def model_unit(record: Record) -> Hashable:
    """The checkpoint and its context: what a strategy and its baseline must share.

    Naive rows have neither; their lookback (one step, one season) belongs to the strategy.
    """
    model = record["cell"]["model"]
    if model["name"] == "none":
        return "none"
    identity = [model.get(part) for part in ("name", "preset", "config", "weights", "options")]
    return canonical([*identity, record["cell"].get("lookback")])


def strategy_key(record: Record) -> Hashable:
    """The strategy with its fields, version and source, and the search that set some of them.

    Equal keys may be pooled over models.
    """
    cell = record["cell"]
    return canonical([cell["strategy"], cell["search"]] if "search" in cell else cell["strategy"])


def row_key(record: Record) -> Hashable:
    """Model unit, strategy, learning rate, and the protocol fields that may differ by row."""
    cell = record["cell"]
    own = [cell.get("lr"), *(cell["protocol"].get(name) for name in sorted(ROW_FIELDS))]
    return model_unit(record), strategy_key(record), canonical(own)


def label(record: Record) -> str:
    """What a suite calls the strategy; it decides no result, so rows do not split by it."""
    text = record.get("label") or record["cell"].get("label")
    return str(text or record["cell"]["strategy"]["name"])


def cluster(record: Record) -> str | None:
    """The group of dependent data sets, from the catalog at the time of the run."""
    found = record["cell"]["data"].get("cluster") or (record.get("flags") or {}).get("cluster")
    return None if found is None else str(found)


def column_key(record: Record) -> tuple[str, str]:
    """(name, content hash) of the data set."""
    data = record["cell"]["data"]
    return data["name"], data.get("sha256") or ""


def _position(value: str, order: tuple[str, ...]) -> int:
    return order.index(value) if value in order else len(order)


def data_order(name: str) -> tuple[int, str]:
    """Sort key of columns: the six sets of the papers, then others by name."""
    return _position(name, DATA_ORDER), name


def row_order(record: Record) -> tuple[Any, ...]:
    """Sort key of rows: naive rows, then by model; in a model by STRATEGY_ORDER, then by label."""
    cell = record["cell"]
    model, strategy = cell["model"], cell["strategy"]["name"]
    naive = model["name"] == "none"
    order = _position(strategy, STRATEGY_ORDER)
    return not naive, model_name(model), order, label(record), row_key(record)


def settings(record: Record) -> dict[str, Any]:
    """Everything beside names that can tell two rows apart, flat: fields, lookback, lr, hashes."""
    cell = record["cell"]
    model, strategy, protocol = cell["model"], cell["strategy"], cell["protocol"]
    flat: dict[str, Any] = {
        "lr": cell.get("lr", protocol.get("lr")),
        **(model.get("options") or {}),
    }
    flat |= {} if model["name"] == "none" else {"lookback": cell.get("lookback")}
    flat |= {name: _short(model.get(name)) for name in ("weights", "config")}
    flat |= {"version": strategy.get("version"), "plugin": _short(strategy.get("plugin"))}
    if "search" in cell:
        flat["search"] = canonical(cell["search"]["points"])
    own = strategy.get("fields") or {}
    return flat | {name: value for name, value in own.items() if value is not None}


def _short(digest: Any) -> Any:
    return digest[:8] if isinstance(digest, str) else digest


def distinguishing(settings_of: list[dict[str, Any]], *, said_by_all: bool = True) -> list[str]:
    """For rows that share a model and a label, `name=value, ...` of the settings that differ.

    What is None is left out of it unless `said_by_all`.
    """
    names = dict.fromkeys(name for one in settings_of for name in one)
    differing = [
        name for name in names if len({canonical(one.get(name)) for one in settings_of}) > 1
    ]
    told = [{name: one.get(name) for name in differing} for one in settings_of]
    if not said_by_all:
        told = [{name: v for name, v in one.items() if v is not None} for one in told]
    return [named(one) for one in told]


def named(values: Mapping[str, Any]) -> str:
    """`name=value, ...`"""
    return ", ".join(f"{name}={value}" for name, value in values.items())


def device(record: Record) -> str:
    """`device_name xthreads`, the unit within which timings may be compared."""
    environment = record.get("environment") or {}
    name = environment.get("device_name") or environment.get("device") or "unknown device"
    return f"{name} x{environment.get('threads', '?')}"


def on_cpu(record: Record) -> bool:
    """Whether the run was timed on a processor rather than an accelerator."""
    return (record.get("environment") or {}).get("device") == "cpu"


def device_name(device: str) -> str:
    """A device without trademark signs and clock rate, for narrow columns."""
    plain = re.sub(r"\((?:R|TM)\)|\b(?:CPU|Processor)\b|@ ?[\d.]+ ?GHz", " ", device)
    return " ".join(plain.split())


def flags(record: Record) -> set[str]:
    """The warnings that a reader must see in the row."""
    cell, stored = record["cell"], record.get("flags") or {}
    raised = {name for name in FLAGS if stored.get(name) in (True, "yes")}
    if cell["data"].get("source") == "synthetic":
        raised.add("synthetic")
    if cell["model"].get("tiny") or cell["model"]["preset"] == "tiny":
        raised.add("tiny")
    if untrained(record):
        raised.add("untrained")
    if trains(record) and cell["protocol"].get("train_s") is not None:
        raised.add("timed")
    return raised


def trains(record: Record) -> bool:
    """Whether the strategy has training of its own; the rates of a search are its trials'."""
    cell = record["cell"]
    return cell.get("lr") is not None or "search" in cell


def untrained(record: Record) -> bool:
    """Whether the run started from random weights: it has a cost, and no accuracy to speak of."""
    return str(record["cell"]["model"].get("weights")).startswith("random:")


def overlap_unknown(record: Record) -> bool:
    """Whether nobody knows if pretraining saw this data set; neither clean nor leaked."""
    return bool((record.get("flags") or {}).get("leaked") == "unknown")


def columns_of(records: Iterable[Record]) -> list[tuple[str, str]]:
    """The distinct data sets of `records`, in table order."""
    keys = {column_key(record) for record in records}
    return sorted(keys, key=lambda key: (data_order(key[0]), key[1]))
