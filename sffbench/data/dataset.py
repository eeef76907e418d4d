"""One data set in memory: values, borders, scaler, and what is odd about the file.

    dataset = load("ETTh1", root)                          # <root>/ETTh1.csv
    dataset = load("ETTh1", root, source="synthetic")      # its seeded twin, no file needed

What no forecast could be scored on is refused with one line (no date column, NaN, decreasing dates,
too few rows); everything else that is odd becomes a line in `Dataset.warnings`. Importing this
loads no torch, so that `plan` can ask for a `content_hash` in no time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sffbench.data import synthetic
from sffbench.data.catalog import Borders, Entry, get
from sffbench.data.checksum import file_sha256
from sffbench.errors import InputError, unknown

if TYPE_CHECKING:
    from torch import Tensor

Source = Literal["real", "synthetic"]
Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scaler:
    """z = (x - mean) / std per channel, of the train rows, float64, ddof 0.

    The std of a constant channel is taken as 1.
    """

    mean: Float64
    std: Float64

    @classmethod
    def fit(cls, train: Float64) -> Scaler:
        """From the train rows [rows, C]."""
        # A constant channel has a rounding-size std, not 0: compare its ends instead.
        constant = train.max(axis=0) == train.min(axis=0)
        return cls(train.mean(axis=0), np.where(constant, 1.0, train.std(axis=0)))

    def transform(self, values: Float64) -> Float64:
        """Raw units [..., C] to standardised."""
        return (values - self.mean) / self.std

    def inverse(self, scaled: Float64) -> Float64:
        """Standardised [..., C] to raw units."""
        return scaled * self.std + self.mean


@dataclass(frozen=True, eq=False)
class Dataset:
    """T rows of C channels with everything a run needs to know about them.

    values, scaled: float32 [T, C] on the CPU, raw units and standardised (computed in float64 from
    the file's numbers, rounded once). borders: (train_end, val_end, test_end) rows. mase_scale:
    float64 [C], mean |z_t - z_(t - season)| over the standardised train rows. sha256: of the file's
    bytes, or of the recipe of a synthetic twin. official: the digest is one of the catalog's.
    """

    name: str
    values: Tensor
    scaled: Tensor
    scaler: Scaler
    borders: Borders
    columns: tuple[str, ...]
    dates: NDArray[np.datetime64]
    frequency: str
    season: int
    cluster: str
    sha256: str
    official: bool
    source: Source
    warnings: tuple[str, ...]
    mase_scale: Float64

    @property
    def num_rows(self) -> int:
        """T: every row of the file, those after the test part included."""
        return int(self.values.shape[0])

    @property
    def num_channels(self) -> int:
        """C."""
        return int(self.values.shape[1])


@dataclass(frozen=True, eq=False)
class _Content:
    """What a CSV file or a synthetic twin provides before splitting and scaling."""

    values: Float64
    dates: NDArray[np.datetime64]
    columns: tuple[str, ...]
    borders: Borders
    sha256: str
    official: bool
    warnings: tuple[str, ...]


def load(name: str, root: str | Path, *, source: Source = "real") -> Dataset:
    """Read `name` from its file in the folder `root`, or build its synthetic twin.

    InputError: unknown name, file missing (names the `fetch` command), or a file that cannot be
    used.
    """
    entry = get(name)
    content = _twin(entry) if _checked(source) == "synthetic" else _from_file(entry, Path(root))
    return _assemble(entry, content, source)


def content_hash(name: str, root: str | Path, source: Source = "real") -> str:
    """`Dataset.sha256` without loading: of the file's bytes, or of the synthetic twin's recipe."""
    entry = get(name)
    if _checked(source) == "synthetic":
        return synthetic.recipe_hash(entry)
    return file_sha256(_existing(entry, Path(root)))


def _existing(entry: Entry, root: Path) -> Path:
    """The entry's file in `root`; where it is missing, the error names the command to run."""
    path = root / entry.file
    if not path.is_file():
        raise InputError(
            f"{entry.name}: no file {entry.file} in {root}; run `sffbench fetch {entry.name}` "
            f"(or `sffbench fetch {entry.name} --from FOLDER`)"
        )
    return path


def _checked(source: Source) -> Source:
    if source not in get_args(Source):
        raise unknown("data source", source, get_args(Source))
    return source


def _twin(entry: Entry) -> _Content:
    values, dates = synthetic.twin(entry.name)
    return _Content(
        values=values,
        dates=dates,
        columns=synthetic.column_names(values.shape[1]),
        borders=entry.proportional_borders(len(values)),
        sha256=synthetic.recipe_hash(entry),
        official=False,
        warnings=(),
    )


def _from_file(entry: Entry, root: Path) -> _Content:
    from sffbench.data import csvfile  # pandas: only where a file is read

    path = _existing(entry, root)
    sha256 = file_sha256(path)
    table = csvfile.read(path, entry)
    return _Content(
        values=table.values,
        dates=table.dates,
        columns=table.columns,
        borders=entry.borders(len(table.values)),
        sha256=sha256,
        official=sha256 in entry.sha256,
        warnings=csvfile.oddities(table, entry, path, sha256),
    )


def _assemble(entry: Entry, content: _Content, source: Source) -> Dataset:
    import torch

    train_end = content.borders[0]
    scaler = Scaler.fit(content.values[:train_end])
    scaled = scaler.transform(content.values)
    return Dataset(
        name=entry.name,
        values=torch.from_numpy(content.values.astype(np.float32)),
        scaled=torch.from_numpy(scaled.astype(np.float32)),
        scaler=scaler,
        borders=content.borders,
        columns=content.columns,
        dates=content.dates,
        frequency=entry.frequency,
        season=entry.season,
        cluster=entry.cluster,
        sha256=content.sha256,
        official=content.official,
        source=source,
        warnings=content.warnings,
        mase_scale=_seasonal_change(scaled[:train_end], entry.season),
    )


def _seasonal_change(train: Float64, season: int) -> Float64:
    """mean |z_t - z_(t - season)| per channel; NaN where train is not longer than a season."""
    if len(train) <= season:
        return np.full(train.shape[1], np.nan)
    return np.asarray(np.abs(train[season:] - train[:-season]).mean(axis=0))
