"""Data sets: catalog, fetch with checksums, splits and scaling, windows, synthetic twins.

    dataset = sffbench.data.load("ETTh1", root)         # -> Dataset
    sffbench.data.names()                               # every data set in the catalog
    sffbench.data.get("etth1")                          # -> its catalog Entry

Names resolve at first use, so that `import sffbench.data.catalog` (what `list` and `table` need)
loads neither torch nor pandas.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sffbench.data.catalog import Entry, get, names, register
    from sffbench.data.dataset import Dataset, content_hash, load

__all__ = ["Dataset", "Entry", "content_hash", "get", "load", "names", "register"]

_HOMES = {
    "Entry": "catalog",
    "get": "catalog",
    "names": "catalog",
    "register": "catalog",
    "Dataset": "dataset",
    "content_hash": "dataset",
    "load": "dataset",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
