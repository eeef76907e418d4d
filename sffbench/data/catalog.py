"""The data sets: where they come from, how they are split, what is known about their bytes.

    catalog.names()          # ['ETTh1', 'ETTh2', ...]
    catalog.get("etth1")     # -> Entry; a misspelt name gets the nearest one in the error
    catalog.register(Entry(name="Mine", file="mine.csv", frequency="h", season=24, cluster="mine"))

One entry is one data set: nothing else in the package lists them. Loads no torch, numpy or pandas.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sffbench.errors import InputError, unknown

Borders = tuple[int, int, int]

_ETT_LICENCE = "CC BY-ND 4.0"
_ETT_SOURCE = "https://github.com/zhouhaoyi/ETDataset"
_ETT_RAW = "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small"
_AUTOFORMER = "the benchmark files that Autoformer (2021) published"
# The same files as the authors of Autoformer host them now (CRLF lines throughout).
_TSLIB = "https://huggingface.co/datasets/thuml/Time-Series-Library/resolve/main"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One data set in the Autoformer CSV layout: column `date`, then a numeric column a channel.

    Borders: rows [0, train_end) train, [train_end, val_end) validate, [val_end, test_end) test.
    They are `fixed_borders` where the benchmark fixes them, else `fractions` (train, test) of the
    rows.

    `season` is the lag of seasonal-naive and of MASE, in rows; `frequency` a pandas alias of
    constant length; `cluster` names data sets that are not independent of each other (two samplings
    of one transformer count as one). `sha256` holds every accepted digest of the file's bytes; it
    is empty where none is known.
    """

    name: str
    file: str
    frequency: str
    season: int
    cluster: str
    url: str | None = None
    sha256: tuple[str, ...] = ()
    num_rows: int | None = None
    num_channels: int | None = None
    fixed_borders: Borders | None = None
    fractions: tuple[float, float] = (0.7, 0.2)
    sentinels: tuple[float, ...] = (-9999.0,)
    licence: str = "none stated"
    source: str = ""
    notes: str = ""

    def borders(self, num_rows: int) -> Borders:
        """(train_end, val_end, test_end) of a file of `num_rows` rows; InputError if too short."""
        if self.fixed_borders is None:
            return self._checked(self.proportional_borders(num_rows), num_rows)
        return self._checked(self.fixed_borders, num_rows)

    def proportional_borders(self, num_rows: int) -> Borders:
        """The catalog's proportions at any length: what a synthetic twin is split by.

        train_end = floor(train * rows), test = floor(test * rows), validation the rest, all rows
        used.
        """
        train, test = self.fractions
        return int(train * num_rows), num_rows - int(test * num_rows), num_rows

    def _checked(self, borders: Borders, num_rows: int) -> Borders:
        train_end, val_end, test_end = borders
        if 0 < train_end < val_end < test_end <= num_rows:
            return borders
        need = f"at least {test_end}" if self.fixed_borders else "more for three non-empty parts"
        raise InputError(f"{self.name} has {num_rows} rows; its borders {borders} need {need}")


def _ett(name: str, cluster: str, per_hour: int, *sha256: str) -> Entry:
    """ETT: 12, 4 and 4 months of 30 days; the rows after them belong to no part."""
    month = 30 * 24 * per_hour
    return Entry(
        name=name,
        file=f"{name}.csv",
        frequency="h" if per_hour == 1 else f"{60 // per_hour}min",
        season=24 * per_hour,
        cluster=cluster,
        url=f"{_ETT_RAW}/{name}.csv",
        sha256=sha256,
        num_rows=17_420 * per_hour,
        num_channels=7,
        fixed_borders=(12 * month, 16 * month, 20 * month),
        fractions=(0.6, 0.2),
        licence=_ETT_LICENCE,
        source=_ETT_SOURCE,
        notes="the tail after 20 months of 30 days is unused",
    )


