"""sffbench: how should a large time series model be fine-tuned?

Eight models, six data sets, any set of fine-tuning strategies, one protocol. The command line is
the usual way in (`sffbench run quick`, `sffbench table`); the modules below are the way in from
Python. They are imported on first use, so that `import sffbench` costs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "data", "models", "strategies"]

if TYPE_CHECKING:
    from sffbench import data as data
    from sffbench import models as models
    from sffbench import strategies as strategies


def __getattr__(name: str) -> Any:
    if name in {"data", "models", "strategies"}:
        return importlib.import_module(f"sffbench.{name}")
    raise AttributeError(f"module 'sffbench' has no attribute {name!r}")
