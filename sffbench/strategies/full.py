"""Full fine-tuning: every parameter, from the pretrained weights. The baseline of every table."""

from __future__ import annotations

from typing import ClassVar

from sffbench.strategies.base import Strategy


class Full(Strategy):
    """theta <- AdamW(theta_pretrained); all parameters trainable, nothing else changed."""

    name: ClassVar[str] = "full"
