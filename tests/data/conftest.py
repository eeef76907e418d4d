"""A catalog of its own for each test, and small CSV files in the Autoformer layout."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sffbench.data import catalog
from sffbench.data.catalog import Entry


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Entry]:
    """toy(**fields): register the data set Toy (toy.csv, hourly) for the length of one test."""
    monkeypatch.setattr(catalog, "_ENTRIES", dict(catalog._ENTRIES))

    def register(**fields: object) -> Entry:
        defaults = {
            "name": "Toy",
            "file": "toy.csv",
            "frequency": "h",
            "season": 24,
            "cluster": "toy",
        }
        return catalog.register(Entry(**(defaults | fields)))

    return register


@pytest.fixture
def toy_frame() -> pd.DataFrame:
    """100 hourly rows of three channels."""
    values = np.random.default_rng(0).normal(size=(100, 3)) * (1, 10, 100) + (0, 5, -5)
    frame = pd.DataFrame(values, columns=["a", "b", "OT"])
    frame.insert(0, "date", pd.date_range("2020-01-01", periods=100, freq="h").astype(str))
    return frame


@pytest.fixture
def toy_folder(tmp_path: Path, toy_frame: pd.DataFrame) -> Path:
    """A folder that holds toy.csv."""
    toy_frame.to_csv(tmp_path / "toy.csv", index=False)
    return tmp_path
