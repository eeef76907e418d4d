"""Protocols: named, versioned rules under which strategies are compared.

A protocol fixes the budget, the optimiser, how validation selects, and which test windows count.
Every number here is part of a run's key, so an edited protocol never serves an old record. Raise
`version` with every change of meaning that the numbers do not show.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from sffbench.errors import unknown

_COUNTS = (
    "max_steps",
    "epochs",
    "batch_size",
    "validate_every",
    "num_validation",
    "num_snapshots",
    "patience",
    "num_test",
    "lookback",
    "num_checks",
)
_LENGTHS = ("max_steps", "epochs", "train_s")
_ADDED = ("train_s", "num_checks")  # later than the first records: in no key that does not set them


class Budget(BaseModel):
    """What a suite's `[budget]` may override: length of training, how often it is checked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_steps: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    validate_every: int | None = None
    num_validation: int | None = None
    train_s: float | None = None
    num_checks: int | None = None


class Protocol(BaseModel):
    """The resolved rules of one run; all fields are in its key.

    A length is `max_steps`, `epochs` (an epoch is one pass over the training windows) or `train_s`:
    seconds on the device, preparation included and validation not, with validation at `num_checks`
    even fractions of them. `None` means "all" for `num_validation` and `num_test`, "once an epoch"
    for `validate_every`, "the preset's card" for `lr`, and "the model's own" for `lookback`.
    `num_snapshots = 0` means no validation and no selection: what a run costs is asked, not how
    well it forecasts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: int = 1
    ranked: bool = True
    max_steps: int | None = None
    epochs: int | None = None
    batch_size: int
    optimizer: Literal["adamw", "adam"] = "adamw"
    lr: float | None = None
    weight_decay: float = 0.01
    schedule: Literal["cosine", "halving"] = "cosine"
    clip_norm: float | None = 1.0
    loss: Literal["own", "forecast"] = "own"
    validate_every: int | None = None
    num_validation: int | None = None
    num_snapshots: int = 2
    patience: int | None = None
    oracle: bool = False
    num_test: int | None = None
    lookback: int | None = None
    train_s: float | None = None
    num_checks: int | None = None

    @model_validator(mode="after")
    def _one_length(self) -> Protocol:
        if sum(getattr(self, name) is not None for name in _LENGTHS) != 1:
            raise ValueError("a protocol needs exactly one of max_steps, epochs and train_s")
        if (self.train_s is None) != (self.num_checks is None):
            raise ValueError("num_checks divides train_s: a protocol has both or neither")
        if self.train_s is not None and not 0 < self.train_s < math.inf:
            raise ValueError(f"train_s = {self.train_s}: must be a positive number")
        if self.train_s is not None and self.validate_every is not None:
            raise ValueError("validate_every counts steps: with train_s, set num_checks")
        for field in _COUNTS:
            value = getattr(self, field)
            if value is not None and value < (field != "num_snapshots"):
                raise ValueError(f"{field} = {value}: must be at least 1")
        if not self.selects and (self.oracle or self.patience):
            raise ValueError("num_snapshots = 0 validates nothing: no oracle, no patience")
        return self

    @property
    def selects(self) -> bool:
        """Whether validation chooses the tested model; without, it is the one of the last step."""
        return self.num_snapshots > 0

    def with_budget(self, budget: Budget) -> Protocol:
        """This protocol with the budget's set fields; one kind of length unsets the others.

        A budget of time has as many checks as this protocol, unless it says how many.
        """
        changes: dict[str, Any] = budget.model_dump(exclude_none=True)
        if any(name in changes for name in _LENGTHS):
            changes = dict.fromkeys(_LENGTHS) | changes
        if "train_s" in changes and changes["train_s"] is not None:
            changes = {"validate_every": None, "num_checks": self._num_checks()} | changes
        return Protocol(**(self.model_dump() | changes))

    def _num_checks(self) -> int:
        if self.max_steps is None:
            return self.num_checks or self.epochs or 1
        return math.ceil(self.max_steps / (self.validate_every or self.max_steps))

    def identity(self) -> dict[str, Any]:
        """What a run's key says of its protocol: every field, later ones where they are set."""
        unset = {name for name in _ADDED if getattr(self, name) is None}
        return self.model_dump(mode="json", exclude=unset)


_PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="quick",
            ranked=False,
            max_steps=60,
            batch_size=64,
            validate_every=20,
            num_validation=512,
            num_snapshots=1,
            num_test=512,
        ),
        Protocol(
            name="standard",
            max_steps=300,
            batch_size=256,
            validate_every=50,
            num_validation=4096,
        ),
        Protocol(name="full-shot", epochs=10, batch_size=256, patience=3, num_snapshots=1),
        Protocol(
            name="sff-paper",
            epochs=10,
            batch_size=2048,
            optimizer="adam",
            lr=3e-5,
            weight_decay=0.0,
            schedule="halving",
            clip_norm=None,
            loss="forecast",
            num_snapshots=1,
            oracle=True,
            lookback=672,
        ),
        Protocol(
            name="speed",
            ranked=False,
            max_steps=8,
            batch_size=8,
            num_snapshots=0,
            num_test=32,
            lookback=512,
        ),
        Protocol(
            name="speed-gpu",
            ranked=False,
            max_steps=23,
            batch_size=64,
            num_snapshots=0,
            num_test=256,
            lookback=512,
        ),
    )
}


def names() -> list[str]:
    """The registered protocols."""
    return list(_PROTOCOLS)


def get(name: str) -> Protocol:
    """The protocol called `name`; an unknown name is an error that offers the nearest."""
    if name not in _PROTOCOLS:
        raise unknown("protocol", name, names())
    return _PROTOCOLS[name]