_BUILT_IN = (
    _ett(
        "ETTh1",
        "ett1",
        1,
        "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",  # LF lines
        "aaf53becad03ad8a7e93cf96452244f423480df960d769e12d66d4a5c570ddb0",  # CRLF lines
    ),
    _ett(
        "ETTh2",
        "ett2",
        1,
        "a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b",  # LF lines
        "ae5c99b925fb8b4e77d1bd6a897b311d1167766076f3d00e14a8654de38e7468",  # CRLF lines
    ),
    _ett(
        "ETTm1",
        "ett1",
        4,
        "6ce1759b1a18e3328421d5d75fadcb316c449fcd7cec32820c8dafda71986c9e",  # LF lines
        "f8a9f83e816439447a4b0c523039ac618bd9b97b9e97d48d0c3f71feb1899ddc",  # CRLF lines
    ),
    _ett(
        "ETTm2",
        "ett2",
        4,
        "db973ca252c6410a30d0469b13d696cf919648d0f3fd588c60f03fdbdbadd1fd",  # LF lines
        "fa470b4ffeac8f96f325abf027fe1c3cad1149560eabffc6d254abb72de21a62",  # CRLF lines
    ),
    Entry(
        name="Weather",
        file="weather.csv",
        frequency="10min",
        season=144,
        cluster="weather",
        url=f"{_TSLIB}/weather/weather.csv",
        sha256=(
            "34ee981d07313e51da2a50bb600072c8ae4a69cb4b0651f4cb93a069d7a2ba63",  # CRLF lines
            "9b2b19b13e342d9c9b9c51620d42b4be232df7fba30e7f5c4968b7c79ab138ad",  # LF lines
        ),
        num_rows=52_696,
        num_channels=21,
        licence="none found (origin: MPI for Biogeochemistry, Jena); do not redistribute",
        source=_AUTOFORMER,
        notes="-9999 sentinels in three columns, one duplicate stamp, one gap of 100 minutes",
    ),
    Entry(
        name="Exchange",
        file="exchange_rate.csv",
        frequency="D",
        # The stamps count every calendar day, but they were made up: the rows are trading days,
        # five a week, so a weekly lag is 5 rows, not 7.
        season=5,
        cluster="exchange",
        url=f"{_TSLIB}/exchange_rate/exchange_rate.csv",
        sha256=(
            "d55e7aa2641009814a18ba3279431b13f6d413b0eab195b9ff21988d8cf94e97",  # LF lines
            "48b4d9d3d508f5104162e85b9a6042e3557fde11aa9f2944eba8c0d0efc89842",  # CRLF lines
        ),
        num_rows=7_588,
        num_channels=8,
        source=f"{_AUTOFORMER}; values of github.com/laiguokun/multivariate-time-series-data",
        notes="dates are synthetic: upstream describes 1990 to 2016, the file counts to 2010",
    ),
    Entry(
        name="ILI",
        file="national_illness.csv",
        frequency="W",
        season=52,
        cluster="ili",
        url=f"{_TSLIB}/illness/national_illness.csv",
        sha256=(
            "8594cecb98c6f2f9dc014eca11c4d5d1e38ad5ce6ed0592d4abe65b146fce395",  # LF lines
            "93601f64d2566dc796ca4305adad8b8560c2db1a1ff04543c3bd813a7263570a",  # CRLF lines
        ),
        num_rows=966,
        num_channels=7,
        source=f"{_AUTOFORMER}; origin: CDC",
        notes="short: 97 rows to validate on, which is 2 starts at a horizon of 96",
    ),
    Entry(
        name="Electricity",
        file="electricity.csv",
        frequency="h",
        season=24,
        cluster="electricity",
        url=f"{_TSLIB}/electricity/electricity.csv",
        num_rows=26_304,
        num_channels=321,
        source=f"{_AUTOFORMER}; origin: UCI ElectricityLoadDiagrams20112014",
        notes="no digest known: recorded at the first fetch, compared ever after",
    ),
    Entry(
        name="Traffic",
        file="traffic.csv",
        frequency="h",
        season=24,
        cluster="traffic",
        url=f"{_TSLIB}/traffic/traffic.csv",
        num_rows=17_544,
        num_channels=862,
        source=f"{_AUTOFORMER}; origin: Caltrans PeMS",
        notes="no digest known: recorded at the first fetch, compared ever after",
    ),
)

_ENTRIES: dict[str, Entry] = {}


def register(entry: Entry) -> Entry:
    """Add a data set; InputError where its name, file, season or digests cannot be right."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", entry.name):
        raise InputError(
            f"dataset name {entry.name!r}: start with a letter; then letters, digits, . _ -"
        )
    for other in _ENTRIES.values():
        if entry.name.lower() == other.name.lower() or entry.file == other.file:
            raise InputError(f"dataset {entry.name!r} ({entry.file}) clashes with {other.name!r}")
    if entry.url is not None and not entry.url.startswith(("https://", "http://")):
        raise InputError(f"dataset {entry.name!r}: URL {entry.url!r} is neither https nor http")
    if not re.fullmatch(r"[0-9]*(s|min|h|D|W)", entry.frequency):
        allowed = "a number of s, min, h, D or W, such as 15min"
        raise InputError(
            f"dataset {entry.name!r}: frequency {entry.frequency!r}, allowed: {allowed}"
        )
    if entry.season < 1:
        raise InputError(f"dataset {entry.name!r}: season {entry.season}, allowed: 1 row or more")
    for digest in entry.sha256:
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise InputError(f"dataset {entry.name!r}: {digest!r} is no SHA-256 in lower-case hex")
    _ENTRIES[entry.name] = entry
    return entry


def names() -> list[str]:
    """Every data set, in catalog order."""
    return list(_ENTRIES)


def entries() -> Mapping[str, Entry]:
    """Read-only view: name -> Entry."""
    return MappingProxyType(_ENTRIES)


def get(name: str) -> Entry:
    """The entry called `name`, letter case ignored; InputError with the nearest name otherwise."""
    for entry in _ENTRIES.values():
        if entry.name.lower() == name.lower():
            return entry
    raise unknown("dataset", name, names())


for _entry in _BUILT_IN:
    register(_entry)
