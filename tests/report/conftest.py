"""Fabricated records: the shape that the runner writes, with numbers that a test chooses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CLUSTERS = {
    "ETTh1": "ett1",
    "ETTm1": "ett1",
    "ETTh2": "ett2",
    "ETTm2": "ett2",
    "Weather": "weather",
    "Exchange": "exchange",
}
STANDARD = {"name": "standard", "version": 1, "ranked": True, "max_steps": 300, "batch_size": 256}
QUICK = STANDARD | {"name": "quick", "ranked": False, "max_steps": 60, "num_test": 512}
NAIVE = ("last-value", "seasonal-naive")

Record = dict[str, Any]


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]


def fabricate(
    *,
    data: str = "ETTh1",
    strategy: str = "full",
    seed: int = 0,
    mse: float | None = 0.4,
    model: str = "ttm:r2-512-96",
    label: str | None = None,
    fields: dict[str, Any] | None = None,
    status: str = "ok",
    reason: str | None = None,
    source: str = "real",
    horizon: int = 96,
    protocol: dict[str, Any] | None = None,
    device_name: str = "Some(R) CPU",
    lr: float | None = 1e-4,
    finished_at: str = "2026-01-01T00:00:00+00:00",
    device: str = "cuda",
    train_windows_per_s: float | None = 1000.0,
    peak_memory_bytes: int | None = 512 * 2**20,
    leaked: str = "no",
    unrolled: bool = False,
) -> Record:
    """One record; `mse=None` makes it a run without metrics."""
    name, _, preset = model.partition(":")
    trains = strategy not in (*NAIVE, "zero-shot", "smoothed-zero-shot")
    if strategy in NAIVE:
        name, preset = "none", "none"
    cell = {
        "model": {
            "name": name,
            "preset": preset,
            "config": digest([name, preset, "config"]),
            "weights": digest([name, preset, "weights"]),
            "options": {},
        },
        "data": {"name": data, "source": source, "sha256": digest([data, source])},
        "task": {"name": "forecast", "horizon": horizon},
        "lookback": 1 if name == "none" else 512,
        "strategy": {"name": strategy, "version": 1, "fields": fields or {}, "plugin": None},
        "lr": lr if trains else None,
        "protocol": protocol or STANDARD,
        "precision": "float32",
        "seed": seed,
    }
    record = {
        "schema": 1,
        "status": status,
        "reason": reason,
        "key": digest(cell),
        "performance_key": digest([cell, device_name]),
        "label": label or strategy,
        "cell": cell,
        "metrics": {},
        "validation": {},
        "curve": [],
        "cost": {"peak_memory_bytes": peak_memory_bytes},
        "environment": {"device": device, "device_name": device_name, "threads": 1},
        "warnings": [],
        "flags": {
            "synthetic": source == "synthetic",
            "tiny": preset == "tiny",
            "unrolled": unrolled,
            "leaked": leaked,
            "cluster": CLUSTERS.get(data, data.lower()),
        },
        "started_at": finished_at,
        "finished_at": finished_at,
    }
    if mse is not None:
        record |= _measured(mse, trains, train_windows_per_s, peak_memory_bytes)
    return record


def _measured(mse: float, trains: bool, rate: float | None, peak: int | None) -> Record:
    cost = {"test_windows_per_s": 5000.0, "test_s": 2.0, "peak_memory_bytes": peak}
    if not trains:
        return {"metrics": _metrics(mse), "cost": cost}
    return {
        "metrics": _metrics(mse),
        "validation": {
            "selected_step": 150,
            "mse": 0.5,
            "candidates": [{"step": 150, "mse": 0.5}, {"step": 200, "mse": 0.6}],
        },
        "curve": [
            {"step": 0, "train_loss": None, "validation_mse": 0.7},
            {"step": 150, "train_loss": 0.31, "validation_mse": 0.5},
        ],
        "cost": cost
        | {"train_windows": 76800, "train_windows_per_s": rate}
        | {"train_windows_per_cpu_s": rate and 2 * rate},
    }


def _metrics(mse: float) -> Record:
    return {
        "mse": mse,
        "mae": mse / 2,
        "mase": mse * 2,
        "num_windows": 19495,
        "num_starts": 2785,
        "mse_per_channel": [mse, mse],
    }


@pytest.fixture
def record() -> Callable[..., Record]:
    """The fabricator of one record."""
    return fabricate


@pytest.fixture
def quick() -> Record:
    """A protocol that ranks nothing."""
    return QUICK


@pytest.fixture
def standard() -> Record:
    """A protocol that ranks."""
    return STANDARD


@pytest.fixture
def seeds() -> Callable[..., list[Record]]:
    """Records of one cell, one for each error given, seeds counted from 0."""

    def make(*errors: float, **rest: Any) -> list[Record]:
        return [fabricate(mse=mse, seed=seed, **rest) for seed, mse in enumerate(errors)]

    return make


@pytest.fixture
def docs_columns() -> str:
    """The page that explains every column."""
    path = Path(__file__).parent.parent.parent / "docs" / "columns.md"
    return path.read_text(encoding="utf-8")
