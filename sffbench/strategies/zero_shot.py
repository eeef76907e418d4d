"""Zero-shot: the pretrained model as it is, no training."""

from __future__ import annotations

from typing import ClassVar

from sffbench.strategies.base import Strategy


class ZeroShot(Strategy):
    """theta = theta_pretrained. `n/a` for models whose forecasting head is not pretrained."""

    name: ClassVar[str] = "zero-shot"
    trains: ClassVar[bool] = False
    seeded: ClassVar[bool] = False
