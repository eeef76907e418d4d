"""`[search]` of a suite: how many trials every strategy gets, and which settings they try.

    search = Search(trials=3, grid={"full": {"lr": [1e-4, 3e-4, 1e-3]}})
    search.points("full", "full")       # [{"lr": 1e-4}, {"lr": 3e-4}, {"lr": 1e-3}]

A trial is an ordinary cell whose key also says which trial of which search it is. Validation picks
the best one when a table is made (report/trials.py): its test error is the row's, and the row has
paid for all of them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from sffbench.errors import InputError, unknown

DEFAULT = "default"
"""Name of the grid of every strategy that has none of its own."""

Point = dict[str, Any]


class Search(BaseModel):
    """`trials` of every strategy that trains; `grid` has a list of values for each field."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: PositiveInt
    grid: dict[str, dict[str, list[Any]]] = Field(default_factory=dict)

    def points(self, name: str, label: str) -> list[Point]:
        """The settings that the strategy `name`, called `label` in the suite, tries: `trials` many.

        All combinations of the grid's values, in its order; of more than `trials`, a sample that
        depends on the combinations alone, so that every seed, data set and model tries the same.

        Raises:
            InputError: there is no grid for it, or the grid has fewer points than trials.
        """
        grid = self._grid_of(name, label)
        fields = sorted(grid)
        values = itertools.product(*(grid[field] for field in fields))
        points = _distinct(dict(zip(fields, combination, strict=True)) for combination in values)
        if len(points) < self.trials:
            raise InputError(
                f"search: the grid of {label!r} has {len(points)} points for {self.trials} trials: "
                f"give it more values, or set trials = {len(points)} for every strategy"
            )
        kept = sorted(range(len(points)), key=lambda place: _draw(points[place]))[: self.trials]
        return [points[place] for place in sorted(kept)]

    def _grid_of(self, name: str, label: str) -> dict[str, list[Any]]:
        for known in (label, name, DEFAULT):
            if known in self.grid:
                return self.grid[known]
        raise InputError(
            f"search: {label!r} trains and has no grid: add [search.grid.{name}] or "
            f"[search.grid.{DEFAULT}]"
        )

    def refuse_strangers(self, called: set[str]) -> None:
        """A grid for a strategy that the suite does not train is a misspelling."""
        for name in self.grid:
            if name != DEFAULT and name not in called:
                raise unknown("strategy of a search grid", name, [*sorted(called), DEFAULT])


def _distinct(points: Iterable[Point]) -> list[Point]:
    """Each combination once: a value that is listed twice is no second trial."""
    return list({_text(point): point for point in points}.values())


def _draw(point: Point) -> bytes:
    """A random number of the point's own: its place in the shuffled order."""
    return hashlib.blake2b(f"search/{_text(point)}".encode(), digest_size=8).digest()


def _text(point: Point) -> str:
    return json.dumps(point, sort_keys=True)
