"""The catalog: nine data sets, their borders, and what `register` refuses."""

import subprocess
import sys

import pytest

from sffbench.data import catalog
from sffbench.data.catalog import Entry
from sffbench.errors import InputError

# reference: borders as the benchmark publications use them
BORDERS = {
    "ETTh1": (17_420, (8640, 11_520, 14_400)),
    "ETTh2": (17_420, (8640, 11_520, 14_400)),
    "ETTm1": (69_680, (34_560, 46_080, 57_600)),
    "ETTm2": (69_680, (34_560, 46_080, 57_600)),
    "Weather": (52_696, (36_887, 42_157, 52_696)),
    "Exchange": (7_588, (5_311, 6_071, 7_588)),
    "ILI": (966, (676, 773, 966)),
}
SEASONS = {
    "ETTh1": 24,
    "ETTh2": 24,
    "ETTm1": 96,
    "ETTm2": 96,
    "Weather": 144,
    "Exchange": 5,
    "ILI": 52,
    "Electricity": 24,
    "Traffic": 24,
}


def test_the_nine_data_sets_are_listed_in_order():
    assert catalog.names() == list(SEASONS)


@pytest.mark.parametrize("name", BORDERS)
def test_borders_are_the_published_ones(name: str):
    num_rows, borders = BORDERS[name]
    assert catalog.get(name).num_rows == num_rows
    assert catalog.get(name).borders(num_rows) == borders


@pytest.mark.parametrize(("name", "season"), SEASONS.items())
def test_seasons_are_a_day_a_trading_week_or_a_year(name: str, season: int):
    assert catalog.get(name).season == season


def test_two_samplings_of_one_transformer_share_a_cluster():
    clusters = [catalog.get(name).cluster for name in ("ETTh1", "ETTm1", "ETTh2", "ETTm2")]
    assert clusters == ["ett1", "ett1", "ett2", "ett2"]


def test_no_digest_is_invented_for_electricity_and_traffic():
    without = [name for name in catalog.names() if not catalog.get(name).sha256]
    assert without == ["Electricity", "Traffic"]


def test_letter_case_of_a_name_does_not_matter():
    assert catalog.get("etth1") is catalog.get("ETTh1")


def test_a_misspelt_name_gets_the_nearest_one():
    with pytest.raises(InputError, match=r"unknown dataset 'Wether'; did you mean 'Weather'\?"):
        catalog.get("Wether")


@pytest.mark.parametrize(("name", "num_rows"), [("ETTh1", 14_399), ("Weather", 4)])
def test_too_few_rows_for_the_borders_are_refused(name: str, num_rows: int):
    with pytest.raises(InputError, match=f"{name} has {num_rows} rows"):
        catalog.get(name).borders(num_rows)


def test_a_registered_entry_is_found(toy):
    entry = toy()
    assert catalog.get("toy") is entry
    assert catalog.names()[-1] == "Toy"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "etth1"}, "clashes with 'ETTh1'"),
        ({"file": "weather.csv"}, "clashes with 'Weather'"),
        ({"name": "a/b"}, "start with a letter"),
        ({"season": 0}, "season 0"),
        ({"frequency": "MS"}, "frequency 'MS'"),
        ({"sha256": ("ABC",)}, "no SHA-256"),
        ({"url": "ftp://example.org/toy.csv"}, "neither https nor http"),
    ],
)
def test_an_entry_that_cannot_be_right_is_refused(toy, fields: dict, reason: str):
    with pytest.raises(InputError, match=reason):
        toy(**fields)


def test_entries_cannot_be_changed():
    with pytest.raises(TypeError):
        catalog.entries()["X"] = Entry(  # type: ignore[index]
            name="X", file="x.csv", frequency="h", season=1, cluster="x"
        )


def test_the_catalog_and_content_hashes_need_neither_torch_nor_pandas():
    script = (
        "import sys; from sffbench.data import content_hash, names; names();"
        "content_hash('ETTh1', '.', 'synthetic');"
        "print(sorted({'torch', 'pandas', 'scipy'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (output.stdout.strip(), output.stderr) == ("[]", "")
