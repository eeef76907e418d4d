"""What `sffbench list` prints: one flat row for each registered thing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]


def rows(kind: str) -> list[Row]:
    """Rows of one registry: models, datasets, strategies, protocols or suites."""
    tables: dict[str, Callable[[], list[Row]]] = {
        "models": _models,
        "datasets": _datasets,
        "strategies": _strategies,
        "protocols": _protocols,
        "suites": _suites,
    }
    return tables[kind]()


def text(table: list[Row]) -> str:
    """Rows as a plain table."""
    from tabulate import tabulate

    shown = [{key: _short(value) for key, value in row.items()} for row in table]
    return tabulate(shown, headers="keys", tablefmt="simple", disable_numparse=True)


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(str(item) for item in value)
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items()) or "-"
    return "-" if value is None else str(value)


def _models() -> list[Row]:
    from sffbench import models

    return [
        {
            "model": f"{name}:{preset_name}",
            "parameters": preset.num_parameters,
            "lookback": preset.lookback,
            "horizon": preset.horizon,
            "lr": preset.lr,
            "capabilities": sorted(models.get(name).capabilities),
            "licence": preset.licence,
            "hub": preset.hub,
        }
        for name in models.names()
        for preset_name, preset in models.get(name).presets.items()
    ]


def _datasets() -> list[Row]:
    from sffbench.data import catalog

    entries = [catalog.get(name) for name in catalog.names()]
    return [
        {
            "data set": entry.name,
            "file": entry.file,
            "rows": entry.num_rows,
            "channels": entry.num_channels,
            "frequency": entry.frequency,
            "season": entry.season,
            "cluster": entry.cluster,
            "licence": entry.licence,
            "url": entry.url,
        }
        for entry in entries
    ]


def _strategies() -> list[Row]:
    from sffbench import strategies

    result = []
    for name in strategies.names():
        cls = strategies.strategy_class(name)
        fields = {key: field.default for key, field in cls.model_fields.items()}
        summary = (cls.__doc__ or "").strip().splitlines()[0]
        result.append({"strategy": name, "version": cls.version, "fields": fields, "what": summary})
    return result


def _protocols() -> list[Row]:
    from sffbench import protocol

    return [
        {"protocol": name}
        | {key: value for key, value in protocol.get(name).model_dump().items() if key != "name"}
        for name in protocol.names()
    ]


def _suites() -> list[Row]:
    from sffbench import suite

    loaded = [suite.load(name) for name in suite.names()]
    return [
        {
            "suite": s.name,
            "protocol": s.protocol,
            "data": s.data,
            "models": [model.name for model in s.models],
            "datasets": list(s.datasets),
            "seeds": list(s.seeds),
        }
        for s in loaded
    ]
